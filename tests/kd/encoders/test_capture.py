"""What is captured is what the running model has."""

from __future__ import annotations

import pytest
import torch

from tasks.kd.encoders.capture import capture
from tasks.kd.encoders.files.architectures import (
    ATTENTION_FAMILIES,
    FAMILIES,
)
from tasks.kd.encoders.running import project
from tests.makers.small_families import WIDTH, hidden_states, ragged, small

LAYERS = (1, 2, 3, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_states_are_those_that_transformers_returns(family: str) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    with capture(model, (0, *LAYERS), ()) as captured:
        expected = hidden_states(model, ids_BT, mask_BT)
    assert len(expected) == len(captured.hidden) == 5
    for layer, state_BTD in captured.hidden.items():
        assert torch.equal(state_BTD, expected[layer]), layer


def test_a_captured_state_has_a_gradient_and_hooks_end_with_the_capture() -> None:
    model, (ids_BT, mask_BT) = small("bert"), ragged()
    with capture(model, (2,), (3,)) as captured:
        model(input_ids=ids_BT, attention_mask=mask_BT.long())
        captured.qkv[3].keys_BTD.sum().backward()
    assert model.bert.encoder.layer[1].output.dense.weight.grad.abs().sum() > 0
    first = captured.hidden[2]
    model(input_ids=ids_BT[:, :5])
    assert captured.hidden[2] is first
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_projections_are_those_inside_the_running_model(family: str) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    with capture(model, (0, 1, 2, 3), LAYERS) as captured:
        hidden_states(model, ids_BT, mask_BT)
    for layer in LAYERS:
        again, hooked = project(model, layer, captured.hidden[layer - 1]), captured.qkv[layer]
        for name in ("queries_BTD", "keys_BTD", "values_BTD"):
            assert getattr(hooked, name).shape == (3, 17, WIDTH)
            assert torch.equal(getattr(again, name), getattr(hooked, name)), (layer, name)
        assert not torch.equal(hooked.queries_BTD, hooked.keys_BTD)
