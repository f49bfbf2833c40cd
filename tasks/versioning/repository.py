"""DVC's view of a repository: opened under its lock, its errors ours, its streams silent."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.kd.errors import ParamsError, TransientError
from tasks.kd.recipe.files import RECIPE_NAME, read_inputs

LOCK_WAIT_S = 30.0


def check_recipe(root: Path, recipe: str) -> None:
    """Raise ParamsError unless the recipe is listed, under a name that DVC may see."""
    listed = check_names(root, recipe)
    if recipe not in listed:
        raise ParamsError(
            f"recipe {recipe} is not listed",
            where="params/recipes.yaml",
            expected=f"one of {', '.join(listed)}",
        )


def check_names(root: Path, *more: str) -> list[str]:
    """The listed recipes. Refuses names that DVC must not see: its templating runs a shell."""
    listed = list(read_inputs(root))
    for name in (*listed, *more):
        if not re.fullmatch(RECIPE_NAME.strip("^$"), name):
            raise ParamsError(f"a recipe can't be named {name!r}", where="params/recipes.yaml")
    return listed


@contextmanager
def open_repo(root: Path, lock_wait_s: float) -> Iterator[Any]:
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


def list_stages(repo: Any, recipe: str) -> list[Any]:
    """The recipe's stages, sources first; in dvc.yaml's order where the edges leave it open."""
    from networkx import lexicographical_topological_sort

    mine = [s for s in repo.index.stages if s.cmd and s.name.endswith(f"@{recipe}")]
    edges = repo.index.graph.subgraph(mine).reverse()
    return list(lexicographical_topological_sort(edges, key=mine.index))


def list_related(repo: Any, recipe: str) -> list[Any]:
    """The recipe's stages, and what `dvc add` and `dvc import` track for them."""
    stages = list_stages(repo, recipe)
    graph = repo.index.graph
    tracked = {address(s): s for stage in stages for s in graph.successors(stage) if not s.cmd}
    return [*tracked.values(), *stages]


def address(stage: Any) -> str:
    """What dvc calls a stage, or the .dvc file of what it tracks."""
    address: str = stage.name if stage.cmd else stage.path_in_repo
    return address
