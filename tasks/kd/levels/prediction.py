"""One level of predictions: the student's logits against labels or the teacher's logits.

B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tasks.kd.levels.losses import FUNCTIONS
from tasks.kd.levels.losses.temperature import cwsm, flsw
from tasks.kd.levels.seen import Seen, options_at
from tasks.kd.recipe.levels import Level
from tasks.kd.recipe.losses import Counts, loss_of
from tasks.kd.recipe.schedules import ConfidenceTemperature, FocalTemperature
from tasks.kd.totals import Total


@dataclass(frozen=True)
class Prediction:
    """A level without layers."""

    level: Level

    def total(self, seen: Seen) -> Total:
        """The level's loss on a micro-batch."""
        loss, options = loss_of(self.level), options_at(self.level, seen.done)
        rule = options.get("temperature")
        if isinstance(rule, FocalTemperature | ConfidenceTemperature):
            options |= {"temperature": _by_rule(rule, seen), "base": rule.base}
        against = [seen.targets[loss.reads]] if loss.reads else []
        labels = [seen.labels_B] if loss.takes_labels else []
        return FUNCTIONS[loss.function](seen.logits_BC, *against, *labels, **options)

    def count(self, sizes: Mapping[Counts, int]) -> int:
        """What its sum is over, in a batch of those sizes."""
        return sizes[loss_of(self.level).counts]


def _by_rule(rule: FocalTemperature | ConfidenceTemperature, seen: Seen) -> torch.Tensor:
    """Each example's own temperature, [B]."""
    settings = rule.model_dump(exclude={"rule"})
    if isinstance(rule, FocalTemperature):
        return flsw(seen.logits_BC, seen.targets["logits"], **settings)
    return cwsm(seen.logits_BC, **settings)
