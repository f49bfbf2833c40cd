"""What a weight or a temperature is at a moment of its phase."""

from __future__ import annotations

import math

from tasks.kd.recipe.schedules import ScheduledWeight, TemperatureSchedule, WeightSchedule


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
