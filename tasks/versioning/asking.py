"""What of a recipe is out of date and why; which outs are recorded, and which are here.

Only reads, and asks DVC in this process.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.kd.recipe.document import read_yaml
from tasks.versioning.reasons import explain, find_missing, stem_of
from tasks.versioning.repository import (
    LOCK_WAIT_S,
    check_names,
    check_recipe,
    list_stages,
    open_repo,
)


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
    check_recipe(root, recipe)
    planned: dict[str, PlannedStage] = {}
    with open_repo(root, lock_wait_s) as repo:
        graph = repo.index.graph
        own = list_stages(repo, recipe)
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
    check_names(root)
    with open_repo(root, LOCK_WAIT_S) as repo:
        outs = [out for stage in list_stages(repo, recipe) for out in stage.outs if out.exists]
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


def _is_cached(cache: Any, md5: str) -> bool:
    """Whether DVC's cache holds a file, or a folder with all of its files."""
    if not cache.exists(md5):
        return False
    if not md5.endswith(".dir"):
        return True
    listed = json.loads(Path(cache.oid_to_path(md5)).read_text(encoding="utf-8"))
    return all(cache.exists(entry["md5"]) for entry in listed)


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
