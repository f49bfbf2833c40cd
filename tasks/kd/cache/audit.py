"""Checking a finished cache against the teacher itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.kd.cache.reader import CachedTargets
from tasks.kd.data import Ids
from tasks.kd.errors import CacheCorruptError
from tasks.kd.targets import LiveTargets, Targets

# Padded and unpadded passes differ by about 2e-6 per state in float32; a wrong record by about 1.
_NUMERICS = 1e-4


def audit(cached: CachedTargets, live: LiveTargets, input_ids: Sequence[Ids], *, count: int) -> int:
    """Recompute up to `count` records, one by one, and compare; returns how many.

    The records are drawn at random, the same ones whenever there are as many examples.

    Raises CacheCorruptError where a record is further from the teacher's than its codec explains.
    """
    random = np.random.default_rng(len(input_ids))
    rows = random.permutation(len(input_ids))[:count]
    for row in rows:
        compare(cached, live, input_ids[row], cached_error(cached))
    return len(rows)


def cached_error(cached: CachedTargets) -> dict[str, float]:
    """Largest relative error that each stream's codec explains."""
    streams = cached.manifest.streams
    tolerance = {name: _NUMERICS + 4 * stream.relative_error for name, stream in streams.items()}
    return {**tolerance, **dict.fromkeys(cached.manifest.computed, _NUMERICS)}


def compare(cached: Targets, live: Targets, input_ids: Ids, tolerance: dict[str, float]) -> None:
    """Raise CacheCorruptError unless both give the same streams for one example."""
    stored, fresh = cached.fetch([input_ids]), live.fetch([input_ids])
    for name, bound in tolerance.items():
        error = float((stored[name] - fresh[name]).norm() / fresh[name].norm().clamp_min(1e-12))
        if not error <= bound:
            raise CacheCorruptError(
                f"the teacher cache's {name} is not what the teacher says",
                where=f"text of {len(input_ids)} tokens that begins {input_ids[:8].tolist()}",
                expected=f"a relative difference of at most {bound:.2g}",
                found=f"{error:.2g}",
            )
