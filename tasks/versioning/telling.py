"""Running one stage of a recipe; pulling, updating and pushing what DVC tracks.

Each is a supervised `dvc` process, which ends when we do.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks import supervise
from tasks.kd.errors import (
    DataError,
    KDError,
    ParamsError,
    StageError,
    TransientError,
    from_record,
)
from tasks.versioning import imports
from tasks.versioning.asking import PlannedStage
from tasks.versioning.repository import (
    LOCK_WAIT_S,
    address,
    check_recipe,
    list_related,
    list_stages,
    open_repo,
)

_TAIL_LINES = 20
_STAGE_NAME = r"[a-z][a-z0-9_]*"
# What dvc says of itself after every stage, and nobody needs.
_CHATTER = re.compile(
    r"^(Generating lock file|Updating lock file|To track the changes with git|To enable auto stag"
    r"|\tgit add |\tdvc config core\.autostage|Use `dvc push` to send|\s*$)"
)
_KILLED = re.compile(r"exited with (-9|137)$", re.MULTILINE)
_FULL = re.compile(r"No space left|[Qq]uota exceeded|disk I/O error|disk is full")
_CONFIG_ERROR = 251
_NOT_SET_UP = re.compile(r"to be installed|credentials|[Aa]ccess ?[Dd]enied|Forbidden")
_BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")


def reproduce(
    root: Path,
    stage: PlannedStage,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> None:
    """Run a stage unless DVC finds it up to date (or in its cache of earlier runs).

    Raises the error that the stage named, DataError if a source is not here,
    TransientError if another dvc process is at work on the same files, else StageError, also if
    DVC did not store what the stage made.
    """
    check_recipe(root, stage.recipe)
    if not re.fullmatch(_STAGE_NAME, stage.name):
        raise ParamsError(f"no stage can be named {stage.name!r}")
    absent = [path for path in stage.missing if not (root / path).exists()]
    if absent:
        raise DataError(
            f"{stage.name} reads what is not here",
            where=", ".join(absent),
            mend=f"dvc pull {' '.join(stage.tracked)}" if stage.tracked else None,
        )
    record = root / ".work" / "errors" / f"{stage.recipe}.{stage.name}.json"
    record.unlink(missing_ok=True)
    code, tail = _run_dvc(root, ["repro", "-s", stage.target], on_line, on_progress)
    if code != 0:
        raise _read_record(record) or _name_failure(stage.target, code, tail)
    _require_stored(root, stage, tail)


def pull(
    root: Path,
    recipe: str,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> bool:
    """Bring what the recipe's sources and recorded outs lack here; False if no remote is set up.

    What is here is never overwritten, and what the remote lacks is left to be made.
    Raises TransientError if the remote does not answer.
    """
    check_recipe(root, recipe)
    with open_repo(root, LOCK_WAIT_S) as repo:
        remote = _has_remote(repo)
        targets = [
            address(stage)
            for stage in list_related(repo, recipe)
            if (remote or stage.is_import)
            and any(out.hash_info and not out.exists for out in stage.outs)
        ]
    if targets:
        _transfer(root, ["pull", "--allow-missing", *targets], on_line, on_progress)
    return remote or bool(targets)


def update(
    root: Path,
    recipe: str,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> bool:
    """Bring the recipe's imports to what their sources hold now; False if it has none.

    Their .dvc files change with them. A source over HTTP that gives neither ETag nor Content-MD5
    is fetched each time and compared by its bytes. Raises TransientError if a source does not
    answer; what was here is here then.
    """
    check_recipe(root, recipe)
    with open_repo(root, LOCK_WAIT_S) as repo:
        found = [stage for stage in list_related(repo, recipe) if stage.is_import]
        targets = [address(stage) for stage in found]
        vague = [stage for stage in found if any(map(_is_vague, stage.deps))]
        files = [Path(stage.path) for stage in vague]
        for stage in vague:
            on_line(f"{stage.deps[0]} gives neither ETag nor Content-MD5: it is fetched anew")
    if targets:
        with imports.forgotten(files):
            try:
                _transfer(root, ["update", *targets], on_line, on_progress)
            except KDError:  # DVC removes what it had before it fetches
                _run_dvc(root, ["checkout", "--quiet", *targets], on_line, on_progress)
                raise
    return bool(targets)


def push(
    root: Path,
    recipe: str,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> bool:
    """Send the recipe's tracked sources and outs to the remote; False if none is set up.

    Raises TransientError if the remote does not answer.
    """
    check_recipe(root, recipe)
    with open_repo(root, LOCK_WAIT_S) as repo:
        if not _has_remote(repo):
            return False
        targets = [
            address(stage)
            for stage in list_related(repo, recipe)
            if any(out.hash_info for out in stage.outs)
        ]
    if targets:
        _transfer(root, ["push", *targets], on_line, on_progress)
    return True


# --- what DVC holds, and what it is told -------------------------------------------------------


def _is_vague(source: Any) -> bool:
    return imports.is_vague(source.protocol, source.hash_info.value if source.hash_info else None)


def _has_remote(repo: Any) -> bool:
    return bool(repo.config["core"].get("remote"))


def _run_dvc(
    root: Path,
    arguments: Sequence[str],
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> tuple[int, str]:
    """Run dvc, waiting for its lock; (exit code, the last lines)."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def take(line: str) -> None:
        if not _CHATTER.match(line):
            tail.append(line)
            on_line(line)

    environment = {
        **os.environ,
        # Stages are `python -m ...` in dvc.yaml; that must be this very Python, and a plain shell.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "SHELL": "/bin/sh",
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    # -P: the root's own folders must not stand in for packages that dvc imports
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", *arguments]
    code = supervise.run(command, root, env=environment, on_line=take, on_progress=on_progress)
    return code, "\n".join(tail)


def _transfer(
    root: Path,
    arguments: Sequence[str],
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> None:
    code, tail = _run_dvc(root, arguments, on_line, on_progress)
    if code != 0:
        advice = f"Its last lines:\n{tail}"
        if code == _CONFIG_ERROR or _NOT_SET_UP.search(tail):
            raise DataError("dvc can't use the remote as it is set up", where=root, advice=advice)
        raise TransientError(f"dvc {arguments[0]} did not succeed", where=root, advice=advice)


def _read_record(path: Path) -> KDError | None:
    """The error that a stage left for us."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if not isinstance(record, dict):
        return None
    error = from_record(record)
    error.transient = record.get("transient") is True
    return error


def _name_failure(target: str, code: int, tail: str) -> KDError:
    advice = f"Its last lines:\n{tail}"
    if _BUSY.search(tail):
        return TransientError(f"another dvc process holds what stage {target} needs", advice=advice)
    if _KILLED.search(tail):
        advice = f"It was killed; the machine may be out of memory. {advice}"
    if _FULL.search(tail):
        advice = (
            "The disk seems to be full. If the stage says that it was done, make room and keep its "
            f"out with dvc commit -f {target}, otherwise run it again. {advice}"
        )
    return StageError(
        f"stage {target} ended with exit code {code} and named no error", advice=advice
    )


def _require_stored(root: Path, stage: PlannedStage, tail: str) -> None:
    """Raise StageError if DVC's cache lacks what the stage made: dvc ends with 0 all the same.

    The next `repro` would delete the out and run the stage again.
    """
    with open_repo(root, LOCK_WAIT_S) as repo:
        (made,) = (one for one in list_stages(repo, stage.recipe) if one.name == stage.target)
        lost = [out.def_path for out in made.outs if out.use_cache and out.changed_cache()]
    if lost:
        raise StageError(
            "DVC could not store what a stage made",
            where=", ".join(lost),
            advice="It is whole, but another run would delete it and make it again. Its last lines:"
            f"\n{tail}\nMake room on the disk of DVC's cache first.",
            mend=f"dvc commit {stage.target}",
        )
