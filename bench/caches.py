"""What every part is given, and the caches that several parts measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.material import Material, Prepared
from bench.watch import Watch
from tasks.kd.cache.format.codec import Codec
from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.reading.reader import CachedTargets, open_cache
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache
from tasks.kd.data.examples.prepared import Split
from tasks.kd.recipe.streams import Recompute
from tasks.kd.recipe.training import CacheTeacher

CODECS: tuple[Codec, ...] = ("float32", "float16", "bfloat16", "int8")
HIDDEN = ("logits", "hidden.0", "hidden.2", "hidden.4", "hidden.6")
# int8 must not be answered with float32, as it would be under the recipe's bound.
MAX_RELATIVE_ERROR = 0.05


@dataclass(frozen=True)
class Bench:
    """What every part is given. `store` is new in each run, and on the project's own disk."""

    quick: bool
    material: Material
    folder: Path
    store: Store
    watch: Watch

    def pick(self, full: int, quick: int) -> int:
        """How much of something: in earnest, or to try the program."""
        return quick if self.quick else full


def settings_of(
    material: Material,
    streams: Sequence[str] = HIDDEN,
    codec: Codec = "float16",
    recompute: Recompute = "projections",
    **changes: Any,
) -> CacheTeacher:
    """The recipe's settings, but for these."""
    return CacheTeacher(
        **{
            **material.recipe.cache_teacher.model_dump(),
            "mode": "cache",
            "streams": tuple(streams),
            "codec": codec,
            "recompute": recompute,
            "max_relative_error": MAX_RELATIVE_ERROR,
            **changes,
        }
    )


def job_of(
    teacher: torch.nn.Module, data: Prepared, split: Split, params: CacheTeacher, **base: object
) -> CacheJob:
    """What makes a cache of these texts; `base` replaces fields, for another teacher."""
    fields = {**data.base_of(split.input_ids), **base}
    return CacheJob(teacher, split.input_ids, data.pad_id, fields, params)


def cache_of(job: CacheJob, store: Store) -> CachedTargets:
    """The cache, written if the store lacks it, and opened."""
    manifest = write_cache(job, store, on_tokens=lambda _: None)
    return opened(job, manifest, store)


def opened(job: CacheJob, manifest: Manifest, store: Store) -> CachedTargets:
    """Open a cache that was just written. The codec asked for must be the one that was kept."""
    if manifest.coarser:
        raise SystemExit(f"kept in another codec than asked for: {manifest.coarser}")
    return open_cache(
        manifest,
        store,
        expected=job.made_of,
        pad_id=job.pad_id,
        mend="python -m bench",
        verify=False,
    )
