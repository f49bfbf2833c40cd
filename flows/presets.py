"""Presets: a method's student, levels and training, which `stillhouse new` puts into a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.new_shapes import fit_pairs, named_pairs, widen
from tasks.kd.errors import ParamsError

if TYPE_CHECKING:
    from tasks.kd.recipe.presets import PresetFile

PRESETS = Path("params") / "presets"


@dataclass(frozen=True)
class Preset:
    """A preset: its name, its file's fields, and the text of its training section."""

    name: str
    path: Path
    fields: PresetFile
    text: str  # the leading comment and the section train_student

    @property
    def prepare_data(self) -> Mapping[str, int]:
        """The fields of prepare_data that the preset sets; no random texts if it names none."""
        beside = self.fields.prepare_data
        return {"random_texts": 0 if beside is None else beside.random_texts}


def list_presets(root: Path) -> list[str]:
    """Names of the presets: one per paper, labels alone, and our own."""
    return sorted(path.stem for path in (root / PRESETS).glob("*.yaml"))


def read_preset(root: Path, name: str) -> Preset:
    """The named preset. Raises ParamsError if there is none, or for a fault in its file."""
    from pydantic import ValidationError

    from tasks.kd.recipe.document import leading_comment, parse_yaml, read_text, section_text
    from tasks.kd.recipe.faults import field_faults, refuse, unfit_faults
    from tasks.kd.recipe.presets import PresetFile

    if name not in list_presets(root):
        raise ParamsError(
            f"there is no preset {name!r}",
            where=root / PRESETS,
            expected=", ".join(list_presets(root)),
        )
    path = root / PRESETS / f"{name}.yaml"
    text = read_text(path)
    data = parse_yaml(text, path)
    if unfit := list(unfit_faults(data)):
        raise refuse(path, data, unfit, wish="used")
    try:
        fields = PresetFile.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise refuse(path, data, field_faults(error, data), wish="used") from None
    taught = leading_comment(text, data) + section_text(text, data, "train_student")
    return Preset(name, path, fields, taught)


def fit_preset(data: Any, preset: Preset) -> list[str]:
    """Fit a preset, already taken into a recipe's document, to the recipe's teacher.

    The student keeps its depth. Teacher layers that levels name, the width of a student as wide as
    the teacher, and weights of sums over the teacher's channels are moved from the preset's teacher
    to this one. Returns a note of it if the teachers differ. Raises ParamsError for a preset whose
    student is deeper than the teacher.
    """
    teacher, taught = data["train_teacher"], data["train_student"]
    old, student = preset.fields.written_for, taught["student"]
    layers, width = int(teacher["layers"]), int(teacher["hidden_size"])
    _require_depth(preset, taught, layers)
    moved = []
    if student["hidden_size"] == old.hidden_size:
        widen(student, teacher)
        moved += ["the student's width"] if width != old.hidden_size else []
    if fit_pairs(taught["phases"], student["layers"], old.layers, layers):
        moved.append("the teacher's layers")
    moved += _fit_weights(preset, taught["phases"], width)
    if (layers, width) == (old.layers, old.hidden_size):
        return []
    told = ", ".join(moved) or "nothing, as nothing depends on them"
    written = f"a teacher of {old.layers} layers and width {old.hidden_size}"
    here = f"this one has {layers} and {width}"
    return [f"preset {preset.name} is written for {written}, {here}: moved {told}"]


def _require_depth(preset: Preset, taught: Any, layers: int) -> None:
    old, depth = preset.fields.written_for.layers, int(taught["student"]["layers"])
    if depth > layers:
        raise ParamsError(
            f"preset {preset.name} is not for a teacher of {layers} layers",
            where=preset.path,
            expected=f"a teacher of at least {depth}, as many as its student has",
            found=f"{layers}, and written_for.layers {old}",
        )
    deepest = max((pair[1] for pair in named_pairs(taught["phases"])), default=0)
    if deepest > old:
        raise ParamsError(
            f"preset {preset.name} contradicts itself",
            where=preset.path,
            expected=f"teacher layers up to written_for.layers, {old}",
            found=f"a layer_map with layer {deepest}",
        )


def _fit_weights(preset: Preset, phases: Any, width: int) -> list[str]:
    """Scale weights that turn a mean over the teacher's channels into a sum; return their names."""
    ratio = width / preset.fields.written_for.hidden_size
    moved = []
    for level in (level for phase in phases for level in phase["levels"]):
        name = f"{level['level']}.{level['loss']}"
        if name in preset.fields.per_channel and ratio != 1:
            level["weight"] = _scale(level["weight"], ratio)
            moved.append(f"the weight of {name}")
    return moved


def _scale(weight: Any, ratio: float) -> Any:
    """A weight, or both ends of a schedule, multiplied by the ratio."""
    if not isinstance(weight, dict):
        return weight * ratio
    return {**weight, "start": weight["start"] * ratio, "end": weight["end"] * ratio}
