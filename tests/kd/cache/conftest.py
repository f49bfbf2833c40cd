"""A real cache of the small teacher, made once and copied for each test that damages it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.store.store import USE
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.data.examples.prepared import Split
from tasks.kd.targets.targets import run_teacher
from tests.kd.conftest import make_split
from tests.makers.caches import make_job, make_params, write


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small are many times slower on several."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards although the data are few."""
    monkeypatch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", 2**14)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The streams of each pass of the teacher that fills shards, from now on."""
    passes: list[tuple[str, ...]] = []

    def watched(teacher: Any, ids: Any, mask: Any, streams: Any) -> Any:
        passes.append(tuple(streams))
        return run_teacher(teacher, ids, mask, passes[-1])

    monkeypatch.setattr("tasks.kd.cache.writing.encoding.run_teacher", watched)
    return passes


@pytest.fixture(scope="session")
def written(
    tmp_path_factory: pytest.TempPathFactory, split: Split
) -> tuple[CacheJob, Manifest, Path]:
    """In float16, in several shards."""
    store = tmp_path_factory.mktemp("store")
    job = make_job(split, make_params())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", 2**14)
        return job, write(job, store), store


@pytest.fixture
def copied(
    written: tuple[CacheJob, Manifest, Path], tmp_path: Path
) -> tuple[CacheJob, Manifest, Path]:
    """A copy to break, which nobody has used."""
    job, manifest, store = written
    shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns(USE))
    return job, manifest, tmp_path / "store"


@pytest.fixture(scope="session")
def other_split() -> Split:
    """Ten examples that the cache does not hold."""
    return make_split(10, seed=9)
