"""Values that change over a phase: weights and temperatures. Standard library and pydantic only."""

from __future__ import annotations

import math
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


def is_nothing(weight: ScheduledWeight) -> bool:
    """Whether a weight is 0 throughout its phase."""
    if isinstance(weight, WeightSchedule):
        return weight.start == weight.end == 0
    return weight == 0


def value_at(value: float | WeightSchedule | TemperatureSchedule, done: float) -> float:
    """A constant itself, a schedule's value after that share of its phase, 0 to 1.

    Cosine goes slowly at both ends, as half a period.
    """
    if isinstance(value, WeightSchedule | TemperatureSchedule):
        way = done if value.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * done))
        return value.start + (value.end - value.start) * way
    return value
