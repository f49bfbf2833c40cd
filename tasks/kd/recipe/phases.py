"""The phases of a training: which levels, for how long, at what rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.fields import NotNegative, Positive, PositiveFloat, Section
from tasks.kd.recipe.levels import LayerLevel, Level, level_names, match
from tasks.kd.recipe.schedules import is_nothing
from tasks.kd.recipe.streams import in_order


class Phase(Section):
    """A part of the training with its own levels."""

    name: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="shown in metrics and plots")
    ]
    epochs: Annotated[
        Positive,
        Field(
            description="passes over the training split; a phase without a prediction level reads "
            "its random texts as well (`prepare_data.random_texts`)"
        ),
    ]
    learning_rate: Annotated[PositiveFloat, Field(description="peak; warm-up is of the phase")]
    optimizer: Annotated[
        Literal["anew", "continued"],
        Field(description="whether AdamW forgets its moments as the phase begins"),
    ]
    trained_layers: Annotated[
        Literal["all"] | Annotated[tuple[NotNegative | Literal["head"], ...], Field(min_length=1)],
        Field(
            description="student layers that are trained, 0 the embeddings, and `head`, its pooler "
            "and classifier; what is not named stays as it is (MobileBERT's progressive transfer)"
        ),
    ]
    balance_every: Annotated[
        Positive | None,
        Field(
            description="steps between measurements of each level's gradient norm, after which "
            "levels of equal weight pull equally hard; null: weights are used as they stand"
        ),
    ]
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _levels_are_named_apart(self) -> Phase:
        level_names(self.levels)
        return self

    @model_validator(mode="after")
    def _something_is_taught(self) -> Phase:
        if all(is_nothing(level.weight) for level in self.levels):
            raise ValueError(f"{self.name}: all weights are 0, so that nothing is taught")
        if self.balance_every is not None and len(self.levels) == 1:
            raise ValueError(f"{self.name}: balance_every is for several levels; write null")
        return self

    @property
    def reads_unlabelled(self) -> bool:
        """Whether it reads texts without labels too: where no prediction is taught."""
        return all(level.level != "prediction" for level in self.levels)

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


@dataclass(frozen=True)
class Moment:
    """When in a training: the phase, the 0-based epoch, and what share of the phase is done."""

    phase: int
    epoch: int = 0
    done: float = 0.0


def streams_read(
    phases: Iterable[Phase], student_layers: int, teacher_layers: int
) -> tuple[str, ...]:
    """The teacher's streams that the levels of all phases read, in order.

    Raises ValueError for a layer that is not there.
    """
    needed: set[str] = set()
    for phase in phases:
        for level in phase.levels:
            if level.level == "prediction":
                needed.update(() if level.loss == "labels" else ("logits",))
            else:
                read = match(level, student_layers, teacher_layers).theirs
                needed.update(f"{level.level}.{teacher}" for teacher in read)
    return in_order(needed)


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
            if level.level != "prediction":
                yield level
