"""The fields of weights and temperatures that change, over a phase or from example to example.

Declarations alone: what their values are at a moment is worked out in `values.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.kd.recipe.fields import PositiveFloat, Section, Weight


class WeightSchedule(Section):
    """A weight that goes from one value to another over the phase."""

    schedule: Annotated[Literal["linear", "cosine"], Field(description="how it goes")]
    start: Annotated[Weight, Field(description="at the phase's first step")]
    end: Annotated[Weight, Field(description="as the phase ends, a step after its last")]


class TemperatureSchedule(Section):
    """A temperature that goes from one value to another over the phase."""

    schedule: Annotated[Literal["linear", "cosine"], Field(description="how it goes")]
    start: Annotated[PositiveFloat, Field(description="at the phase's first step")]
    end: Annotated[PositiveFloat, Field(description="as the phase ends, a step after its last")]


ScheduledWeight = Weight | WeightSchedule
ScheduledTemperature = PositiveFloat | TemperatureSchedule


class FocalTemperature(Section):
    """A temperature per example: lower where the student's logits point elsewhere (FLSW)."""

    rule: Literal["flsw"]
    base: Annotated[PositiveFloat, Field(description="T of an example at the centre")]
    slope: Annotated[Weight, Field(description="how far T moves with w, (1 - cosine) to the power")]
    centre: Annotated[Weight, Field(description="the w at which T is the base")]
    power: Annotated[PositiveFloat, Field(description="of 1 - cosine of both logits")]


class ConfidenceTemperature(Section):
    """A temperature per example: lower where the student is less confident (CWSM)."""

    rule: Literal["cwsm"]
    base: Annotated[PositiveFloat, Field(description="T of an example at the centre")]
    slope: Annotated[Weight, Field(description="how far T moves with w, 1 / highest probability")]
    centre: Annotated[Weight, Field(description="the w at which T is the base; w is 1 or more")]


Temperature = (
    ScheduledTemperature
    | Annotated[FocalTemperature | ConfidenceTemperature, Field(discriminator="rule")]
)
