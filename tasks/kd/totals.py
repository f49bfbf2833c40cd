"""Sums that are divided once.

A loss returns a `Total`: what it summed and over how many elements. Totals of micro-batches,
ranks and accumulation steps are merged, and only the merged one is divided, so that the value
does not depend on how the examples were split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Total:
    """`sum` over `count` valid elements: both scalars, the sum in float32 with its gradient.

    Where a loss was asked for each example's own, the sum is [B].
    """

    sum: torch.Tensor
    count: int

    def merge(self, other: Total) -> Total:
        """Both together."""
        return Total(self.sum + other.sum, self.count + other.count)

    def mean(self, count: int | None = None) -> torch.Tensor:
        """The sum divided by `count` (by its own count if None); 0 if there was no element."""
        return self.sum / max(1, self.count if count is None else count)
