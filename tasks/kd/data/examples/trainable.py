"""What a training works on: a model together with its loss, whatever that loss compares.

The loop in `training` knows this class alone. `levels.objective` and `teacher.fine_tuning` are the
two kinds that there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from tasks.kd.data.examples.padding import Batch
from tasks.kd.recipe.phases import Moment, Phase
from tasks.kd.totals import Total


class Trainable(torch.nn.Module, ABC):
    """A classifier, `student`, with the loss of each of its phases' levels.

    One module, so that whatever wraps it for several processes sees every weight that is trained:
    the classifier's own and those that only the loss has.
    """

    student: torch.nn.Module
    phases: tuple[Phase, ...]

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
