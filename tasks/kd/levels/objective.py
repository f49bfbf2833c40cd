"""Where the levels meet: the student, its projections and the losses, in one module.

One module, so that whatever wraps it for several processes sees every weight that is trained.

B examples, T tokens, D width, H heads, S student layers, L teacher layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils import parametrizations

from tasks.kd.data.examples.padding import Batch
from tasks.kd.data.examples.trainable import Trainable
from tasks.kd.encoders.families import capture
from tasks.kd.errors import ParamsError
from tasks.kd.levels import losses
from tasks.kd.levels.comparison import Comparison, Seen, loss_name, options_of, projection_name
from tasks.kd.levels.losses import prediction
from tasks.kd.levels.losses.geometry import ANGLE_TOKENS
from tasks.kd.levels.losses.temperature import cwsm, flsw
from tasks.kd.recipe.levels import (
    ConfidenceTemperature,
    ContrastiveLevel,
    FocalTemperature,
    GramLevel,
    HiddenLevel,
    LayerLevel,
    Level,
    LogitsMSELevel,
    Matching,
    PredictionLevel,
    ProjectedLevel,
    RelationLevel,
    Temperature,
    match,
)
from tasks.kd.recipe.phases import Moment, Phase, layer_levels
from tasks.kd.recipe.schedules import value_at
from tasks.kd.totals import Total


@dataclass(frozen=True)
class TeacherShape:
    """What the objective must know of a teacher that is not there.

    By layer: `deviations` [D] of its channels, `banks` [N, D] of pooled states of N other texts.
    """

    layers: int
    hidden_size: int
    deviations: Mapping[int, torch.Tensor]
    banks: Mapping[int, torch.Tensor] = field(default_factory=dict)


class Objective(Trainable):
    """Student + projections; `forward` gives each level's `Total` for one micro-batch.

    `student` is a sequence classifier; `teacher` may be None where no level reads one; `seed`
    decides what layers a `random` map draws.
    """

    def __init__(
        self,
        student: torch.nn.Module,
        phases: tuple[Phase, ...],
        teacher: TeacherShape | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = student
        self.phases = phases
        self.projections = torch.nn.ModuleDict()
        self._seed = seed
        self._comparisons: dict[LayerLevel, Comparison] = {}
        self._require_classes()
        if teacher is not None:
            self._match_layers(teacher)

    def forward(
        self, batch: Batch, targets: Mapping[str, torch.Tensor], moment: Moment
    ) -> dict[str, Total]:
        """Totals by level name. `targets` holds the teacher's streams, padded like the batch."""
        phase = self.phases[moment.phase]
        hidden, projected = self._own_layers(phase.levels)
        with capture(self.student, hidden, projected) as captured:
            logits = self.student(
                input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT.long()
            ).logits
        mask_BT, epoch, done = batch.mask_BT, moment.epoch, moment.done
        seen = Seen(self.student, captured, targets, mask_BT, epoch, done)
        totals = {}
        # In float32 whatever the precision of the passes: scores and projections as well.
        with torch.autocast(mask_BT.device.type, enabled=False):
            for name, level in zip(phase.level_names, phase.levels, strict=True):
                if isinstance(level, PredictionLevel):
                    totals[name] = _predict(level, logits, targets, batch.labels_B, done)
                else:
                    totals[name] = self._comparisons[level].total(seen)
        return totals

    def weights(self, moment: Moment) -> dict[str, float]:
        """Each level's weight then, by name."""
        phase = self.phases[moment.phase]
        return {
            name: value_at(level.weight, moment.done)
            for name, level in zip(phase.level_names, phase.levels, strict=True)
        }

    def counts(self, phase: int, lengths: npt.NDArray[np.int64]) -> dict[str, int]:
        """Elements that each level sums over, for examples of those lengths in tokens.

        Known before any forward pass, so that every micro-batch on every rank divides by the
        count of the whole step.
        """
        sizes = {
            "examples": len(lengths),
            "tokens": int(lengths.sum()),
            "pairs": int(np.square(lengths).sum()),
            "triplets": int((np.minimum(lengths, ANGLE_TOKENS) ** 3).sum()),
        }
        counts = {}
        names, levels = self.phases[phase].level_names, self.phases[phase].levels
        for name, level in zip(names, levels, strict=True):
            count = sizes[losses.COUNTS[loss_name(level)]]
            if not isinstance(level, PredictionLevel):
                # A Gram matrix stands between one matched layer and the next.
                count *= self._comparisons[level].matching.parts - isinstance(level, GramLevel)
            if isinstance(level, RelationLevel):
                count *= len(level.relations)
            counts[name] = count
        return counts

    def _own_layers(self, levels: tuple[Level, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The student's layers whose states are compared, and those whose projections are."""
        hidden: set[int] = set()
        projected: set[int] = set()
        for level in levels:
            if not isinstance(level, PredictionLevel):
                kept = hidden if level.level == "hidden" else projected
                kept.update(self._comparisons[level].matching.own)
        return tuple(sorted(hidden)), tuple(sorted(projected))

    def _require_classes(self) -> None:
        """Some losses say nothing of two classes: what is not the one is the other."""
        config: Any = self.student.config
        for level in (level for phase in self.phases for level in phase.levels):
            if level.loss in ("dkd", "dist") and config.num_labels < 3:
                raise ParamsError(
                    f"{level.level}.{level.loss} compares classes among themselves",
                    where="train_student.phases",
                    expected="at least 3 classes",
                    found=config.num_labels,
                )

    def _match_layers(self, teacher: TeacherShape) -> None:
        config: Any = self.student.config
        for level in layer_levels(self.phases):
            matching = match(level, config.num_hidden_layers, teacher.layers)
            self._comparisons[level] = Comparison(
                level, matching, self.projections, self.get_buffer, self._seed
            )
            if isinstance(level, ProjectedLevel) and level.projection != "none":
                pairs = matching.fixed or [(own, 0) for own in matching.own]
                for name in dict.fromkeys(projection_name(level, matching, *x) for x in pairs):
                    if name not in self.projections:
                        self.projections[name] = _projection(
                            level.projection, config.hidden_size, teacher.hidden_size
                        )
            if isinstance(level, HiddenLevel) and level.standardise:
                self._keep("deviation", matching, teacher.deviations)
            if isinstance(level, ContrastiveLevel):
                self._keep("bank", matching, teacher.banks)

    def _keep(self, name: str, matching: Matching, by_layer: Mapping[int, torch.Tensor]) -> None:
        """Hold what a level needs of the teacher's layers: it moves with the module."""
        for layer in matching.theirs:
            if not hasattr(self, f"{name}_{layer}"):
                self.register_buffer(f"{name}_{layer}", by_layer[layer], persistent=False)


def _predict(
    level: PredictionLevel,
    logits_BC: torch.Tensor,
    targets: Mapping[str, torch.Tensor],
    labels_B: torch.Tensor,
    done: float,
) -> Total:
    if level.loss == "labels":
        return prediction.labels(logits_BC, labels_B)
    options = options_of(level)
    if not isinstance(level, LogitsMSELevel):
        options["temperature"] = _temperature(level.temperature, logits_BC, targets, done)
        if isinstance(level.temperature, FocalTemperature | ConfidenceTemperature):
            options["base"] = level.temperature.base
    if level.loss == "dkd":
        return prediction.dkd(logits_BC, targets["logits"], labels_B, **options)
    total: Total = losses.FUNCTIONS[level.loss](logits_BC, targets["logits"], **options)
    return total


def _temperature(
    setting: Temperature, logits_BC: torch.Tensor, targets: Mapping[str, torch.Tensor], done: float
) -> float | torch.Tensor:
    """One for all examples, or [B]."""
    if isinstance(setting, FocalTemperature):
        return flsw(logits_BC, targets["logits"], **setting.model_dump(exclude={"rule"}))
    if isinstance(setting, ConfidenceTemperature):
        return cwsm(logits_BC, **setting.model_dump(exclude={"rule"}))
    return value_at(setting, done)


def standardised_layers(
    phases: tuple[Phase, ...], student_layers: int, teacher_layers: int
) -> tuple[int, ...]:
    """Teacher layers whose channel deviations the objective needs."""
    return _layers_of(
        (x for x in layer_levels(phases) if isinstance(x, HiddenLevel) and x.standardise),
        student_layers,
        teacher_layers,
    )


def banked_layers(
    phases: tuple[Phase, ...], student_layers: int, teacher_layers: int
) -> tuple[tuple[int, ...], int]:
    """Teacher layers of which the objective needs a bank, and of how many texts."""
    levels = [x for x in layer_levels(phases) if isinstance(x, ContrastiveLevel)]
    layers = _layers_of(levels, student_layers, teacher_layers)
    return layers, max((level.negatives for level in levels), default=0)


def _layers_of(
    levels: Iterable[LayerLevel], student_layers: int, teacher_layers: int
) -> tuple[int, ...]:
    read = (match(level, student_layers, teacher_layers).theirs for level in levels)
    return tuple(sorted({layer for layers in read for layer in layers}))


def _projection(kind: str, student_width: int, teacher_width: int) -> torch.nn.Module:
    """Linear with bias; starts as the identity where the widths are equal (CoFi does so).

    Orthogonal: no bias, and the lengths and angles of states are kept (of the teacher's, where it
    is the narrower).
    """
    if kind == "orthogonal":
        layer = torch.nn.Linear(student_width, teacher_width, bias=False)
        torch.nn.init.eye_(layer.weight)
        return parametrizations.orthogonal(layer)
    layer = torch.nn.Linear(student_width, teacher_width)
    if student_width == teacher_width:
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return layer
