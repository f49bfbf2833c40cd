from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tasks.kd.encoders.files.architectures import FAMILIES
from tasks.kd.encoders.shape import count_parameters, depth, layers_of
from tasks.kd.errors import DataError, ShapeError
from tasks.kd.export.onnx import write_onnx
from tasks.kd.export.parity import require_parity
from tasks.kd.recipe.student import (
    InitialCheckpoint,
    InitialRandom,
    InitialTeacherLayers,
    InitialWidthReduction,
    Student,
)
from tasks.kd.students.building import build_student, require_positions
from tasks.kd.students.embeddings import carry_embeddings
from tasks.kd.students.reduction import reduce_width
from tests.makers.small_families import VOCABULARY, ragged, small
from tests.makers.wide_models import pair


def shape(layers: int, initial: Any, width: int = 32) -> Student:
    return Student(
        family=None,
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
    embeddings: Any = student.base_model.embeddings  # type: ignore[union-attr]
    for name, value in teacher.bert.embeddings.state_dict().items():
        assert torch.equal(value, embeddings.state_dict()[name])
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
    initial = InitialRandom(kind="random", embeddings="new")
    first, again, other = (
        build_student(shape(2, initial, width=16), teacher, seed=seed) for seed in (1, 1, 2)
    )
    weights = [model.classifier.weight for model in (first, again, other)]  # type: ignore[union-attr]
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[0], weights[2])  # type: ignore[arg-type]
    assert first.config.id2label == teacher.config.id2label  # type: ignore[union-attr]
    assert count_parameters(first) < count_parameters(teacher)


def test_the_students_shape_is_the_recipe_s(teacher: Any) -> None:
    student: Any = build_student(
        shape(3, InitialRandom(kind="random", embeddings="new"), 16), teacher, seed=1
    )
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (3, 16)
    with pytest.raises(ValueError, match="can't be taken"):
        build_student(
            shape(5, InitialTeacherLayers(kind="teacher_layers", layers="last")), teacher, seed=1
        )


# --- in every family -----------------------------------------------------------------------------


def like(layers: int, initial: Any, **changes: Any) -> Student:
    """A student of the small families' shape, but for the changes."""
    size = {"family": None, "hidden_size": 32, "attention_heads": 4, "intermediate_size": 48}
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
    random = InitialRandom(kind="random", embeddings="new")
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


# --- new, with the teacher's embeddings -----------------------------------------------------------


NEW, CARRIED = (InitialRandom(kind="random", embeddings=kind) for kind in ("new", "pca"))
NARROW = {"hidden_size": 16, "attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize("family", FAMILIES)
def test_carried_embeddings_are_the_teacher_s_and_the_rest_is_new(family: str) -> None:
    teacher = small(family)
    new, carried = (build_student(like(2, kind), teacher, seed=4) for kind in (NEW, CARRIED))
    words = [words_of(model) for model in (teacher, new, carried)]
    assert torch.equal(words[2], words[0])
    assert not torch.equal(words[1], words[0])
    weights = new.state_dict()
    for name, value in carried.state_dict().items():
        assert torch.equal(value, weights[name]) or "embeddings." in name, name


@pytest.mark.parametrize("family", FAMILIES)
def test_carried_embeddings_can_be_narrower(family: str) -> None:
    teacher = small(family)
    first, again = (build_student(like(2, CARRIED, **NARROW), teacher, seed=4) for _ in range(2))
    assert torch.equal(predict(first), predict(again))
    assert torch.isfinite(predict(first)).all()
    table = 24 if family == "electra" else 16  # factorised: as wide as the teacher's
    assert words_of(first).shape == (VOCABULARY, table)
    expected: Any = build_student(like(2, NEW, **NARROW), teacher, seed=4)
    carry_embeddings(expected, teacher)
    assert torch.equal(words_of(first), words_of(expected))


def words_of(model: Any) -> torch.Tensor:
    embeddings = model.base_model.embeddings
    table = getattr(embeddings, "word_embeddings", None) or embeddings.tok_embeddings
    weight: torch.Tensor = table.weight.detach()
    return weight


# --- of another family ----------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_may_be_of_another_family(family: str, teacher: str) -> None:
    theirs = small(teacher, type_vocab_size=2)
    params = like(3, CARRIED, **NARROW | {"family": family})
    student: Any = build_student(params, theirs, seed=1)
    config = student.config
    assert config.model_type == family
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    assert shape == (3, 16, 2)
    assert (config.vocab_size, config.pad_token_id) == (VOCABULARY, 1)
    assert (config.id2label, config.label2id) == (theirs.config.id2label, theirs.config.label2id)
    assert predict(student).shape == (3, 3)
    assert torch.isfinite(predict(student)).all()


@pytest.mark.parametrize("teacher", ["bert", "mpnet"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_another_family_reads_texts_as_long_as_its_teacher_does(
    family: str, teacher: str
) -> None:
    """Of some families the positions begin after the padding id."""
    theirs = small(teacher)
    longest = 40 if teacher == "bert" else 38
    student = build_student(like(1, NEW, family=family), theirs, seed=1)
    require_positions(student, longest)
    ids_BT = torch.full((1, longest), 7)
    with torch.no_grad():
        assert torch.isfinite(student(input_ids=ids_BT).logits).all()
        theirs(input_ids=ids_BT)
    with pytest.raises(
        ShapeError, match=rf"longer than the student.*{longest}, found {longest + 1}"
    ):
        require_positions(student, longest + 1)


def test_what_follows_the_padding_does_not_matter_to_a_student_of_another_family() -> None:
    """Roberta counts what is not padding: with BERT's padding id as well."""
    student = build_student(like(2, NEW, family="roberta"), small("bert", pad_token_id=0), seed=1)
    text, padding = torch.tensor([[5, 9, 7]]), torch.zeros(1, 6, dtype=torch.int64)
    mask_BT = torch.tensor([[1] * 3 + [0] * 6])
    with torch.no_grad():
        alone = student(input_ids=text).logits
        padded = student(input_ids=torch.cat([text, padding], 1), attention_mask=mask_BT).logits
    assert torch.allclose(alone, padded, atol=1e-5)


def test_a_family_that_can_t_have_the_padding_id_is_refused() -> None:
    with pytest.raises(ShapeError, match="mpnet takes positions"):
        build_student(like(2, NEW, family="mpnet"), small("bert", pad_token_id=0), seed=1)


def test_the_teacher_s_own_family_may_be_named() -> None:
    """And its configuration is then the teacher's, not the family's usual one."""
    teacher = small("modernbert")
    student: Any = build_student(like(2, NEW, family="modernbert"), teacher, seed=1)
    assert student.config.sliding_window == teacher.config.sliding_window
    assert torch.equal(predict(student), predict(build_student(like(2, NEW), teacher, seed=1)))


def test_deberta_is_new_with_the_attention_that_it_is_known_for() -> None:
    student: Any = build_student(like(2, NEW, family="deberta-v2"), small("bert"), seed=1)
    assert student.deberta.encoder.relative_attention
    ids_BT = torch.tensor([[5, 9, 7, 11]])
    with torch.no_grad():
        first = student(input_ids=ids_BT).logits
        assert not torch.allclose(first, student(input_ids=ids_BT[:, [0, 2, 1, 3]]).logits)


# --- narrower, from the teacher's layers ----------------------------------------------------------


@pytest.mark.parametrize("method", ["slices", "pca"])
def test_a_narrower_student_is_of_the_recipe_s_shape_and_of_its_layers(method: Any) -> None:
    _, teacher = pair("bert")
    initial = InitialWidthReduction(
        kind="width_reduction", method=method, layers=(2, 4), examples=None
    )
    student = build_student(like(2, initial, **NARROW), teacher, seed=1)
    again = build_student(like(2, initial, **NARROW), teacher, seed=2)
    assert torch.equal(predict(student), predict(again))  # nothing is drawn
    expected: Any = build_student(like(2, NEW, **NARROW), teacher, seed=1)
    reduce_width(expected, teacher, (2, 4), method)
    assert torch.equal(predict(student), predict(expected))
    moment_DD = torch.diag(torch.linspace(1, 9, 32)).double()
    known = build_student(like(2, initial, **NARROW), teacher, seed=1, moment_DD=moment_DD)
    assert not torch.equal(predict(student), predict(known))


def test_a_teacher_that_can_t_be_made_narrower_is_refused() -> None:
    initial = InitialWidthReduction(
        kind="width_reduction", method="pca", layers="first", examples=None
    )
    with pytest.raises(ShapeError, match="found modernbert"):
        build_student(like(2, initial, **NARROW), small("modernbert"), seed=1)


# --- from a checkpoint ----------------------------------------------------------------------------


GIVEN = InitialCheckpoint(kind="checkpoint")


def saved(folder: Path, family: str, **changes: Any) -> Any:
    """A model of half the depth, and its folder."""
    name = "n_layers" if family == "distilbert" else "num_hidden_layers"
    if family == "modernbert":
        changes["layer_types"] = ["full_attention", "sliding_attention"]
    model = small(family, **{name: 2, **changes})
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_with_the_teacher_s_labels_is_taken_as_it_is(
    family: str, tmp_path: Path
) -> None:
    given = saved(tmp_path, family)
    params = like(2, GIVEN, family=family)
    student = build_student(params, small("bert"), seed=1, checkpoint=tmp_path)
    assert torch.equal(predict(student), predict(given))
    assert not student.training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_other_labels_gets_a_new_head_from_the_seed(
    family: str, tmp_path: Path
) -> None:
    given = saved(tmp_path, family, id2label={0: "x", 1: "y", 2: "z"}, label2id={})
    teacher = small(family)
    students: list[Any] = [
        build_student(like(2, GIVEN), teacher, seed=seed, checkpoint=tmp_path) for seed in (1, 1, 2)
    ]
    for student in students:
        assert student.config.id2label == teacher.config.id2label
        encoder = given.base_model.state_dict()
        assert all(
            torch.equal(value, encoder[name])
            for name, value in student.base_model.state_dict().items()
        )
    first, again, other = (predict(student) for student in students)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, predict(given))


def test_an_encoder_without_head_and_pooler_gets_both_from_the_seed(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", "bert")
    encoder = AutoModel.from_pretrained(tmp_path / "whole", add_pooling_layer=False)
    encoder.config.id2label = small("bert").config.id2label
    encoder.save_pretrained(tmp_path / "encoder")
    teacher, folder = small("bert"), tmp_path / "encoder"
    first, again, other = (
        build_student(like(2, GIVEN), teacher, seed=seed, checkpoint=folder) for seed in (3, 3, 4)
    )
    assert torch.equal(predict(first), predict(again))
    assert not torch.equal(predict(first), predict(other))
    weights = whole.bert.encoder.state_dict()
    encoder_of: Any = first.base_model
    for name, value in encoder_of.encoder.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 3}, "Expected layers 3, found layers 2"),
        ({"hidden_size": 16}, "Expected hidden_size 16, found hidden_size 32"),
        ({"intermediate_size": 40}, "intermediate_size 40, found intermediate_size 48"),
        ({"attention_heads": 2, "layers": 1}, "layers 1, attention_heads 2, found layers 2, att"),
        ({"family": "distilbert"}, "Expected family distilbert, found family bert"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(changes: Any, said: str, tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    params = like(**{"layers": 2, "initial": GIVEN} | changes)
    with pytest.raises(ShapeError, match=f"is not as the recipe.*{said}"):
        build_student(params, small("bert"), seed=1, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 61}, "Expected vocabulary 60, found vocabulary 61"),
        ({"pad_token_id": 0}, "Expected padding id 1, found padding id 0"),
    ],
)
def test_a_checkpoint_of_another_vocabulary_is_refused(
    changes: Any, said: str, tmp_path: Path
) -> None:
    saved(tmp_path, "bert", **changes)
    with pytest.raises(ShapeError, match=said):
        build_student(like(2, GIVEN), small("bert"), seed=1, checkpoint=tmp_path)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="1 weights are missing"):
        build_student(like(2, GIVEN), small("bert"), seed=1, checkpoint=tmp_path)


# --- export ---------------------------------------------------------------------------------------


# BERT's own is exported in test_export.py; these are the families that differ from it most.
@pytest.mark.parametrize("family", ["distilbert", "mpnet", "modernbert", "deberta-v2"])
def test_a_student_of_another_family_can_be_exported(family: str, tmp_path: Path) -> None:
    student = build_student(like(2, from_layers(1, 3)), small(family), seed=1)
    write_onnx(student, tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    texts = [random.integers(5, 60, n).astype(np.int32) for n in (1, 4, 30, 12)]
    difference = require_parity(student, tmp_path / "model.onnx", texts, pad_token_id=1, limit=1e-4)
    assert difference < 1e-4
