"""Sums that are divided once.

A loss returns a `Total`: its sum and the number of elements summed. Totals of micro-batches,
ranks and accumulation steps are merged, and only the merged total is divided. So the value does
not depend on how the examples were split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Total:
    """`sum` over `count` valid elements, both scalars; the sum is float32 and carries a gradient.

    A loss that is computed per example has a sum [B].
    """

    sum: torch.Tensor
    count: int

    def merge(self, other: Total) -> Total:
        """The sum and the count of both totals.

        >>> Total(torch.tensor(6.0), 3).merge(Total(torch.tensor(4.0), 1)).mean()
        tensor(2.5000)
        """
        return Total(self.sum + other.sum, self.count + other.count)

    def mean(self, count: int | None = None) -> torch.Tensor:
        """The sum divided by `count`, or by its own count if None; 0 without elements."""
        return self.sum / max(1, self.count if count is None else count)
