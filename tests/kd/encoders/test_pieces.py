"""Pieces of a model, put together again, do what the model does; other pieces are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.encoders.files.architectures import (
    ATTENTION_FAMILIES,
    FAMILIES,
)
from tasks.kd.encoders.pieces import config_json, pieces_of, skeleton
from tasks.kd.encoders.running import embed, project, run_layer, scores
from tasks.kd.errors import CacheCorruptError, DataError
from tests.makers.small_families import hidden_states, ragged, small

LAYERS = (1, 2, 3, 4)
Pieces = dict[str, dict[str, torch.Tensor]]


def shared_paths(family: str) -> str:
    return "encoder.relative_attention_bias." if family == "mpnet" else "encoder.rel_embeddings."


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
