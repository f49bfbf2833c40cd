"""Where the levels meet: the student, its projections and the losses, in one module.

One module, so that whatever wraps it for several processes sees every weight that is trained.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.kd import losses
from tasks.kd.errors import ParamsError
from tasks.kd.families import QKV, Captured, capture, scores
from tasks.kd.layers import Pairs
from tasks.kd.levels import (
    AttentionLevel,
    HiddenLevel,
    LayerLevel,
    Level,
    Phase,
    PredictionLevel,
    ProjectedLevel,
    RelationLevel,
    layer_levels,
    matched,
)
from tasks.kd.totals import Total

_NOT_THE_LOSS_S = {"level", "loss", "weight", "layer_map", "standardise", "projection"}
_ATTENTION = {"mse": losses.scores_mse, "kl": losses.attention_kl}
# Where a relation stands in the stream `relation.<l>` [B, T, 3, D].
_RELATIONS = {"queries": 0, "keys": 1, "values": 2}


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


def level_name(level: Level) -> str:
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
        self._matched: dict[LayerLevel, Pairs] = {}
        self._require_classes()
        if teacher is not None:
            self._match_layers(teacher)

    def forward(
        self, batch: Batch, targets: Mapping[str, torch.Tensor], phase: int
    ) -> dict[str, Total]:
        """Totals by level name. `targets` holds the teacher's streams, padded like the batch."""
        levels = self.phases[phase].levels
        hidden, projected = self._own_layers(levels)
        with capture(self.student, hidden, projected) as captured:
            logits = self.student(
                input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT.long()
            ).logits
        totals = {}
        # In float32 whatever the precision of the passes: scores and projections as well.
        with torch.autocast(batch.mask_BT.device.type, enabled=False):
            for level in levels:
                if isinstance(level, PredictionLevel):
                    totals[level_name(level)] = _predict(level, logits, targets, batch.labels_B)
                else:
                    total = self._compare(level, captured, targets, batch.mask_BT)
                    totals[level_name(level)] = total
        return totals

    def counts(self, phase: int, lengths: npt.NDArray[np.int64]) -> dict[str, int]:
        """Elements that each level sums over, for examples of those lengths in tokens.

        Known before any forward pass, so that every micro-batch on every rank divides by the
        count of the whole step.
        """
        sizes = {
            "examples": len(lengths),
            "tokens": int(lengths.sum()),
            "pairs": int(np.square(lengths).sum()),
        }
        counts = {}
        for level in self.phases[phase].levels:
            count = sizes[losses.COUNTS[_loss_of(level)]]
            if not isinstance(level, PredictionLevel):
                count *= len(self._matched[level])
            if isinstance(level, RelationLevel):
                count *= len(level.relations)
            counts[level_name(level)] = count
        return counts

    def _compare(
        self,
        level: LayerLevel,
        captured: Captured,
        targets: Mapping[str, torch.Tensor],
        mask_BT: torch.Tensor,
    ) -> Total:
        """A level between layers, over all its pairs."""
        total = None
        for own, theirs in self._matched[level]:
            target = targets[f"{level.level}.{theirs}"]
            if isinstance(level, RelationLevel):
                part = _relate(level, _float(captured.qkv[own]), target, mask_BT)
            elif isinstance(level, AttentionLevel):
                student_BHTT = scores(self.student, own, _float(captured.qkv[own]), mask_BT)
                part = _ATTENTION[level.loss](student_BHTT, target, mask_BT, heads=level.heads)
            else:
                student_BTD = captured.hidden[own].float()
                if isinstance(level, ProjectedLevel) and level.projection == "linear":
                    student_BTD = self.projections[f"{own}_{theirs}"](student_BTD)
                options: dict[str, Any] = _options(level)
                if isinstance(level, HiddenLevel) and level.standardise:
                    options["deviation_D"] = self.get_buffer(f"deviation_{theirs}")
                part = getattr(losses, level.loss)(student_BTD, target, mask_BT, **options)
            total = part if total is None else total.merge(part)
        assert total is not None
        return total

    def _own_layers(self, levels: tuple[Level, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The student's layers whose states are compared, and those whose projections are."""
        hidden: set[int] = set()
        projected: set[int] = set()
        for level in levels:
            if not isinstance(level, PredictionLevel):
                kept = hidden if level.level == "hidden" else projected
                kept.update(own for own, _ in self._matched[level])
        return tuple(sorted(hidden)), tuple(sorted(projected))

    def _require_classes(self) -> None:
        """Some losses say nothing of two classes: what is not the one is the other."""
        config: Any = self.student.config
        for level in (level for phase in self.phases for level in phase.levels):
            if level.loss in ("dkd", "dist") and config.num_labels < 3:
                raise ParamsError(
                    f"{level_name(level)} compares classes among themselves",
                    where="train_student.phases",
                    expected="at least 3 classes",
                    found=config.num_labels,
                )

    def _match_layers(self, teacher: TeacherShape) -> None:
        config: Any = self.student.config
        for level in layer_levels(self.phases):
            self._matched[level] = matched(level, config.num_hidden_layers, teacher.layers)
            for own, theirs in self._matched[level]:
                name = f"{own}_{theirs}"
                is_projected = isinstance(level, ProjectedLevel) and level.projection == "linear"
                if is_projected and name not in self.projections:
                    self.projections[name] = _projection(config.hidden_size, teacher.hidden_size)
                is_standard = isinstance(level, HiddenLevel) and level.standardise
                if is_standard and not hasattr(self, f"deviation_{theirs}"):
                    self.register_buffer(
                        f"deviation_{theirs}", teacher.deviations[theirs], persistent=False
                    )


def _predict(
    level: PredictionLevel,
    logits_BC: torch.Tensor,
    targets: Mapping[str, torch.Tensor],
    labels_B: torch.Tensor,
) -> Total:
    if level.loss == "labels":
        return losses.labels(logits_BC, labels_B)
    if level.loss == "dkd":
        return losses.dkd(logits_BC, targets["logits"], labels_B, **_options(level))
    total: Total = getattr(losses, level.loss)(logits_BC, targets["logits"], **_options(level))
    return total


def _relate(level: RelationLevel, qkv: QKV, target: torch.Tensor, mask_BT: torch.Tensor) -> Total:
    parts = [
        losses.relation_kl(
            getattr(qkv, f"{name}_BTD"),
            target[:, :, _RELATIONS[name]],
            mask_BT,
            heads=level.relation_heads,
        )
        for name in level.relations
    ]
    return functools.reduce(Total.merge, parts)


def _float(qkv: QKV) -> QKV:
    return QKV(qkv.queries_BTD.float(), qkv.keys_BTD.float(), qkv.values_BTD.float())


def _options(level: Level) -> dict[str, Any]:
    """The settings of a level that its loss takes by the same name."""
    return {name: value for name, value in level if name not in _NOT_THE_LOSS_S}


def _loss_of(level: Level) -> str:
    """The name of its loss in `losses`."""
    if isinstance(level, RelationLevel):
        return "relation_kl"
    if isinstance(level, AttentionLevel):
        return _ATTENTION[level.loss].__name__
    return level.loss


def standardised_layers(
    phases: tuple[Phase, ...], student_layers: int, teacher_layers: int
) -> tuple[int, ...]:
    """Teacher layers whose channel deviations the objective needs."""
    return tuple(
        sorted(
            {
                theirs
                for level in layer_levels(phases)
                if isinstance(level, HiddenLevel) and level.standardise
                for _, theirs in matched(level, student_layers, teacher_layers)
            }
        )
    )


def _projection(student_width: int, teacher_width: int) -> torch.nn.Linear:
    """Linear with bias; starts as the identity where the widths are equal (CoFi does so)."""
    layer = torch.nn.Linear(student_width, teacher_width)
    if student_width == teacher_width:
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return layer
