from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tasks.kd.encoders.files.architectures import FAMILIES
from tasks.kd.encoders.shape import layers_of
from tasks.kd.errors import ShapeError
from tasks.kd.students.bases import Basis, principal
from tasks.kd.students.layouts import REDUCIBLE, layout_of, linear, norm
from tasks.kd.students.weighing import (
    channel_weights,
    foremost,
    head_weights,
    hidden_moment,
    neuron_weights,
    output_weights,
    weights_moment,
)
from tests.makers.small_families import WIDTH, small, texts
from tests.makers.wide_models import NARROW, pair, turned


def states_of(model: Any, examples: list[Any]) -> torch.Tensor:
    """All layers' states of all tokens, one below the other."""
    rows = []
    with torch.no_grad():
        for ids in examples:
            output = model.base_model(
                input_ids=torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True
            )
            rows += [state[0] for state in output.hidden_states]
    return torch.cat(rows).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_moment_is_that_of_all_tokens_in_all_layers(family: str) -> None:
    model, examples = small(family), texts()
    states = states_of(model, examples)
    expected = states.T @ states / len(states)
    assert torch.allclose(hidden_moment(model, examples, 100), expected, atol=1e-5)


def test_fewer_examples_are_spread_over_all_lengths() -> None:
    model, examples = small("bert"), texts()
    shuffled = [examples[i] for i in (3, 11, 0, 7, 5, 1, 2, 4, 6, 8, 9, 10)]
    states = states_of(model, [examples[0], examples[5], examples[11]])
    expected = states.T @ states / len(states)
    assert torch.allclose(hidden_moment(model, shuffled, 3), expected, atol=1e-5)


@pytest.mark.parametrize("family", REDUCIBLE)
def test_the_estimate_from_weights_finds_where_the_states_are(family: str) -> None:
    _, model = pair(family, noise=0.02)
    true, estimate = hidden_moment(model, texts(), 12), weights_moment(model)

    def kept(basis: Basis) -> float:
        return float((basis.columns.T @ true @ basis.columns).trace() / true.trace())

    assert kept(principal(true, NARROW)) > 0.95  # half of the directions, nearly all of the states
    assert kept(principal(estimate, NARROW)) > 0.9
    assert kept(Basis(turned(WIDTH, NARROW).flip(0), 1.0)) < 0.7
    assert 0.8 < estimate.trace() / true.trace() < 1.25
    assert torch.linalg.eigvalsh(estimate)[0] > -1e-9


@pytest.mark.parametrize("family", REDUCIBLE)
@pytest.mark.parametrize("part", ["attended", "down"])
def test_the_estimate_knows_what_sub_layers_write(family: str, part: str) -> None:
    """Each writes in one direction: where there must be more of the states than elsewhere."""
    model = small(family)
    path = getattr(layout_of(model), part)
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    direction = (direction - direction.mean()) / (direction - direction.mean()).norm()
    elsewhere = weights_moment(model)
    with torch.no_grad():
        for layer in layers_of(model):
            weight = linear(layer, path).weight
            weight.copy_(direction[:, None] * weight[0])
    along = direction.double()
    found = float(along @ weights_moment(model) @ along)
    assert found > 3 * float(along @ elsewhere @ along)


def test_a_sub_layer_that_writes_nothing_adds_nothing() -> None:
    model = small("bert")
    with torch.no_grad():
        for layer in layers_of(model):
            linear(layer, "output.dense").weight.zero_()
    assert torch.isfinite(weights_moment(model)).all()


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(REDUCIBLE)))
def test_a_family_of_another_build_is_refused_by_name(family: str) -> None:
    with pytest.raises(ShapeError, match=f"can't be made narrower.*found {family}"):
        weights_moment(small(family))


@pytest.mark.parametrize("family", REDUCIBLE)
def test_a_layout_names_all_that_a_layer_is_made_of(family: str) -> None:
    """With the embeddings, each weight of the model once: none is left as it happened to be."""
    model = small(family)
    layout = layout_of(model)
    paths = (*layout.projections, layout.attended, layout.up, layout.down)
    base = model.base_model
    (layers,) = (m for m in base.modules() if isinstance(m, torch.nn.ModuleList))
    found = [linear(layer, path) for layer in layers for path in paths]
    found += [linear(model, layout.pooled), linear(model, layout.classifier)]
    norms = [norm(layer, path) for layer in layers for path in (layout.attended_norm, layout.norm)]
    known = {id(weight) for module in [*found, *norms] for weight in module.parameters()}
    others = [name for name, weight in model.named_parameters() if id(weight) not in known]
    assert all(".embeddings" in name for name in others)
    with pytest.raises(AssertionError):
        linear(layers[0], layout.norm)


def test_channels_that_are_large_and_read_weigh_most() -> None:
    model = small("bert")
    moment = torch.eye(WIDTH, dtype=torch.float64)
    moment[7, 7] = 30.0
    with torch.no_grad():
        readers = [model.bert.pooler.dense, model.bert.encoder.layer[1].intermediate.dense]
        attention = model.bert.encoder.layer[1].attention.self
        for reader in (*readers, attention.query, attention.key, attention.value):
            reader.weight[:, 3] = 0
            reader.weight[:, 9] *= 4
    weights = channel_weights(model, [2], moment)
    assert set(weights.topk(2).indices.tolist()) == {7, 9}
    assert weights[3] == 0
    assert weights.sum() == pytest.approx(5)  # a vote of each reader
    assert channel_weights(model, [1], moment)[3] > 0  # that layer reads it


def test_heads_neurons_and_outputs_weigh_what_they_make_of_the_states() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states, up, down = draw(500, 6), draw(5, 6), draw(6, 5)
    moment = states.T @ states / 500
    outputs = (states @ up.T).square().mean(0)
    assert torch.allclose(output_weights(up, moment), outputs)
    assert torch.allclose(neuron_weights(up, down, moment), outputs * down.square().sum(0))
    value, out = draw(3, 2, 6), draw(3, 6, 2)
    written = [(states @ v.T @ o.T).square().sum(1).mean() for v, o in zip(value, out, strict=True)]
    assert torch.allclose(head_weights(value, out, moment), torch.stack(written))


def test_the_foremost_keep_their_order_and_of_equals_the_first_are_taken() -> None:
    assert foremost(torch.tensor([1.0, 5.0, 2.0, 5.0, 2.0]), 3).tolist() == [1, 2, 3]
