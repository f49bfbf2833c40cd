"""Where the levels meet: the student, its projections and the losses, in one module.

One module, so that whatever wraps it for several processes sees every weight that is trained.

B examples, T tokens, C classes, D width, N texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.kd.data.examples.padding import Batch
from tasks.kd.data.examples.trainable import Moment, Trainable
from tasks.kd.encoders.capture import capture
from tasks.kd.errors import ParamsError
from tasks.kd.levels.comparison import Comparison
from tasks.kd.levels.losses.geometry import ANGLE_TOKENS
from tasks.kd.levels.prediction import Prediction
from tasks.kd.levels.projections import add_projections
from tasks.kd.levels.seen import Seen
from tasks.kd.recipe.levels import LayerLevel, Level
from tasks.kd.recipe.losses import Constant, Counts, constants_of, loss_of
from tasks.kd.recipe.matching import Matching, match
from tasks.kd.recipe.phases import Phase, layer_levels, levels_inside_layers
from tasks.kd.recipe.values import value_at
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

    phases: tuple[Phase, ...]

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
        self.compared_inside = frozenset(levels_inside_layers(phases))
        self.projections = torch.nn.ModuleDict()
        self._seed = seed
        self._terms: dict[Level, Prediction | Comparison] = {}
        self._require_classes()
        self._take_predictions()
        if teacher is not None:
            self._match_layers(teacher)

    def forward(
        self, batch: Batch, targets: Mapping[str, torch.Tensor], moment: Moment
    ) -> dict[str, Total]:
        """Totals by level name. `targets` holds the teacher's streams, padded like the batch."""
        phase = self.phases[moment.phase]
        hidden, projected = self._own_layers(phase)
        with capture(self.student, hidden, projected) as captured:
            logits_BC = self.student(
                input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT.long()
            ).logits
        seen = Seen(
            self.student,
            captured,
            logits_BC,
            batch.labels_B,
            targets,
            batch.mask_BT,
            epoch=moment.epoch,
            done=moment.done,
        )
        # In float32 whatever the precision of the passes: scores and projections as well.
        with torch.autocast(batch.mask_BT.device.type, enabled=False):
            return {
                name: self._terms[level].total(seen)
                for name, level in zip(phase.level_names, phase.levels, strict=True)
            }

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
        sizes: dict[Counts, int] = {
            "examples": len(lengths),
            "tokens": int(lengths.sum()),
            "pairs": int(np.square(lengths).sum()),
            "triplets": int((np.minimum(lengths, ANGLE_TOKENS) ** 3).sum()),
        }
        names, levels = self.phases[phase].level_names, self.phases[phase].levels
        return {
            name: self._terms[level].count(sizes) for name, level in zip(names, levels, strict=True)
        }

    def _own_layers(self, phase: Phase) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The student's layers whose states are compared, and those whose projections are."""
        hidden: set[int] = set()
        projected: set[int] = set()
        for level in layer_levels([phase]):
            term = self._terms[level]
            assert isinstance(term, Comparison)
            (projected if term.loss.inside_layers else hidden).update(term.matching.own)
        return tuple(sorted(hidden)), tuple(sorted(projected))

    def _require_classes(self) -> None:
        """Some losses say nothing of two classes: what is not the one is the other."""
        config: Any = self.student.config
        for level in (level for phase in self.phases for level in phase.levels):
            least = loss_of(level).least_classes
            if config.num_labels < least:
                raise ParamsError(
                    f"{level.level}.{level.loss} compares classes among themselves",
                    where="train_student.phases",
                    expected=f"at least {least} classes",
                    found=config.num_labels,
                )

    def _take_predictions(self) -> None:
        for level in (level for phase in self.phases for level in phase.levels):
            if not isinstance(level, LayerLevel):
                self._terms[level] = Prediction(level)

    def _match_layers(self, teacher: TeacherShape) -> None:
        config: Any = self.student.config
        kept = {"deviation": teacher.deviations, "bank": teacher.banks}
        for level in layer_levels(self.phases):
            matching = match(level, config.num_hidden_layers, teacher.layers)
            self._terms[level] = Comparison(
                level, matching, self.projections, self.get_buffer, self._seed
            )
            add_projections(
                self.projections,
                level,
                matching,
                student_width=config.hidden_size,
                teacher_width=teacher.hidden_size,
            )
            for constant in constants_of(level):
                self._keep(constant, matching, kept[constant])

    def _keep(self, name: str, matching: Matching, by_layer: Mapping[int, torch.Tensor]) -> None:
        """Hold what a level needs of the teacher's layers: it moves with the module."""
        for layer in matching.theirs:
            if not hasattr(self, f"{name}_{layer}"):
                self.register_buffer(f"{name}_{layer}", by_layer[layer], persistent=False)


def standardised_layers(
    phases: tuple[Phase, ...], student_layers: int, teacher_layers: int
) -> tuple[int, ...]:
    """Teacher layers whose channel deviations the objective needs."""
    return _layers_kept("deviation", phases, student_layers, teacher_layers)


def banked_layers(
    phases: tuple[Phase, ...], student_layers: int, teacher_layers: int
) -> tuple[tuple[int, ...], int]:
    """Teacher layers of which the objective needs a bank, and of how many texts."""
    layers = _layers_kept("bank", phases, student_layers, teacher_layers)
    texts = (constants_of(level).get("bank", 0) for level in layer_levels(phases))
    return layers, max(texts, default=0)


def _layers_kept(
    constant: Constant, phases: tuple[Phase, ...], student_layers: int, teacher_layers: int
) -> tuple[int, ...]:
    asking = (level for level in layer_levels(phases) if constant in constants_of(level))
    read = (match(level, student_layers, teacher_layers).theirs for level in asking)
    return tuple(sorted({layer for layers in read for layer in layers}))
