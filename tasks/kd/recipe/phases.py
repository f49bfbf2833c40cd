"""The phases of a training: what they pass over, read of the teacher, and reach in the student."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from tasks.kd.recipe.levels import LayerLevel, Level
from tasks.kd.recipe.losses import level_names, loss_of
from tasks.kd.recipe.matching import match
from tasks.kd.recipe.phase_fields import PhaseFields
from tasks.kd.recipe.streams import in_order


class Phase(PhaseFields):
    """A part of the training with its own levels."""

    @property
    def reads_unlabelled(self) -> bool:
        """Whether it reads texts without labels too: where no prediction is taught."""
        return all(isinstance(level, LayerLevel) for level in self.levels)

    def trains(self, layer: int | Literal["head"]) -> bool:
        """Whether a student layer, 0 the embeddings, or the head is trained."""
        return self.trained_layers == "all" or layer in self.trained_layers

    def passes(self, random_texts: int) -> int:
        """Its epochs in passes over labelled texts, each of which has so many random ones."""
        return self.epochs * (1 + random_texts * self.reads_unlabelled)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Its levels' names in metrics, in order."""
        return level_names(self.levels)


def streams_read(
    phases: Iterable[Phase], student_layers: int, teacher_layers: int
) -> tuple[str, ...]:
    """The teacher's streams that the levels of all phases read, in order.

    Raises ValueError for a layer that is not there.
    """
    depths = (student_layers, teacher_layers)
    return in_order({s for phase in phases for x in phase.levels for s in _streams_of(x, *depths)})


def _streams_of(level: Level, student_layers: int, teacher_layers: int) -> Iterator[str]:
    kind = loss_of(level).reads
    if isinstance(level, LayerLevel):
        for layer in match(level, student_layers, teacher_layers).theirs:
            yield f"{kind}.{layer}"
    elif kind:
        yield kind


def layers_reached(
    phase: Phase, student_layers: int, teacher_layers: int
) -> tuple[int | Literal["head"], ...]:
    """The student's layers that the phase's levels have gradients for: all up to the last compared.

    A prediction level reaches all, and the head. Raises ValueError for a layer that is not there.
    """
    if not phase.reads_unlabelled:
        return (*range(student_layers + 1), "head")
    compared = (match(x, student_layers, teacher_layers).own for x in layer_levels([phase]))
    return tuple(range(max(map(max, compared)) + 1))


def layer_levels(phases: Iterable[Phase]) -> Iterator[LayerLevel]:
    """All levels that compare layers."""
    for phase in phases:
        for level in phase.levels:
            if isinstance(level, LayerLevel):
                yield level


def levels_inside_layers(phases: Iterable[Phase]) -> list[str]:
    """The levels that compare what a layer computes inside, not the states between layers."""
    return sorted({level.level for level in layer_levels(phases) if loss_of(level).inside_layers})
