"""Intervals of differences: a bootstrap over seeds and examples at once, in pairs.

S seeds, N examples, R resamples. An arm and what it is compared with share every draw: the same
seeds side by side, the same examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from study.settings import Statistics

Floats = npt.NDArray[np.float64]
_AT_ONCE = 2**22  # drawn counts held at once


@dataclass(frozen=True)
class Interval:
    """A value and where it may lie."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side."""
        return self.low > 0 or self.high < 0

    def as_json(self) -> dict[str, Any]:
        """For the results' file."""
        return {**vars(self), "excludes_zero": self.excludes_zero}


def resampled(values_SN: list[Floats], settings: Statistics, *, corpus: int = 0) -> list[Floats]:
    """Means [R] of each array, all under the same draws of seeds and of examples.

    An array of a single row has no seeds to draw: a teacher's answers. Seeds are drawn alike for
    every `corpus`, since an encoder is the same on all of them; examples are not.
    """
    seeds = max(len(values) for values in values_SN)
    (count,) = {values.shape[1] for values in values_SN}
    drawn = np.random.default_rng([settings.seed, seeds])
    random = np.random.default_rng([settings.seed, seeds, corpus, count])
    parts: list[list[Floats]] = [[] for _ in values_SN]
    for size in _sizes(settings.resamples, count):
        examples_RN = random.multinomial(count, np.full(count, 1 / count), size=size) / count
        for found, values in zip(parts, values_SN, strict=True):
            found.append(examples_RN @ values.T)
    means_RS = [np.concatenate(found) for found in parts]
    seeds_RS = drawn.multinomial(seeds, np.full(seeds, 1 / seeds), size=settings.resamples) / seeds
    return [
        (means * seeds_RS).sum(1) if means.shape[1] == seeds else means[:, 0] for means in means_RS
    ]


def interval(value: float, draws_R: Floats, settings: Statistics) -> Interval:
    """The middle share of the draws, around what was measured."""
    rest = (1 - settings.confidence) / 2
    low, high = np.quantile(draws_R, [rest, 1 - rest])
    return Interval(value, float(low), float(high))


def difference(arm_SN: Floats, base_SN: Floats, settings: Statistics) -> Interval:
    """Mean of an arm minus mean of another."""
    arm_R, base_R = resampled([arm_SN, base_SN], settings)
    return interval(float(arm_SN.mean() - base_SN.mean()), arm_R - base_R, settings)


def ratio(arm_SN: Floats, teacher_N: Floats, settings: Statistics) -> Interval:
    """What share of a teacher's accuracy an arm keeps."""
    arm_R, teacher_R = resampled([arm_SN, teacher_N[None]], settings)
    return interval(float(arm_SN.mean() / teacher_N.mean()), arm_R / teacher_R, settings)


def gap_closed(
    arm_SN: Floats, base_SN: Floats, teacher_N: Floats, settings: Statistics
) -> Interval | None:
    """The share of the way from the baseline to the teacher that an arm goes.

    None where the teacher is not ahead of the baseline in every resample: a share of no way, or
    of next to none, says nothing.
    """
    arm_R, base_R, teacher_R = resampled([arm_SN, base_SN, teacher_N[None]], settings)
    gap = float(teacher_N.mean() - base_SN.mean())
    if float((teacher_R - base_R).min()) <= 0:
        return None
    share = float(arm_SN.mean() - base_SN.mean()) / gap
    return interval(share, (arm_R - base_R) / (teacher_R - base_R), settings)


def mean_difference(pairs: list[tuple[Floats, Floats]], settings: Statistics) -> Interval:
    """The mean over corpora of arm minus baseline."""
    draws, value = [], 0.0
    for corpus, (arm_SN, base_SN) in enumerate(pairs):
        arm_R, base_R = resampled([arm_SN, base_SN], settings, corpus=corpus)
        draws.append(arm_R - base_R)
        value += float(arm_SN.mean() - base_SN.mean()) / len(pairs)
    return interval(value, np.mean(draws, axis=0), settings)


def _sizes(resamples: int, count: int) -> Iterator[int]:
    most = max(1, _AT_ONCE // count)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)
