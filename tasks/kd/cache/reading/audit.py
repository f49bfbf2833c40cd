"""Checking a finished cache against the teacher itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tasks.kd.cache.reading.reader import CachedTargets
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.data.examples.targets import Targets
from tasks.kd.errors import CacheCorruptError
from tasks.kd.targets.targets import LiveTargets

# Padded and unpadded passes differ by about 2e-6 per state in float32; a wrong record by about 1.
_NUMERICS = 1e-4


def audit(cached: CachedTargets, live: LiveTargets, input_ids: Sequence[Ids], *, count: int) -> int:
    """Recompute up to `count` records, one by one, and compare them; return how many.

    The records are drawn at random, the same ones for the same number of examples.

    Raises CacheCorruptError where a record is further from the teacher's than its codec explains.
    """
    random = np.random.default_rng(len(input_ids))
    rows = random.permutation(len(input_ids))[:count]
    for row in rows:
        compare(cached, live, input_ids[row], tolerance(cached.manifest.codec_errors))
    return len(rows)


def tolerance(codec_errors: Mapping[str, float]) -> dict[str, float]:
    """The largest relative error of a record that each stream's measured error explains."""
    return {name: _NUMERICS + 4 * error for name, error in codec_errors.items()}


def compare(cached: Targets, live: Targets, input_ids: Ids, bounds: dict[str, float]) -> None:
    """Raise CacheCorruptError unless both give the same streams for one example."""
    stored, fresh = cached.fetch([input_ids]), live.fetch([input_ids])
    for name, bound in bounds.items():
        error = _difference(stored[name], fresh[name])
        if not error <= bound:
            raise CacheCorruptError(
                f"the teacher cache's {name} is not what the teacher says",
                where=f"text of {len(input_ids)} tokens that begins {input_ids[:8].tolist()}",
                expected=f"a relative difference of at most {bound:.2g}",
                found=f"{error:.2g}",
            )


def _difference(own: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖own − theirs‖ / ‖theirs‖; infinite unless a local window excludes the same pairs in both."""
    excluded = torch.isneginf(theirs)
    if not torch.equal(excluded, torch.isneginf(own)):
        return float("inf")
    own, theirs = own.masked_fill(excluded, 0.0), theirs.masked_fill(excluded, 0.0)
    return float((own - theirs).norm() / theirs.norm().clamp_min(1e-12))
