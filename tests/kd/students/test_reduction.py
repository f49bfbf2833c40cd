from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.kd.data.examples.padding import pad
from tasks.kd.encoders.capture import capture
from tasks.kd.encoders.shape import depth
from tasks.kd.errors import ShapeError
from tasks.kd.students.bases import Basis, principal
from tasks.kd.students.layouts import REDUCIBLE
from tasks.kd.students.reduction import Method, Reduction, put_reduced, reduce_width
from tasks.kd.students.weighing import hidden_moment, weights_moment
from tests.makers.small_families import WIDTH, small, texts
from tests.makers.wide_models import NARROW, even, of_shape, pair, turned

METHODS: tuple[Method, ...] = ("slices", "pca")
ALL = (1, 2, 3, 4)
ROTATION = Basis(turned(WIDTH, WIDTH), 1.0)


def answers(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and the hidden states of the real tokens by layer."""
    ids_BT, mask_BT = pad(texts(24), 1)
    layers = tuple(range(depth(model) + 1))
    with torch.no_grad(), capture(model, layers, ()) as captured:
        logits = model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
    return logits, [captured.hidden[layer][mask_BT] for layer in layers]


def alike(one: torch.Tensor, other: torch.Tensor) -> float:
    """Linear CKA (arXiv:1905.00414) of two sets of states: 1 if one is a rotation of the other."""
    one, other = one - one.mean(0), other - other.mean(0)
    return float((other.T @ one).norm() ** 2 / ((one.T @ one).norm() * (other.T @ other).norm()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", REDUCIBLE)
def test_at_full_width_the_student_is_the_teacher_bit_by_bit(family: str, method: Method) -> None:
    teacher, student = small(family), small(family)
    with torch.no_grad():
        for weight in student.parameters():
            weight.normal_()
    reduce_width(student, teacher, ALL, method)
    assert torch.equal(answers(student)[0], answers(teacher)[0])
    own = dict(student.named_parameters())
    for name, weight in teacher.named_parameters():
        assert torch.equal(own[name], weight), name


@pytest.mark.parametrize("family", REDUCIBLE)
def test_a_rotation_is_exact_where_gains_are_equal(family: str) -> None:
    """What components rest on: every matrix is turned, and on its right side."""
    teacher, student = even(small(family)), small(family)
    put_reduced(student, teacher, ALL, Reduction(ROTATION, weights_moment(teacher), "pca"))
    logits, states = answers(teacher)
    own_logits, own_states = answers(student)
    assert torch.allclose(own_logits, logits, atol=1e-4)
    for own, theirs in zip(own_states, states, strict=True):
        assert torch.allclose(own.double(), ROTATION.narrow(theirs), atol=1e-4)
        assert (own - theirs).abs().max() > 0.1  # and something was turned


def test_a_rotation_is_not_exact_where_gains_differ() -> None:
    """Post-norm: gains act on the residual stream, and a diagonal matrix that is turned is none."""
    teacher, student = small("bert"), small("bert")
    put_reduced(student, teacher, ALL, Reduction(ROTATION, weights_moment(teacher), "pca"))
    expected = ROTATION.narrow(answers(teacher)[1][-1])
    error = (answers(student)[1][-1] - expected).norm() / expected.norm()
    assert 0.02 < error < 0.6


def test_what_is_lost_is_put_into_the_bias_at_its_mean() -> None:
    generator = torch.Generator().manual_seed(2)
    moment = torch.diag(torch.linspace(0.1, 3, WIDTH)).double()
    basis = principal(moment, NARROW)
    reader, mean = torch.nn.Linear(WIDTH, 5), torch.randn(WIDTH, generator=generator)
    kept = torch.randn(20, NARROW, generator=generator, dtype=torch.float64)
    states = kept @ basis.columns.T + basis.lost(mean)
    with torch.no_grad():
        weight, bias = Reduction(basis, moment, "pca").reading(reader, mean)
        expected = states @ reader.weight.double().T + reader.bias.double()
    assert torch.allclose(basis.narrow(states) @ weight.T + bias, expected, atol=1e-10)
    assert (bias - reader.bias).abs().max() > 0.1


def test_every_reader_takes_the_bias_of_the_norm_before_it_for_the_mean() -> None:
    """States that are nothing but that bias: what reads them makes of them what it made."""
    teacher, student = small("bert"), small("bert", hidden_size=NARROW)
    moment = weights_moment(teacher)
    basis = principal(moment, NARROW)
    put_reduced(student, teacher, ALL, Reduction(basis, moment, "pca"))
    wide_layers, narrow_layers = teacher.bert.encoder.layer, student.bert.encoder.layer
    with torch.no_grad():
        for wide, own in zip(wide_layers, narrow_layers, strict=True):
            expected, found = (
                layer.intermediate.dense(layer.attention.output.LayerNorm.bias)
                for layer in (wide, own)
            )
            assert torch.allclose(found, expected, atol=1e-4)
        pooled, own_pooled = (
            model.bert.pooler.dense(model.bert.encoder.layer[-1].output.LayerNorm.bias)
            for model in (teacher, student)
        )
    assert all((pooled - value).abs().min() < 1e-4 for value in own_pooled)


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_the_first_layer_takes_the_mean_of_the_embeddings_for_it(family: str) -> None:
    """ELECTRA's go through a projection after their norm."""
    teacher, student = small(family), of_shape(family, NARROW)
    moment = weights_moment(teacher)
    basis = principal(moment, NARROW)
    put_reduced(student, teacher, ALL, Reduction(basis, moment, "slices"))
    mean = teacher.base_model.embeddings.LayerNorm.bias
    with torch.no_grad():
        if family == "electra":
            mean = teacher.electra.embeddings_project(mean)
        values, own = (
            model.base_model.encoder.layer[0].attention.self.key for model in (teacher, student)
        )
        expected = values(mean)
        found = own(basis.narrow(mean).float()) * 2**0.25  # half as wide: a factor of the scores
    assert all((expected - value).abs().min() < 1e-4 for value in found)


@pytest.mark.parametrize("family", REDUCIBLE)
def test_a_narrow_model_in_a_wide_one_is_found_whole(family: str) -> None:
    narrow, wide = pair(family)
    student = of_shape(family, NARROW, heads=2, neurons=24)
    with torch.no_grad():
        for weight in student.parameters():
            weight.normal_()
    basis = reduce_width(student, wide, ALL, "pca", hidden_moment(wide, texts(24), 24))
    logits, states = answers(wide)
    assert torch.allclose(logits, answers(narrow)[0], atol=1e-4)  # the pair is what it says
    own_logits, own_states = answers(student)
    assert torch.allclose(own_logits, logits, atol=1e-3)
    for own, theirs in zip(own_states, states, strict=True):
        assert torch.allclose(own.double(), basis.narrow(theirs), atol=1e-3)


@pytest.mark.parametrize("moment", ["weights", "states"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", REDUCIBLE)
def test_a_reduced_student_is_nearer_to_its_teacher_than_a_new_one(
    family: str, method: Method, moment: str
) -> None:
    _, teacher = pair(family, noise=0.1, channels=method == "slices")
    known = hidden_moment(teacher, texts(24), 24) if moment == "states" else None
    logits, states = answers(teacher)
    new, reduced = (of_shape(family, NARROW, heads=2, neurons=24) for _ in range(2))
    torch.manual_seed(9)
    with torch.no_grad():
        for weight in new.parameters():
            weight.copy_(weight.std() * torch.randn_like(weight))
    reduce_width(reduced, teacher, ALL, method, known)
    (own_logits, own_states), (new_logits, new_states) = answers(reduced), answers(new)
    for own, other, theirs in zip(own_states, new_states, states, strict=True):
        assert alike(own, theirs) > alike(other, theirs) + 0.15
    assert alike(own_logits, logits) > alike(new_logits, logits) + 0.15


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", REDUCIBLE)
def test_heads_are_made_narrower_without_loss_where_half_of_each_is_idle(
    family: str, method: Method
) -> None:
    """Channels of their own for slices; turned within each head for components."""
    narrow, wide = pair(family, thin_heads="turned" if method == "pca" else "channels")
    assert torch.allclose(answers(wide)[0], answers(narrow)[0], atol=1e-4)
    moment = hidden_moment(wide, texts(24), 24)
    student = of_shape(family, NARROW, heads=4, neurons=24)
    put_reduced(student, wide, ALL, Reduction(principal(moment, NARROW), moment, method))
    assert torch.allclose(answers(student)[0], answers(wide)[0], atol=1e-3)


def test_narrower_heads_of_components_lose_less_than_those_of_channels() -> None:
    _, teacher = pair("bert", thin_heads="turned", noise=0.05)
    moment, found = hidden_moment(teacher, texts(24), 24), []
    for method in METHODS:
        student = of_shape("bert", NARROW, heads=4, neurons=24)
        put_reduced(student, teacher, ALL, Reduction(principal(moment, NARROW), moment, method))
        found.append(alike(answers(student)[1][-1], answers(teacher)[1][-1]))
    assert found[0] + 0.05 < found[1]


@pytest.mark.parametrize("method", METHODS)
def test_the_chosen_layers_are_taken_and_nothing_is_drawn(method: Method) -> None:
    teacher = small("bert")
    students = [small("bert", num_hidden_layers=2, hidden_size=16) for _ in range(3)]
    with torch.no_grad():
        students[1].bert.encoder.layer[0].intermediate.dense.weight.normal_()
    for student, layers in zip(students, ((2, 4), (2, 4), (1, 3)), strict=True):
        reduce_width(student, teacher, layers, method)
    first, again, other = (model.state_dict() for model in students)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(
        first["bert.encoder.layer.0.output.dense.weight"],
        other["bert.encoder.layer.0.output.dense.weight"],
    )


def test_the_teacher_stays_as_it_was() -> None:
    teacher = small("bert")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = small("bert", hidden_size=16)
    reduce_width(student, teacher, ALL, "pca")
    with torch.no_grad():
        for weight in student.parameters():
            weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 64}, "hidden_size. Expected at most 32, found 64"),
        ({"num_attention_heads": 8}, "attention_heads. Expected at most 4, found 8"),
        ({"intermediate_size": 50}, "intermediate_size. Expected at most 48, found 50"),
        (
            {"hidden_size": 24, "num_attention_heads": 2},
            "width of a head. Expected at most 8, found 12",
        ),
    ],
)
def test_a_student_that_has_more_of_anything_is_refused(changes: Any, said: str) -> None:
    with pytest.raises(ShapeError, match=f"can't have more than it: train_student.student, {said}"):
        reduce_width(small("bert", **changes), small("bert"), ALL, "pca")


@pytest.mark.parametrize("family", ["mpnet", "modernbert", "deberta-v2"])
def test_a_family_of_another_build_is_refused_by_name(family: str) -> None:
    with pytest.raises(ShapeError, match=f"can't be made narrower.*found {family}"):
        reduce_width(small(family), small(family), ALL, "slices")
