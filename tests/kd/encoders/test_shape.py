"""A model says its own size, and a family what it can be used for."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.kd.encoders.capture import capture
from tasks.kd.encoders.files.architectures import (
    ATTENTION_FAMILIES,
    FAMILIES,
    Shape,
    kernel,
    require_attention,
    require_family,
    shape_of,
)
from tasks.kd.encoders.pieces import skeleton
from tasks.kd.encoders.running import QKV, embed, project, scores
from tasks.kd.encoders.shape import depth, heads, shaped, width
from tasks.kd.errors import DataError
from tests.makers.small_families import CONFIGS, HEADS, WIDTH, hidden_states, ragged, small


def test_each_supported_family_is_tested() -> None:
    assert set(CONFIGS) == set(FAMILIES)
    assert set(FAMILIES) - set(ATTENTION_FAMILIES) == {"deberta-v2"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_says_its_own_shape(family: str) -> None:
    model = small(family)
    assert (depth(model), heads(model), width(model)) == (4, HEADS, WIDTH)
    assert (depth(model.base_model), heads(model.base_model)) == (4, HEADS)
    shape = shape_of(model.config.to_dict())
    assert (shape.layers, shape.hidden_size, shape.attention_heads) == (4, WIDTH, HEADS)
    other = shaped(model.config, **vars(Shape(2, 2 * WIDTH, HEADS, 20)))
    assert shape_of(other.to_dict()) == Shape(2, 2 * WIDTH, HEADS, 20)


def test_disentangled_attention_is_refused_by_name() -> None:
    model, (ids_BT, mask_BT) = small("deberta-v2"), ragged()
    state_BTD = embed(model, ids_BT, mask_BT)
    qkv = QKV(state_BTD, state_BTD, state_BTD)
    uses: list[Any] = [
        lambda: project(model, 1, state_BTD),
        lambda: scores(model, 1, qkv, mask_BT),
        lambda: capture(model, (1,), (1,)).__enter__(),
        lambda: require_attention("deberta-v2", where="params/x.yaml"),
    ]
    for use in uses:
        with pytest.raises(DataError, match="disentangled attention"):
            use()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_the_other_families_have_attention_levels(family: str) -> None:
    require_attention(family)


def test_a_family_that_is_not_supported_is_refused_by_name() -> None:
    uses: list[Any] = [
        lambda: require_family("gpt2"),
        lambda: require_attention("gpt2"),
        lambda: kernel("gpt2"),
        lambda: skeleton('{"model_type": "gpt2"}', {}),
        lambda: skeleton("{}", {}),
    ]
    for use in uses:
        with pytest.raises(DataError, match=r"family .*Expected model_type bert or .*found"):
            use()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_is_the_best_that_transformers_has(family: str) -> None:
    assert small(family).config._attn_implementation == kernel(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_takes_another_shape(family: str) -> None:
    model = small(family)
    config = shaped(model.config, layers=3, hidden_size=24, attention_heads=2, intermediate_size=40)
    other: Any = type(model)(config)
    assert type(config) is type(model.config)
    assert (depth(other), width(other), heads(other)) == (3, 24, 2)
    assert 40 in {size for weight in other.parameters() for size in weight.shape} | {
        size // 2 for weight in other.parameters() for size in weight.shape
    }
    assert config.id2label == model.config.id2label
    ids_BT, mask_BT = ragged()
    states = hidden_states(other.eval(), ids_BT, mask_BT)
    assert states[3].shape == (3, 17, 24)


def test_what_is_as_wide_as_the_encoder_stays_so() -> None:
    size = {"layers": 2, "hidden_size": 24, "attention_heads": 2, "intermediate_size": 40}
    config = CONFIGS["electra"]()
    config.embedding_size = WIDTH
    assert shaped(config, **size).embedding_size == 24
    config.embedding_size = 16  # factorised: as it was
    assert shaped(config, **size).embedding_size == 16
    config = CONFIGS["deberta-v2"]()
    config.attention_head_size = 8
    assert config.pooler_hidden_size == WIDTH
    new = shaped(config, **size)
    assert (new.pooler_hidden_size, new.attention_head_size) == (24, 12)


@pytest.mark.parametrize(("layers", "globals_"), [(2, [0]), (4, [0, 3]), (9, [0, 3, 6])])
def test_the_pattern_of_local_layers_goes_on(layers: int, globals_: list[int]) -> None:
    config = CONFIGS["modernbert"]()
    config.global_attn_every_n_layers = 2  # as in a file that also names the types
    new = shaped(config, layers=layers, hidden_size=32, attention_heads=4, intermediate_size=48)
    assert [i for i, kind in enumerate(new.layer_types) if kind == "full_attention"] == globals_
    assert len(new.layer_types) == layers
    assert not hasattr(new, "global_attn_every_n_layers")
