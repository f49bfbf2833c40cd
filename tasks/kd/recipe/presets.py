"""The file of a preset: what it teaches, and the teacher that it is written for."""

from __future__ import annotations

from typing import Any

from tasks.kd.recipe.fields import NotNegative, Positive, Section


class WrittenFor(Section):
    """The teacher that a preset is written for; `stillhouse new` makes it fit another."""

    layers: Positive
    hidden_size: Positive


class PresetData(Section):
    """What a preset says of the data."""

    random_texts: NotNegative


class PresetFile(Section):
    """A file of params/presets. Its train_student is checked with the recipe that it comes into."""

    written_for: WrittenFor
    train_student: dict[str, Any]
    prepare_data: PresetData | None = None
    per_channel: tuple[str, ...] = ()  # levels whose weight is a sum over the teacher's channels
