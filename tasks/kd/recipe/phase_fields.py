"""The fields of a phase of the training: which levels, for how long, at what rate.

Declarations alone: what they come to is worked out in `phases.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.fields import NotNegative, Positive, PositiveFloat, Section
from tasks.kd.recipe.losses import AnyLevel, level_names
from tasks.kd.recipe.values import is_nothing


class PhaseFields(Section):
    """The fields of a phase, and what is wrong with them. What they come to: `Phase`."""

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
    levels: Annotated[tuple[AnyLevel, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _levels_are_named_apart(self) -> PhaseFields:
        level_names(self.levels)
        return self

    @model_validator(mode="after")
    def _something_is_taught(self) -> PhaseFields:
        if all(is_nothing(level.weight) for level in self.levels):
            raise ValueError(f"{self.name}: all weights are 0, so that nothing is taught")
        if self.balance_every is not None and len(self.levels) == 1:
            raise ValueError(f"{self.name}: balance_every is for several levels; write null")
        return self
