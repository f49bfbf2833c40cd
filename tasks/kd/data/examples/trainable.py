"""What a training works on: a model together with its loss, whatever that loss compares.

The loop in `training` knows this class alone. `levels.objective` and `teacher.fine_tuning` are the
two kinds that there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tasks.kd.data.examples.padding import Batch
from tasks.kd.totals import Total


@dataclass(frozen=True)
class Moment:
    """When in a training: the phase, the 0-based epoch, and what share of the phase is done."""

    phase: int
    epoch: int = 0
    done: float = 0.0


class TrainedPhase(Protocol):
    """What the loop asks of a phase; `recipe.phases.Phase` has more."""

    @property
    def name(self) -> str:
        """Shown in metrics and messages."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over the texts that it reads."""
        ...

    @property
    def learning_rate(self) -> float:
        """Its peak."""
        ...

    @property
    def optimizer(self) -> Literal["anew", "continued"]:
        """Whether the optimizer forgets its moments as the phase begins."""
        ...

    @property
    def trained_layers(self) -> Literal["all"] | tuple[int | Literal["head"], ...]:
        """The layers that are trained, 0 the embeddings, and `head`."""
        ...

    @property
    def balance_every(self) -> int | None:
        """Steps between measurements that balance the levels, or None."""
        ...

    @property
    def reads_unlabelled(self) -> bool:
        """Whether it reads texts without labels too."""
        ...


class Trainable(torch.nn.Module, ABC):
    """A classifier, `student`, with the loss of each of its phases' levels.

    One module, so that whatever wraps it for several processes sees every weight that is trained:
    the classifier's own and those that only the loss has.
    """

    student: torch.nn.Module
    phases: Sequence[TrainedPhase]
    # Kinds of levels that compare what a layer computes inside: it can't be compiled then.
    compared_inside: frozenset[str] = frozenset()

    @abstractmethod
    def forward(
        self, batch: Batch, targets: Mapping[str, torch.Tensor], moment: Moment
    ) -> dict[str, Total]:
        """Each level's total for one micro-batch, by the level's name."""

    @abstractmethod
    def weights(self, moment: Moment) -> dict[str, float]:
        """Each level's weight at that moment, by the level's name."""

    @abstractmethod
    def counts(self, phase: int, lengths: npt.NDArray[np.int64]) -> dict[str, int]:
        """Elements that each level sums over, for examples of those lengths in tokens.

        Known before any forward pass, so that every micro-batch on every rank divides by the
        count of the whole step.
        """
