"""A layer run by itself does what transformers does with the whole model, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.encoders.families import (
    ATTENTION_FAMILIES,
    FAMILIES,
    QKV,
    capture,
    config_json,
    depth,
    embed,
    heads,
    kernel,
    pieces_of,
    project,
    require_attention,
    require_family,
    run_layer,
    scores,
    shaped,
    skeleton,
    width,
)
from tasks.kd.encoders.files.architectures import Shape, shape_of
from tasks.kd.errors import CacheCorruptError, DataError, ShapeError
from tests.makers.small_families import CONFIGS, HEADS, LENGTHS, WIDTH, ragged, small

LAYERS = (1, 2, 3, 4)
Pieces = dict[str, dict[str, torch.Tensor]]


def hidden_states(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> Any:
    """What transformers says."""
    with torch.no_grad():
        return model(
            input_ids=ids_BT, attention_mask=mask_BT.long(), output_hidden_states=True
        ).hidden_states


def shared_paths(family: str) -> str:
    return "encoder.relative_attention_bias." if family == "mpnet" else "encoder.rel_embeddings."


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


# --- hidden states -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_states_are_those_that_transformers_returns(family: str) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    with capture(model, (0, *LAYERS), ()) as captured:
        expected = hidden_states(model, ids_BT, mask_BT)
    assert len(expected) == len(captured.hidden) == 5
    for layer, state_BTD in captured.hidden.items():
        assert torch.equal(state_BTD, expected[layer]), layer


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


# --- attention -----------------------------------------------------------------------------------


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


# --- refusals by family --------------------------------------------------------------------------


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


# --- pieces --------------------------------------------------------------------------------------


def saved(pieces: Pieces, folder: Path) -> Pieces:
    """The pieces after a way through one safetensors file."""
    flat = {
        f"{piece}/{name}": value for piece, part in pieces.items() for name, value in part.items()
    }
    save_file(flat, folder / "pieces.safetensors")
    read: Pieces = {}
    for key, value in load_file(folder / "pieces.safetensors").items():
        piece, _, name = key.partition("/")
        read.setdefault(piece, {})[name] = value
    return read


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_of_saved_pieces_does_what_the_model_does(family: str, tmp_path: Path) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    expected = hidden_states(model, ids_BT, mask_BT)
    pieces = saved(pieces_of(model, (1, 2, 4), embeddings=True), tmp_path)
    assert set(pieces) == {"embeddings", "layer.1", "layer.2", "layer.4"}
    bare = skeleton(config_json(model), pieces)
    assert not bare.training
    assert not any(parameter.requires_grad for parameter in bare.parameters())
    assert torch.equal(embed(bare, ids_BT, mask_BT), expected[0])
    for layer in (1, 2, 4):
        assert torch.equal(run_layer(bare, layer, expected[layer - 1], mask_BT), expected[layer])
        if family not in ATTENTION_FAMILIES:
            continue
        own, theirs = (project(m, layer, expected[layer - 1]) for m in (bare, model))
        assert torch.equal(own.values_BTD, theirs.values_BTD)
        assert torch.equal(scores(bare, layer, own, mask_BT), scores(model, layer, theirs, mask_BT))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", LAYERS)
def test_one_layer_is_enough_for_itself(family: str, layer: int) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    expected = hidden_states(model, ids_BT, mask_BT)
    bare = skeleton(config_json(model), pieces_of(model, (layer,), embeddings=False))
    assert torch.equal(run_layer(bare, layer, expected[layer - 1], mask_BT), expected[layer])
    assert all(value.device.type == "cpu" for value in bare.state_dict().values())
    assert not any("embeddings.word" in name for name in bare.state_dict())
    for absent in [*LAYERS[: layer - 1], *LAYERS[layer:]]:
        with pytest.raises(DataError, match=r"not among the pieces .*layer"):
            run_layer(bare, absent, expected[absent - 1], mask_BT)
    with pytest.raises(DataError, match=r"not among the pieces .*: embeddings"):
        embed(bare, ids_BT, mask_BT)
    with pytest.raises(DataError, match="not among the pieces"):
        pieces_of(bare, (), embeddings=True)
    with pytest.raises(DataError, match="not among the pieces"):
        bare(input_ids=ids_BT, attention_mask=mask_BT.long())


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_that_no_file_holds_are_as_in_a_new_model(family: str) -> None:
    model = small(family)
    bare = skeleton(config_json(model), pieces_of(model, LAYERS, embeddings=True))
    expected = dict(model.base_model.named_buffers())
    found = dict(bare.named_buffers())
    assert found.keys() == expected.keys() != set()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    kept = {name for name in model.base_model.state_dict() if "pooler" not in name}
    assert set(bare.state_dict()) == kept


def test_a_skeleton_is_lean_and_draws_no_random_number() -> None:
    large = json.loads(config_json(small("bert")))
    large |= {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
    large |= {"vocab_size": 10**9}  # 3 TB, were it allocated
    one = small("bert", hidden_size=768, num_attention_heads=12, num_hidden_layers=1)
    part = pieces_of(one, (1,), embeddings=False)
    before = torch.get_rng_state()
    bare = skeleton(json.dumps(large), part)
    assert torch.equal(before, torch.get_rng_state())
    weights = {weight.data_ptr() for weight in bare.parameters()}
    assert weights == {tensor.data_ptr() for tensor in part["layer.1"].values()}  # not copied


def test_the_configuration_of_a_skeleton_names_no_labels_and_is_in_order() -> None:
    text = config_json(small("bert"))
    fields = json.loads(text)
    assert list(fields) == sorted(fields)
    assert not {"id2label", "label2id", "architectures", "transformers_version"} & set(fields)
    assert fields["dtype"] == "float32"
    assert json.loads(config_json(small("bert").double()))["dtype"] == "float64"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("piece", ["embeddings", "layer.1", "layer.4"])
def test_a_piece_with_other_tensors_is_refused(family: str, piece: str) -> None:
    model = small(family)
    pieces = pieces_of(model, (1, 4), embeddings=True)
    text = config_json(model)
    skeleton(text, pieces)
    for name, tensor in pieces[piece].items():
        lost = {key: value for key, value in pieces[piece].items() if key != name}
        for part, found in (
            (lost, "none"),
            (lost | {name: tensor[:-1]}, r"float32 \[.*\]"),
            (lost | {name: tensor.half()}, r"float16 \[.*\]"),
        ):
            with pytest.raises(CacheCorruptError, match=rf"{piece}, {name}\..*found {found}"):
                skeleton(text, pieces | {piece: part})
    more = pieces[piece] | {"x": torch.ones(1)}
    with pytest.raises(CacheCorruptError, match=rf"{piece}, x\. Expected no such tensor"):
        skeleton(text, pieces | {piece: more})


@pytest.mark.parametrize("piece", ["layer.0", "layer.5", "layer.x", "pooler"])
def test_a_piece_that_the_teacher_does_not_have_is_refused(piece: str) -> None:
    model = small("bert")
    with pytest.raises(CacheCorruptError, match=rf"{piece}\. Expected embeddings, or layer\.1 to"):
        skeleton(config_json(model), {piece: {}})


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_pieces_must_agree_in_what_they_share(family: str) -> None:
    model = small(family)
    pieces = pieces_of(model, (1, 2), embeddings=False)
    name = next(name for name in pieces["layer.1"] if name.startswith(shared_paths(family)))
    assert name in pieces["layer.2"]
    pieces["layer.2"][name] += 1
    with pytest.raises(CacheCorruptError, match=rf"differ in what they share: layer\.2, {name}"):
        skeleton(config_json(model), pieces)


# --- another shape -------------------------------------------------------------------------------


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
