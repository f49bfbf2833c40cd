"""The student's shape and its first weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from tasks.kd.errors import ShapeError
from tasks.kd.families import depth, heads, kernel, layers_prefix, shaped
from tasks.kd.layers import chosen
from tasks.kd.params import InitialTeacherLayers, Student

__all__ = ["build_student", "count_parameters", "depth"]


def build_student(params: Student, teacher: torch.nn.Module, *, seed: int) -> torch.nn.Module:
    """A student of the teacher's family, vocabulary and labels, in the recipe's shape.

    With `initial.kind: teacher_layers`, embeddings, pooler and classifier are the teacher's and
    layer i is a copy of the i-th chosen teacher layer (DistilBERT, arXiv:1910.01108, section 3;
    its code drops the pooler, we keep it). A ModernBERT layer that is copied stays global or local,
    as it was. Everything else is new, from `seed`. Raises ShapeError if the teacher's weights do
    not fit the student's shape.
    """
    like: Any = teacher.config
    config = shaped(
        like,
        layers=params.layers,
        hidden_size=params.hidden_size,
        attention_heads=params.attention_heads,
        intermediate_size=params.intermediate_size,
    )
    copied: list[int] = []
    if isinstance(params.initial, InitialTeacherLayers):
        copied = chosen(params.initial.layers, params.layers, depth(teacher))
        if getattr(like, "layer_types", None):
            config.layer_types = [like.layer_types[layer - 1] for layer in copied]
    torch.manual_seed(seed)
    student: torch.nn.Module = AutoModelForSequenceClassification.from_config(
        config, attn_implementation=kernel(config.model_type)
    )
    if copied:
        _copy_layers(student, teacher, copied)
    return student.eval()


def count_parameters(model: torch.nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def _copy_layers(student: torch.nn.Module, teacher: torch.nn.Module, layers: list[int]) -> None:
    """Load the chosen layers, and all that is not of a layer, from the teacher."""
    prefix, theirs = layers_prefix(teacher), teacher.state_dict()
    weights = {name: value for name, value in theirs.items() if not name.startswith(prefix)}
    for own, layer in enumerate(layers):
        source = f"{prefix}{layer - 1}."
        for name in (name for name in theirs if name.startswith(source)):
            weights[f"{prefix}{own}.{name.removeprefix(source)}"] = theirs[name]
    expected = student.state_dict()
    # ModernBERT's first layer has no norm before its attention: it is dropped from a layer that
    # comes to stand first, and new in a first one that comes to stand elsewhere.
    odd = {name for name in expected.keys() ^ weights.keys() if ".attn_norm." in name}
    assert expected.keys() ^ weights.keys() == odd, odd
    weights = {name: value for name, value in weights.items() if name not in odd}
    _require_fit(student, teacher, weights)
    student.load_state_dict(weights, strict=False)


def _require_fit(
    student: torch.nn.Module, teacher: torch.nn.Module, weights: dict[str, torch.Tensor]
) -> None:
    own = student.state_dict()
    wrong = [name for name, value in weights.items() if value.shape != own[name].shape]
    if wrong:
        raise ShapeError(
            "a student that starts from its teacher's layers must have their shape",
            where=wrong[0],
            expected=list(weights[wrong[0]].shape),
            found=list(own[wrong[0]].shape),
            advice="Give it the teacher's widths, or initial weights of kind random.",
        )
    if heads(student) != heads(teacher):
        raise ShapeError(
            "a student that starts from its teacher's layers must have their attention heads",
            expected=heads(teacher),
            found=heads(student),
        )
