"""Where the levels meet: the student, its projections and the losses, in one module.

One module, so that whatever wraps it for several processes sees every weight that is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tasks.kd import losses
from tasks.kd.encoders import capture_hidden
from tasks.kd.layers import Pairs, pairs
from tasks.kd.params import HiddenLevel, KLLevel, LabelsLevel, Phase
from tasks.kd.totals import Total


@dataclass(frozen=True)
class Batch:
    """Padded examples: `input_ids_BT` int64, `mask_BT` bool (true at real tokens), `labels_B`."""

    input_ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    labels_B: torch.Tensor


@dataclass(frozen=True)
class TeacherShape:
    """What the objective must know of a teacher that is not there."""

    layers: int
    hidden_size: int
    deviations: Mapping[int, torch.Tensor]


def level_name(level: LabelsLevel | KLLevel | HiddenLevel) -> str:
    """Its name in metrics, for example `hidden.mse`."""
    return f"{level.level}.{level.loss}"


class Objective(torch.nn.Module):
    """Student + projections; `forward` gives each level's `Total` for one micro-batch.

    `student` is a sequence classifier; `teacher` may be None where no level reads one.
    """

    def __init__(
        self,
        student: torch.nn.Module,
        phases: tuple[Phase, ...],
        teacher: TeacherShape | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.phases = phases
        self.projections = torch.nn.ModuleDict()
        self._matched: dict[HiddenLevel, Pairs] = {}
        if teacher is not None:
            self._match_layers(teacher)

    def forward(
        self, batch: Batch, targets: Mapping[str, torch.Tensor], phase: int
    ) -> dict[str, Total]:
        """Totals by level name. `targets` holds the teacher's streams, padded like the batch."""
        levels = self.phases[phase].levels
        wanted = sorted({layer for level in levels for layer, _ in self._pairs(level)})
        with capture_hidden(self.student, tuple(wanted)) as states:
            logits = self.student(
                input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT.long()
            ).logits
        totals = {}
        for level in levels:
            if isinstance(level, LabelsLevel):
                total = losses.labels(logits, batch.labels_B)
            elif isinstance(level, KLLevel):
                total = losses.kl(logits, targets["logits"], temperature=level.temperature)
            else:
                total = self._hidden(level, states, targets, batch.mask_BT)
            totals[level_name(level)] = total
        return totals

    def counts(self, phase: int, *, examples: int, tokens: int) -> dict[str, int]:
        """Elements that each level sums over, for that many examples and real tokens.

        Known before any forward pass, so that every micro-batch on every rank divides by the
        count of the whole step.
        """
        return {
            level_name(level): tokens * len(self._pairs(level))
            if isinstance(level, HiddenLevel)
            else examples
            for level in self.phases[phase].levels
        }

    def _hidden(
        self,
        level: HiddenLevel,
        states: dict[int, torch.Tensor],
        targets: Mapping[str, torch.Tensor],
        mask_BT: torch.Tensor,
    ) -> Total:
        total: Total | None = None
        for own, theirs in self._pairs(level):
            student_BTD = states[own]
            if level.projection == "linear":
                student_BTD = self.projections[f"{own}_{theirs}"](student_BTD)
            deviation = self.get_buffer(f"deviation_{theirs}") if level.standardise else None
            part = losses.mse(
                student_BTD, targets[f"hidden.{theirs}"], mask_BT, deviation_D=deviation
            )
            total = part if total is None else total.merge(part)
        assert total is not None
        return total

    def _pairs(self, level: Any) -> Pairs:
        return self._matched[level] if isinstance(level, HiddenLevel) else ()

    def _match_layers(self, teacher: TeacherShape) -> None:
        config: Any = self.student.config
        for level in (level for phase in self.phases for level in phase.levels):
            if not isinstance(level, HiddenLevel):
                continue
            matched = pairs(level.layer_map, config.num_hidden_layers, teacher.layers)
            self._matched[level] = matched
            for own, theirs in matched:
                name = f"{own}_{theirs}"
                if level.projection == "linear" and name not in self.projections:
                    self.projections[name] = _projection(config.hidden_size, teacher.hidden_size)
                if level.standardise and not hasattr(self, f"deviation_{theirs}"):
                    self.register_buffer(
                        f"deviation_{theirs}", teacher.deviations[theirs], persistent=False
                    )


def _projection(student_width: int, teacher_width: int) -> torch.nn.Linear:
    """Linear with bias; starts as the identity where the widths are equal (CoFi does so)."""
    layer = torch.nn.Linear(student_width, teacher_width)
    if student_width == teacher_width:
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return layer
