"""The subject of a training: a model together with its loss, whatever that loss compares.

The loop in `training` knows only this class. `levels.objective` and `teacher.fine_tuning` are its
two kinds.
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
    """A moment of a training: the phase, the 0-based epoch, and the share of the phase done."""

    phase: int
    epoch: int = 0
    done: float = 0.0


class TrainedPhase(Protocol):
    """The fields of a phase that the loop reads; `recipe.phases.Phase` has more."""

    @property
    def name(self) -> str:
        """The name in metrics and messages."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over the texts that the phase reads."""
        ...

    @property
    def learning_rate(self) -> float:
        """The peak of the learning rate."""
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
        """Whether the phase also reads texts without labels."""
        ...


class Trainable(torch.nn.Module, ABC):
    """A classifier, `student`, with the loss of each of its phases' levels.

    It is one module, so that a wrapper for several processes sees every trained weight: the
    classifier's own and those that only the loss has.
    """

    student: torch.nn.Module
    phases: Sequence[TrainedPhase]
    # Kinds of levels that compare the inside of a layer, which can't be compiled then.
    compared_inside: frozenset[str] = frozenset()

    @abstractmethod
    def forward(
        self, batch: Batch, targets: Mapping[str, torch.Tensor], moment: Moment
    ) -> dict[str, Total]:
        """Each level's total for one micro-batch, by the level's name."""

    @abstractmethod
    def weights(self, moment: Moment) -> dict[str, float]:
        """Each level's weight at a moment, by the level's name."""

    @abstractmethod
    def counts(self, phase: int, lengths: npt.NDArray[np.int64]) -> dict[str, int]:
        """The number of elements that each level sums over, for examples of the given lengths.

        Lengths are in tokens. The counts are known before any forward pass, so that every
        micro-batch on every rank divides by the count of the whole step.
        """
