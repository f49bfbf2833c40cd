"""Shapes that `stillhouse new` derives from the teacher: the student's, and layers to match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.kd.errors import DataError


def read_shape(data: Any, root: Path) -> dict[str, int]:
    """A local teacher's shape as fields of train_teacher; empty if its config.json is not here.

    Raises DataError for a config.json without sizes.
    """
    from tasks.kd.encoders.files.architectures import shape_of
    from tasks.kd.encoders.files.folder import read_config

    teacher = data["fetch_sources"]["teacher"]
    config = root / str(teacher.get("folder", "")) / "config.json"
    if teacher["kind"] != "path" or not config.is_file():
        return {}
    try:
        return vars(shape_of(read_config(config.parent)))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            "the teacher's config.json lacks its sizes", where=config, found=error
        ) from error


def fit_teacher(data: Any, shape: Mapping[str, int]) -> None:
    """Write a teacher's shape into a recipe; the student gets its width and half its depth.

    A student whose phases name layers keeps its depth, and its matched layers become those of the
    new teacher. An empty shape changes nothing.
    """
    if not shape:
        return
    teacher, student = data["train_teacher"], data["train_student"]["student"]
    layers, width = teacher["layers"], teacher["hidden_size"]
    teacher.update(shape)
    if student["hidden_size"] == width:  # else its width is its own
        widen(student, teacher)
    phases = data["train_student"]["phases"]
    if any(named_pairs(phases)) or any(phase["trained_layers"] != "all" for phase in phases):
        fit_pairs(phases, student["layers"], layers, teacher["layers"])
    else:
        student["layers"] = max(1, teacher["layers"] // 2)


def widen(student: Any, teacher: Any) -> None:
    """Give the student the teacher's widths and heads."""
    for field in ("hidden_size", "attention_heads", "intermediate_size"):
        student[field] = teacher[field]


def named_pairs(phases: Any) -> Iterator[Any]:
    """The pairs of layers that levels name, except embeddings with embeddings."""
    for level in (level for phase in phases for level in phase["levels"]):
        layer_map = level.get("layer_map", "")
        if not isinstance(layer_map, str):
            yield from (pair for pair in layer_map if list(pair) != [0, 0])


def fit_pairs(phases: Any, depth: int, layers: int, wanted: int) -> bool:
    """Move named teacher layers from a teacher of `layers` layers to one of `wanted` layers.

    Pairs of the uniform map stay pairs of the uniform map. Returns whether any pair was moved.
    """
    from tasks.kd.recipe.maps import uniform

    if layers == wanted or depth > min(layers, wanted):
        return False
    uniformly = dict(zip(uniform(depth, layers), uniform(depth, wanted), strict=True))
    pairs = list(named_pairs(phases))
    for pair in pairs:
        own, theirs = pair
        pair[1] = uniformly.get((own, theirs), (own, round(theirs * wanted / layers)))[1]
    return bool(pairs)
