"""Caches of the small teacher, written and read back; what a store holds, to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.kd.cache.format.fingerprint import base_fields
from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.reading.reader import CachedTargets, open_cache
from tasks.kd.cache.store.store import LOCK, USE, Store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache
from tasks.kd.data.examples.prepared import Ids, Split
from tasks.kd.digests import sha256_file
from tasks.kd.encoders.loading import attention_kernel
from tasks.kd.recipe.training import CacheTeacher
from tasks.kd.targets.targets import LiveTargets
from tests.kd.conftest import VOCABULARY, make_teacher

STREAMS = ("logits", "hidden.0", "hidden.2", "hidden.4", "attention.2", "relation.4")
CODECS = ("float32", "float16", "bfloat16", "int8")
MEND = "dvc repro cache_teacher@x"


def make_params(**changes: Any) -> CacheTeacher:
    return CacheTeacher(
        **{
            "mode": "cache",
            "streams": STREAMS,
            "codec": "float16",
            "max_relative_error": 0.02,
            "recompute": "projections",
            "batch_tokens": 64,
            "shard_mib": 1,
            "quota_gib": 1.0,
            "audit_examples": 8,
            **changes,
        }
    )


def make_job(split: Split, params: CacheTeacher, teacher: Any = None, **fields: str) -> CacheJob:
    return job_of(split.input_ids, params, teacher, **fields)


def job_of(
    texts: Sequence[Ids], params: CacheTeacher, teacher: Any = None, **fields: str
) -> CacheJob:
    digests = {
        "teacher_sha256": "t" * 64,
        "tokenizer_sha256": "k" * 64,
        "encoded_sha256": "e" * 64,
        **fields,
    }
    teacher = teacher or make_teacher()
    base = base_fields(**digests, attention=attention_kernel(teacher))
    return CacheJob(teacher, texts, 0, base, params)


def texts_of(lengths: Sequence[int], seed: int = 0) -> list[Ids]:
    """Random texts of those lengths in tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(2, VOCABULARY, length).astype(np.int32) for length in lengths]


def spread_teacher() -> Any:
    """With weights so large that texts differ, and attention is far from even."""
    teacher = make_teacher()
    spread(teacher)
    return teacher


def spread(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(6)


def write(job: CacheJob, store: Path, **options: Any) -> Manifest:
    return write_cache(job, Store(store), **{"on_tokens": lambda _: None, **options})


def open_written(job: CacheJob, manifest: Manifest, store: Path, **options: Any) -> CachedTargets:
    return open_cache(manifest, Store(store), expected=job.made_of, pad_id=0, mend=MEND, **options)


def live_of(job: CacheJob) -> LiveTargets:
    """The teacher that a cache is of, for the streams that its recipe asked for."""
    return LiveTargets(job.teacher, job.params.streams, pad_id=job.pad_id)


def content_of(store: Path) -> dict[str, str]:
    """Digests of all that a store holds, but for what is locked, which has no content."""
    return {
        path.relative_to(store).as_posix(): sha256_file(path)
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in (LOCK, USE)
    }


def identities_in(store: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of change of each shard: what a file that is left alone keeps."""
    shards = sorted(store.rglob("shard-*.safetensors"))
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}


def finished_in(store: Path) -> dict[Path, tuple[int, int]]:
    """The shards that count: those whose note was written too."""
    found = identities_in(store)
    return {path: found[path] for path in found if path.with_suffix(".json").exists()}


def same_streams(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[s], second[s]) for s in first)
