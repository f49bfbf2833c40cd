"""A real cache of the small teacher, made once and copied for each test that damages it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.kd.cache.manifest import Manifest
from tasks.kd.cache.reader import CachedTargets, open_cache
from tasks.kd.cache.writer import Job, fields_of, write_cache
from tasks.kd.data import Split
from tasks.kd.encoders import embeddings_of
from tasks.kd.params import CacheTeacher
from tests.kd.conftest import make_teacher

STREAMS = ("logits", "hidden.0", "hidden.2", "hidden.4")


def make_params(**changes: Any) -> CacheTeacher:
    return CacheTeacher(
        **{
            "streams": STREAMS,
            "codec": "float16",
            "max_relative_error": 0.01,
            "batch_tokens": 64,
            "shard_mib": 1,
            "quota_gib": 1.0,
            "audit_examples": 8,
            **changes,
        }
    )


def make_job(split: Split, params: CacheTeacher, teacher: Any = None) -> Job:
    made_of = fields_of(
        teacher_sha256="t" * 64,
        tokenizer_sha256="k" * 64,
        encoded_sha256="e" * 64,
        params=params,
    )
    return Job(teacher or make_teacher(), split.input_ids, 0, params, made_of)


def open_written(job: Job, manifest: Manifest, store: Path) -> CachedTargets:
    cached = open_cache(manifest, store, expected=job.made_of, mend="dvc repro cache_teacher@x")
    if manifest.computed:
        cached.use_embeddings(embeddings_of(make_teacher(seed=9)), pad_id=0)
    return cached


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards although the data are few."""
    monkeypatch.setattr("tasks.kd.cache.writer.MEBIBYTE", 2**13)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, split: Split) -> tuple[Job, Manifest, Path]:
    store = tmp_path_factory.mktemp("store")
    job = make_job(split, make_params())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.kd.cache.writer.MEBIBYTE", 2**13)
        return job, write_cache(job, store, on_tokens=lambda _: None), store


@pytest.fixture
def copied(written: tuple[Job, Manifest, Path], tmp_path: Path) -> tuple[Job, Manifest, Path]:
    """A copy to break."""
    job, manifest, store = written
    shutil.copytree(store, tmp_path / "store")
    return job, manifest, tmp_path / "store"
