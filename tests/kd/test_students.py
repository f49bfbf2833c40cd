from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.kd.encoders import embeddings_of, layers_of
from tasks.kd.errors import ShapeError
from tasks.kd.export import require_parity, write_onnx
from tasks.kd.families import FAMILIES
from tasks.kd.params import InitialRandom, InitialTeacherLayers, Student
from tasks.kd.students import build_student, count_parameters, depth
from tests.kd.small_families import ragged, small


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


# --- in every family -----------------------------------------------------------------------------


def like(layers: int, initial: Any, **changes: Any) -> Student:
    """A student of the small families' shape, but for the changes."""
    size = {"hidden_size": 32, "attention_heads": 4, "intermediate_size": 48}
    return Student(layers=layers, initial=initial, **(size | changes))


def from_layers(*layers: int) -> InitialTeacherLayers:
    return InitialTeacherLayers(kind="teacher_layers", layers=layers)


def predict(model: Any) -> torch.Tensor:
    ids_BT, mask_BT = ragged()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_copy_predicts_as_its_teacher_in_every_family(family: str) -> None:
    teacher = small(family)
    student = build_student(like(4, from_layers(1, 2, 3, 4)), teacher, seed=1)
    assert torch.equal(predict(student), predict(teacher))
    assert not student.training


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chosen_layers_and_all_besides_are_copied_in_every_family(family: str) -> None:
    teacher = small(family)
    student = build_student(like(2, from_layers(1, 3)), teacher, seed=1)
    assert depth(student) == 2
    for own, layer in zip(layers_of(student), (1, 3), strict=True):
        theirs = layers_of(teacher)[layer - 1].state_dict()
        assert own.state_dict().keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in own.state_dict().items())
    layers = {id(weight) for layer in layers_of(student) for weight in layer.parameters()}
    besides = [name for name, w in student.named_parameters() if id(w) not in layers]
    assert any("embeddings" in name for name in besides)
    assert any("classifier" in name for name in besides)
    theirs = teacher.state_dict()
    own_weights = student.state_dict()
    assert all(torch.equal(own_weights[name], theirs[name]) for name in besides)
    assert torch.isfinite(predict(student)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_student_has_the_recipe_s_shape_in_every_family(family: str) -> None:
    random = InitialRandom(kind="random")
    narrow = {"hidden_size": 24, "attention_heads": 3, "intermediate_size": 40}
    teacher = small(family)
    student, again = (build_student(like(3, random, **narrow), teacher, seed=3) for _ in range(2))
    config: Any = student.config
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    assert shape == (3, 24, 3)
    assert torch.equal(predict(student), predict(again))
    assert predict(student).shape == (3, 3)


def test_a_copied_layer_stays_global_or_local() -> None:
    teacher = small("modernbert")
    student: Any = build_student(like(3, from_layers(1, 3, 4)), teacher, seed=1)
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    assert student.config.layer_types == kinds
    assert [layer.attention_type for layer in layers_of(student)] == kinds


def test_a_copied_layer_that_comes_to_stand_first_loses_its_norm() -> None:
    teacher = small("modernbert")
    student: Any = build_student(like(2, from_layers(3, 1)), teacher, seed=1)
    first, second = layers_of(student)
    third = layers_of(teacher)[2].state_dict()
    assert third.keys() - first.state_dict().keys() == {"attn_norm.weight"}
    assert all(torch.equal(value, third[name]) for name, value in first.state_dict().items())
    assert torch.equal(second.state_dict()["attn_norm.weight"], torch.ones(32))
    assert torch.isfinite(predict(student)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 24}, r"must have their shape.*Expected \[60, 32\], found \[60, 24\]"),
        ({"intermediate_size": 40}, r"must have their shape: .*intermediate"),
        ({"attention_heads": 2}, r"must have their attention heads\. Expected 4, found 2"),
    ],
)
def test_layers_of_another_shape_can_t_be_copied(changes: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        build_student(like(2, from_layers(1, 2), **changes), small("bert"), seed=1)


# BERT's own is exported in test_export.py; these are the families that differ from it most.
@pytest.mark.parametrize("family", ["distilbert", "mpnet", "modernbert", "deberta-v2"])
def test_a_student_of_another_family_can_be_exported(family: str, tmp_path: Path) -> None:
    student = build_student(like(2, from_layers(1, 3)), small(family), seed=1)
    write_onnx(student, tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    texts = [random.integers(5, 60, n).astype(np.int32) for n in (1, 4, 30, 12)]
    difference = require_parity(student, tmp_path / "model.onnx", texts, pad_token_id=1, limit=1e-4)
    assert difference < 1e-4
