"""Learned maps from the width of the student's states to that of the teacher's."""

from __future__ import annotations

import torch
from torch.nn.utils import parametrizations

from tasks.kd.recipe.levels import LayerLevel
from tasks.kd.recipe.matching import Matching


def add_projections(
    projections: torch.nn.ModuleDict,
    level: LayerLevel,
    matching: Matching,
    *,
    student_width: int,
    teacher_width: int,
) -> None:
    """Add those that a level goes through and that no level before it has made."""
    kind = projection_of(level)
    if kind == "none":
        return
    for pair in matching.fixed or [(own, 0) for own in matching.own]:
        name = projection_name(kind, matching, *pair)
        if name not in projections:
            projections[name] = new_projection(kind, student_width, teacher_width)


def projection_of(level: LayerLevel) -> str:
    """The kind of a level's projections; `none` also where its loss has no use for any."""
    kind: str = getattr(level, "projection", "none")
    return kind


def projection_name(kind: str, matching: Matching, own: int, theirs: int) -> str:
    """Which projection a pair of layers goes through; levels of one kind have theirs in common."""
    if kind == "shared":
        return "shared"
    pair = f"{own}_{theirs}" if matching.layer_map is None else f"{own}"
    return pair if kind == "linear" else f"orthogonal_{pair}"


def new_projection(kind: str, student_width: int, teacher_width: int) -> torch.nn.Module:
    """Linear with bias; starts as the identity where the widths are equal (CoFi does so).

    Orthogonal: no bias, and the lengths and angles of states are kept (of the teacher's, where it
    is the narrower).
    """
    if kind == "orthogonal":
        layer = torch.nn.Linear(student_width, teacher_width, bias=False)
        torch.nn.init.eye_(layer.weight)
        return parametrizations.orthogonal(layer)
    layer = torch.nn.Linear(student_width, teacher_width)
    if student_width == teacher_width:
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return layer
