"""How several teachers teach together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.kd.recipe.fields import PositiveFloat, Section

MAIN = "main"  # the name of `fetch_sources.teacher` among several
MEMBER = r"^[a-z0-9][a-z0-9_-]{0,31}$"
_LAYERS = "name of the teacher whose hidden states, attention and relations are matched"


class MeanLogits(Section):
    """The mean of all teachers' logits."""

    logits: Literal["mean"]
    layers: Annotated[str, Field(description=f"{_LAYERS}; `main` is fetch_sources.teacher")]


class WeightedLogits(Section):
    """A weighted mean of the teachers' logits."""

    logits: Literal["weighted"]
    weights: Annotated[
        dict[str, PositiveFloat],
        Field(description="by name of each teacher, `main` too; they are divided by their sum"),
    ]
    layers: Annotated[str, Field(description=_LAYERS)]


class ConfidenceLogits(Section):
    """For each example, the teachers' logits by how sure each of them is of it."""

    logits: Literal["confidence"]
    layers: Annotated[str, Field(description=_LAYERS)]


EnsembleRule = Annotated[
    MeanLogits | WeightedLogits | ConfidenceLogits, Field(discriminator="logits")
]
