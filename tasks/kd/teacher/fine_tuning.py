"""How a teacher is fine-tuned: on labels alone.

It reads none of `levels`, so that a change there never tunes a teacher again.

B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tasks.kd.data.examples.padding import Batch
from tasks.kd.data.examples.prepared import NO_LABEL
from tasks.kd.data.examples.trainable import Moment, Trainable
from tasks.kd.shapes import require_shape
from tasks.kd.totals import Total

LEVEL = "prediction.labels"


@dataclass(frozen=True)
class Tuning:
    """The one phase of a fine-tuning: all layers, all of the time."""

    epochs: int
    learning_rate: float
    name: str = "fine_tune"
    optimizer: Literal["anew", "continued"] = "anew"
    trained_layers: Literal["all"] = "all"
    balance_every: None = None
    reads_unlabelled: bool = False


class FineTuning(Trainable):
    """A classifier and its cross-entropy with the labels, in one phase."""

    def __init__(self, classifier: torch.nn.Module, *, epochs: int, learning_rate: float) -> None:
        super().__init__()
        self.student = classifier
        self.phases = (Tuning(epochs=epochs, learning_rate=learning_rate),)

    def forward(
        self,
        batch: Batch,
        targets: Mapping[str, torch.Tensor],  # noqa: ARG002
        moment: Moment,  # noqa: ARG002
    ) -> dict[str, Total]:
        """The cross-entropy, summed over examples; `targets` is not read."""
        logits_BC = self.student(
            input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT.long()
        ).logits
        return {LEVEL: cross_entropy(logits_BC, batch.labels_B)}

    def weights(self, moment: Moment) -> dict[str, float]:  # noqa: ARG002
        """The one level's weight, which is 1."""
        return {LEVEL: 1.0}

    def counts(self, phase: int, lengths: npt.NDArray[np.int64]) -> dict[str, int]:  # noqa: ARG002
        """The number of examples."""
        return {LEVEL: len(lengths)}


def cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> Total:
    """Cross-entropy with the labels, summed over examples; the count is examples.

    In float32 whatever the precision of the passes. An example without a label adds nothing and
    is counted. The numbers are those of the level `prediction`, loss `labels`, to the bit. Raises
    ShapeError if B differs.
    """
    require_shape("labels", labels_B, (logits_BC.shape[0],))
    with torch.autocast(logits_BC.device.type, enabled=False):
        total = functional.cross_entropy(
            logits_BC.float(), labels_B, reduction="sum", ignore_index=NO_LABEL
        )
    return Total(total, logits_BC.shape[0])
