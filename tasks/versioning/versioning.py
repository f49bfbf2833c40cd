"""What of a recipe is out of date and why; run one of its stages; pull, push, hashes, commit.

The only user of dvc. Read-only questions are asked in this process; whatever runs or moves data is
a supervised `dvc` process, which ends when we do.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from tasks.kd.recipe.document import read_yaml
from tasks.kd.recipe.files import RECIPE_NAME, read_inputs
from tasks.versioning import imports
from tasks.versioning.reasons import explain, find_missing, stem_of

LOCK_WAIT_S = 30.0
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


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a recipe and why it must run; up to date where there is no reason."""

    name: str
    recipe: str
    upstream: tuple[str, ...]
    reasons: tuple[str, ...]
    missing: tuple[str, ...] = ()  # what it reads, no stage makes and this copy lacks
    tracked: tuple[str, ...] = ()  # those of them that DVC could pull

    @property
    def target(self) -> str:
        """As dvc names it."""
        return f"{self.name}@{self.recipe}"


def plan(root: Path, recipe: str, *, lock_wait_s: float = LOCK_WAIT_S) -> list[PlannedStage]:
    """The stages of a recipe in an order that respects their edges, each with its reasons to run.

    Raises ParamsError for a recipe that DVC must not or cannot read, TransientError if another
    dvc process holds this repository's lock for longer than `lock_wait_s` seconds.
    """
    _check_recipe(root, recipe)
    planned: dict[str, PlannedStage] = {}
    with _open_repo(root, lock_wait_s) as repo:
        graph = repo.index.graph
        own = _list_stages(repo, recipe)
        for stage in own:
            upstream = [source for source in graph.successors(stage) if source in own]
            runs = [source for source in upstream if planned[stem_of(source)].reasons]
            missing = find_missing(stage, graph, own)
            planned[stem_of(stage)] = PlannedStage(
                name=stem_of(stage),
                recipe=recipe,
                upstream=tuple(name for name in planned if name in set(map(stem_of, upstream))),
                reasons=tuple(explain(stage, runs, missing)),
                missing=tuple(missing),
                tracked=tuple(path for path in missing if missing[path]),
            )
    return list(planned.values())


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
    _check_recipe(root, stage.recipe)
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
    _check_recipe(root, recipe)
    with _open_repo(root, LOCK_WAIT_S) as repo:
        remote = _has_remote(repo)
        targets = [
            _address(stage)
            for stage in _list_related(repo, recipe)
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
    _check_recipe(root, recipe)
    with _open_repo(root, LOCK_WAIT_S) as repo:
        found = [stage for stage in _list_related(repo, recipe) if stage.is_import]
        targets = [_address(stage) for stage in found]
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
    _check_recipe(root, recipe)
    with _open_repo(root, LOCK_WAIT_S) as repo:
        if not _has_remote(repo):
            return False
        targets = [
            _address(stage)
            for stage in _list_related(repo, recipe)
            if any(out.hash_info for out in stage.outs)
        ]
    if targets:
        _transfer(root, ["push", *targets], on_line, on_progress)
    return True


def out_hashes(root: Path, recipe: str) -> dict[str, dict[str, str]]:
    """What dvc.lock says the stages of a recipe made: stage to path to md5."""
    path = root / "dvc.lock"
    stages = read_yaml(path)["stages"] if path.is_file() else {}
    return {
        name.removesuffix(f"@{recipe}"): {out["path"]: out["md5"] for out in entry["outs"]}
        for name, entry in stages.items()
        if name.endswith(f"@{recipe}")
    }


def find_outs(root: Path, recipe: str, md5s: Iterable[str]) -> set[str]:
    """Those of the md5s of outs whose files are all here: as outs of the recipe, or cached by DVC.

    Raises what `plan` raises, but for a recipe that is not listed any more.
    """
    _check_names(root)
    with _open_repo(root, LOCK_WAIT_S) as repo:
        outs = [out for stage in _list_stages(repo, recipe) for out in stage.outs if out.exists]
        here = {out.get_hash().value for out in outs}
        return {md5 for md5 in md5s if md5 in here or _is_cached(repo.cache.local, md5)}


def git_state(root: Path) -> tuple[str | None, bool]:
    """The commit that is checked out (None without one) and whether files differ from it.

    Untracked files count, for they may matter; dvc.lock does not: it is what a run writes.
    """
    try:
        head = _ask_git(root, "rev-parse", "--verify", "--quiet", "HEAD")
        changed = _ask_git(root, "status", "--porcelain", "--", ".", ":(exclude,top)dvc.lock")
    except FileNotFoundError:
        return None, True
    return head or None, not head or changed is None or bool(changed)


# --- what dvc is asked --------------------------------------------------------------------------


def _check_recipe(root: Path, recipe: str) -> None:
    listed = _check_names(root, recipe)
    if recipe not in listed:
        raise ParamsError(
            f"recipe {recipe} is not listed",
            where="params/recipes.yaml",
            expected=f"one of {', '.join(listed)}",
        )


def _check_names(root: Path, *more: str) -> list[str]:
    """The listed recipes. Refuses names that DVC must not see: its templating runs a shell."""
    listed = list(read_inputs(root))
    for name in (*listed, *more):
        if not re.fullmatch(RECIPE_NAME.strip("^$"), name):
            raise ParamsError(f"a recipe can't be named {name!r}", where="params/recipes.yaml")
    return listed


@contextmanager
def _open_repo(root: Path, lock_wait_s: float) -> Iterator[Any]:
    """DVC's view of the repository, its lock held; DVC's errors become ours."""
    streams = sys.stdout, sys.stderr
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    # As soon as it is imported, DVC puts its own streams in the place of these, and its log and
    # bars on the terminal.
    sys.stdout, sys.stderr = streams
    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with Repo(str(root)) as repo:
            _take_lock(repo, lock_wait_s)
            try:
                yield repo
            finally:
                repo.lock.unlock()
    except LockError as error:
        raise TransientError(
            "another dvc process is at work in this repository",
            where=root,
            advice=f"Waited {lock_wait_s:g} s for its lock.",
        ) from error
    except DvcException as error:
        raise ParamsError("DVC can't read this repository", where=root, found=str(error)) from error


def _take_lock(repo: Any, lock_wait_s: float) -> None:
    from dvc.lock import LockError

    deadline = time.monotonic() + lock_wait_s
    while True:
        try:
            repo.lock.lock()  # gives up after three seconds of its own
        except LockError:
            if time.monotonic() >= deadline:
                raise
        else:
            return


def _list_stages(repo: Any, recipe: str) -> list[Any]:
    """The recipe's stages, sources first; as in dvc.yaml where the edges leave it open."""
    from networkx import lexicographical_topological_sort

    mine = [s for s in repo.index.stages if s.cmd and s.name.endswith(f"@{recipe}")]
    edges = repo.index.graph.subgraph(mine).reverse()
    return list(lexicographical_topological_sort(edges, key=mine.index))


def _list_related(repo: Any, recipe: str) -> list[Any]:
    """The recipe's stages, and what `dvc add` and `dvc import` track for them."""
    stages = _list_stages(repo, recipe)
    graph = repo.index.graph
    tracked = {_address(s): s for stage in stages for s in graph.successors(stage) if not s.cmd}
    return [*tracked.values(), *stages]


def _is_cached(cache: Any, md5: str) -> bool:
    """Whether DVC's cache holds a file, or a folder with all of its files."""
    if not cache.exists(md5):
        return False
    if not md5.endswith(".dir"):
        return True
    listed = json.loads(Path(cache.oid_to_path(md5)).read_text(encoding="utf-8"))
    return all(cache.exists(entry["md5"]) for entry in listed)


def _address(stage: Any) -> str:
    address: str = stage.name if stage.cmd else stage.path_in_repo
    return address


def _is_vague(source: Any) -> bool:
    return imports.is_vague(source.protocol, source.hash_info.value if source.hash_info else None)


def _has_remote(repo: Any) -> bool:
    return bool(repo.config["core"].get("remote"))


# --- what dvc is told ---------------------------------------------------------------------------


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
    with _open_repo(root, LOCK_WAIT_S) as repo:
        (made,) = (one for one in _list_stages(repo, stage.recipe) if one.name == stage.target)
        lost = [out.def_path for out in made.outs if out.use_cache and out.changed_cache()]
    if lost:
        raise StageError(
            "DVC could not store what a stage made",
            where=", ".join(lost),
            advice="It is whole, but another run would delete it and make it again. Its last lines:"
            f"\n{tail}\nMake room on the disk of DVC's cache first.",
            mend=f"dvc commit {stage.target}",
        )


def _ask_git(root: Path, *arguments: str) -> str | None:
    """Standard output of a git command, or None if it fails."""
    answer = subprocess.run(
        ["git", *arguments],
        cwd=root,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() if answer.returncode == 0 else None
