"""A micro-batch as both models saw it, which is all that a level's loss is worked out from.

B examples, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tasks.kd.encoders.capture import Captured
from tasks.kd.recipe.levels import Level
from tasks.kd.recipe.losses import loss_of
from tasks.kd.recipe.values import value_at


@dataclass(frozen=True)
class Seen:
    """What the student gave for a micro-batch, and the teacher's streams, `targets`.

    It is seen a share `done` into the phase, in that 0-based `epoch`.
    """

    student: torch.nn.Module
    captured: Captured
    logits_BC: torch.Tensor
    labels_B: torch.Tensor
    targets: Mapping[str, torch.Tensor]
    mask_BT: torch.Tensor
    epoch: int
    done: float


def options_at(level: Level, done: float) -> dict[str, Any]:
    """What a level's loss function takes by name, a share `done` into the phase."""
    loss = loss_of(level)
    return {
        loss.renamed.get(name, name): value_at(getattr(level, name), done) for name in loss.options
    }
