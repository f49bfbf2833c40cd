from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.kd.encoders import embeddings_of, layers_of
from tasks.kd.params import InitialRandom, InitialTeacherLayers, Student
from tasks.kd.students import build_student, count_parameters, depth


def shape(layers: int, initial: Any, width: int = 32) -> Student:
    return Student(
        layers=layers,
        hidden_size=width,
        attention_heads=4,
        intermediate_size=64,
        initial=initial,
    )


def test_layers_embeddings_and_head_are_the_teacher_s(teacher: Any) -> None:
    initial = InitialTeacherLayers(kind="teacher_layers", layers="uniform")
    student = build_student(shape(2, initial), teacher, seed=1)
    assert depth(student) == 2
    for own, theirs in zip(layers_of(student), (2, 4), strict=True):
        copied = layers_of(teacher)[theirs - 1].state_dict()
        assert all(torch.equal(value, copied[name]) for name, value in own.state_dict().items())
    for name, value in embeddings_of(teacher).state_dict().items():
        assert torch.equal(value, embeddings_of(student).state_dict()[name])
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)  # type: ignore[union-attr,arg-type]
    assert torch.equal(
        student.bert.pooler.dense.weight,  # type: ignore[union-attr,arg-type]
        teacher.bert.pooler.dense.weight,
    )


def test_the_copy_is_not_the_teacher_itself(teacher: Any) -> None:
    initial = InitialTeacherLayers(kind="teacher_layers", layers="first")
    student = build_student(shape(1, initial), teacher, seed=1)
    before = teacher.classifier.weight.detach().clone()
    with torch.no_grad():
        student.classifier.weight.zero_()  # type: ignore[union-attr,operator]
    assert torch.equal(teacher.classifier.weight, before)


def test_a_full_copy_predicts_as_the_teacher_does(teacher: Any) -> None:
    initial = InitialTeacherLayers(kind="teacher_layers", layers=(1, 2, 3, 4))
    student = build_student(shape(4, initial), teacher, seed=1)
    ids = torch.tensor([[2, 7, 30, 31]])
    with torch.no_grad():
        assert torch.equal(student(input_ids=ids).logits, teacher(input_ids=ids).logits)


def test_random_weights_are_those_of_the_seed(teacher: Any) -> None:
    initial = InitialRandom(kind="random")
    first, again, other = (
        build_student(shape(2, initial, width=16), teacher, seed=seed) for seed in (1, 1, 2)
    )
    weights = [model.classifier.weight for model in (first, again, other)]  # type: ignore[union-attr]
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[0], weights[2])  # type: ignore[arg-type]
    assert first.config.id2label == teacher.config.id2label  # type: ignore[union-attr]
    assert count_parameters(first) < count_parameters(teacher)


def test_the_students_shape_is_the_recipe_s(teacher: Any) -> None:
    student: Any = build_student(shape(3, InitialRandom(kind="random"), 16), teacher, seed=1)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (3, 16)
    with pytest.raises(ValueError, match="can't be taken"):
        build_student(
            shape(5, InitialTeacherLayers(kind="teacher_layers", layers="last")), teacher, seed=1
        )
