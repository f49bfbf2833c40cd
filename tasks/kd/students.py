"""The student's shape and its first weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.kd.encoders import embeddings_of, layers_of
from tasks.kd.layers import chosen
from tasks.kd.params import InitialTeacherLayers, Student


def build_student(params: Student, teacher: torch.nn.Module, *, seed: int) -> torch.nn.Module:
    """A student of the teacher's family, vocabulary and labels, in the recipe's shape.

    With `initial.kind: teacher_layers`, embeddings, pooler and classifier are the teacher's and
    layer i is a copy of the i-th chosen teacher layer (DistilBERT, arXiv:1910.01108, section 3;
    its code drops the pooler, we keep it). Everything else is new, from `seed`.
    """
    shape: dict[str, Any] = teacher.config.to_dict()  # type: ignore[operator, union-attr]
    shape.update(
        num_hidden_layers=params.layers,
        hidden_size=params.hidden_size,
        num_attention_heads=params.attention_heads,
        intermediate_size=params.intermediate_size,
    )
    config = AutoConfig.for_model(**shape)
    torch.manual_seed(seed)
    student: torch.nn.Module = AutoModelForSequenceClassification.from_config(config)
    if isinstance(params.initial, InitialTeacherLayers):
        _copy_layers(student, teacher, chosen(params.initial.layers, params.layers, depth(teacher)))
    return student.eval()


def depth(model: torch.nn.Module) -> int:
    """Number of layers, embeddings not counted."""
    return len(layers_of(model))


def count_parameters(model: torch.nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def _copy_layers(student: torch.nn.Module, teacher: torch.nn.Module, layers: list[int]) -> None:
    embeddings_of(student).load_state_dict(embeddings_of(teacher).state_dict())
    for own, layer in zip(layers_of(student), layers, strict=True):
        own.load_state_dict(layers_of(teacher)[layer - 1].state_dict())
    kept = {
        name: value
        for name, value in teacher.state_dict().items()
        if ".embeddings." not in name and ".encoder.layer." not in name
    }
    student.load_state_dict(kept, strict=False)
