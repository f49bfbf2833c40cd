"""A layer run by itself does what transformers does with the whole model, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.kd.encoders.capture import capture
from tasks.kd.encoders.files.architectures import (
    ATTENTION_FAMILIES,
    FAMILIES,
)
from tasks.kd.encoders.pieces import pieces_of
from tasks.kd.encoders.running import QKV, embed, project, run_layer, scores
from tasks.kd.errors import ShapeError
from tests.makers.small_families import LENGTHS, WIDTH, hidden_states, ragged, small

LAYERS = (1, 2, 3, 4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole", [True, False])
def test_running_the_layers_one_by_one_is_running_the_model(family: str, whole: bool) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    if whole:  # without padding, transformers takes another path through SDPA
        ids_BT, mask_BT = ids_BT[1:2], mask_BT[1:2]
    expected = hidden_states(model, ids_BT, mask_BT)
    with torch.no_grad():
        state_BTD = embed(model, ids_BT, mask_BT)
        assert torch.equal(state_BTD, expected[0])
        for layer in LAYERS:
            state_BTD = run_layer(model, layer, state_BTD, mask_BT)
            if family == "modernbert" and layer == 4:
                assert not torch.equal(state_BTD, hidden_before_the_norm(model, ids_BT, mask_BT))
            assert torch.equal(state_BTD, expected[layer]), layer


def hidden_before_the_norm(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> Any:
    kept: list[torch.Tensor] = []
    handle = model.model.layers[-1].register_forward_hook(lambda _m, _i, out: kept.append(out))
    hidden_states(model, ids_BT, mask_BT)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_scores_do_not_depend_on_padding(family: str) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    alone = {}
    for rows, length in ((slice(0, 3), 17), (slice(0, 1), LENGTHS[0])):
        ids, mask = ids_BT[rows, :length], mask_BT[rows, :length]
        with torch.no_grad():
            state_BTD = embed(model, ids, mask)
            kept = []
            for layer in LAYERS:
                if family in ATTENTION_FAMILIES:
                    found = scores(model, layer, project(model, layer, state_BTD), mask)
                    kept.append(found[0, :, :3, :3])
                state_BTD = run_layer(model, layer, state_BTD, mask)
                kept.append(state_BTD[0, :3])
        alone[length] = kept
    for padded, bare in zip(alone[17], alone[3], strict=True):
        torch.testing.assert_close(padded, bare, atol=5e-5, rtol=1e-5)


def test_fused_projections_come_apart_in_the_right_order() -> None:
    model, (ids_BT, mask_BT) = small("modernbert"), ragged()
    with capture(model, (1,), (2,)) as captured:
        hidden_states(model, ids_BT, mask_BT)
    layer = model.model.layers[1]
    weights = layer.attn.Wqkv.weight.view(3, WIDTH, WIDTH)
    state_BTD = layer.attn_norm(captured.hidden[1])
    qkv = captured.qkv[2]
    for weight, found in zip(weights, (qkv.queries_BTD, qkv.keys_BTD, qkv.values_BTD), strict=True):
        torch.testing.assert_close(state_BTD @ weight.T, found)


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_scores_give_the_model_s_own_attentions(family: str) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    model.set_attn_implementation("eager")
    with torch.no_grad(), capture(model, (), LAYERS) as captured:
        attentions = model(
            input_ids=ids_BT, attention_mask=mask_BT.long(), output_attentions=True
        ).attentions
    assert len(attentions) == 4
    for layer, expected_BHTT in zip(LAYERS, attentions, strict=True):
        found_BHTT = scores(model, layer, captured.qkv[layer], mask_BT)
        found_BHTT = found_BHTT.masked_fill(~mask_BT[:, None, None], float("-inf")).softmax(-1)
        for row, n in enumerate(LENGTHS):  # a padded query may see no real key
            torch.testing.assert_close(
                found_BHTT[row, :, :n], expected_BHTT[row, :, :n], atol=1e-5, rtol=0
            )
        assert float(expected_BHTT[1].std(-1).mean()) > 0.005  # not even


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_padded_keys_have_scores(family: str) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    with capture(model, (), (1,)) as captured:
        hidden_states(model, ids_BT, mask_BT)
    assert bool(scores(model, 1, captured.qkv[1], mask_BT).isfinite().all())


def test_pairs_outside_a_local_window_are_masked_in_local_layers_only() -> None:
    model, (_, mask_BT) = small("modernbert"), ragged()
    states = torch.randn((3, 17, WIDTH), generator=torch.Generator().manual_seed(2))
    qkv = QKV(states, states, states)
    apart_TT = (torch.arange(17)[:, None] - torch.arange(17)).abs()
    for layer, local in zip(LAYERS, (False, True, True, False), strict=True):
        found = scores(model, layer, qkv, mask_BT).isneginf()
        expected = apart_TT > 2 if local else torch.zeros_like(apart_TT, dtype=torch.bool)
        assert torch.equal(found, expected.expand_as(found))


def test_global_and_local_layers_rotate_by_different_angles() -> None:
    model, (_, mask_BT) = small("modernbert"), ragged()
    states = torch.randn((3, 17, WIDTH), generator=torch.Generator().manual_seed(2))
    far, near = (scores(model, layer, QKV(states, states, states), mask_BT) for layer in (1, 2))
    at_once = near.isfinite() & ~torch.eye(17, dtype=torch.bool)
    assert float((far - near)[at_once].abs().max()) > 0.1
    torch.testing.assert_close(far.diagonal(dim1=-2, dim2=-1), near.diagonal(dim1=-2, dim2=-1))


def test_the_relative_bias_is_in_the_scores_of_every_layer() -> None:
    model, (_, mask_BT) = small("mpnet"), ragged()
    zeros = torch.zeros((3, 17, WIDTH))
    for layer in LAYERS:
        found_BHTT = scores(model, layer, QKV(zeros, zeros, zeros), mask_BT)
        assert float(found_BHTT.detach().std()) > 0.1
        assert torch.equal(found_BHTT[:, :, 1, 3], found_BHTT[:, :, 2, 4])  # by distance alone


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_a_mask_of_another_shape_is_refused(family: str) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    state_BTD = embed(model, ids_BT, mask_BT)
    with pytest.raises(ShapeError, match="attention mask"):
        scores(model, 1, project(model, 1, state_BTD), mask_BT[:, :5])
    with pytest.raises(ShapeError, match="attention mask"):
        run_layer(model, 1, state_BTD, mask_BT[:1])


@pytest.mark.parametrize("layer", [-1, 0, 5])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    model, (ids_BT, mask_BT) = small("bert"), ragged()
    state_BTD = embed(model, ids_BT, mask_BT)
    uses: list[Any] = [
        lambda: project(model, layer, state_BTD),
        lambda: run_layer(model, layer, state_BTD, mask_BT),
        lambda: pieces_of(model, (layer,), embeddings=False),
        lambda: capture(model, (), (layer,)).__enter__(),
        lambda: capture(model, (layer or 9,), ()).__enter__(),
    ]
    for use in uses:
        with pytest.raises(ShapeError, match=r"layers 1 to 4, found (-1|0|5|9)"):
            use()
