"""Frozen pieces of a model: taken out of it, and put together again without the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tasks.kd.encoders.files.architectures import EMBEDDINGS, kernel, require_family
from tasks.kd.encoders.shape import (
    LAYER,
    Absent,
    as_module,
    base_of,
    depth,
    family_of,
    layer_of,
    paths_of,
    require_present,
)
from tasks.kd.errors import CacheCorruptError

# Not of the encoder itself: what names things, and what was true of the file it came from.
_UNUSED = ("_name_or_path", "architectures", "id2label", "label2id", "transformers_version")


def pieces_of(
    model: torch.nn.Module, layers: tuple[int, ...], *, embeddings: bool
) -> dict[str, dict[str, Tensor]]:
    """Weights by piece, `embeddings` and `layer.<l>`, named as in the base model's state dict.

    A layer's piece holds all that `project`, `scores` and `run_layer` read of it. The tensors are
    the model's own, detached, but for those that several layers share, which are copies: a
    safetensors file takes no tensor twice. Raises ShapeError for a layer that is not there.
    """
    base = base_of(model)
    for module in [base.embeddings] * embeddings + [layer_of(model, layer) for layer in layers]:
        require_present(module)
    shared = tuple(f"{path}." for path in family_of(base).each_layer)
    wanted = [EMBEDDINGS] * embeddings + [f"{LAYER}{layer}" for layer in layers]
    return {
        piece: {
            name: weight.clone() if name.startswith(shared) else weight
            for name, weight in _weights(base, piece).items()
        }
        for piece in wanted
    }


def config_json(model: torch.nn.Module) -> str:
    """What `skeleton` needs to know of a model, as JSON with sorted keys."""
    base = base_of(model)
    config = json.loads(base.config.to_json_string(use_diff=False))
    kept = {name: value for name, value in config.items() if name not in _UNUSED}
    kept["dtype"] = str(next(base.parameters()).dtype).removeprefix("torch.")
    return json.dumps(kept, sort_keys=True)


def skeleton(config_json: str, pieces: Mapping[str, Mapping[str, Tensor]]) -> torch.nn.Module:
    """A model in which `embed`, `project`, `scores` and `run_layer` work for exactly those pieces.

    In eval mode and without gradients; its weights are the given tensors themselves, and what is
    not among the pieces has none. Raises CacheCorruptError for a piece whose tensors are not those
    of the configuration, DataError for a family that is not supported.
    """
    fields = json.loads(config_json)
    require_family(fields.get("model_type", "none"))
    with torch.device("meta"):
        base: Any = AutoModel.from_config(
            AutoConfig.for_model(**fields), attn_implementation=kernel(fields["model_type"])
        )
    known = [EMBEDDINGS, *(f"{LAYER}{layer}" for layer in range(1, depth(base) + 1))]
    for piece in pieces:
        _require_tensors(base, piece, pieces[piece], known)
    weights = _merged(pieces)
    present = {path for piece in pieces for path in paths_of(base, piece)}
    for path in {path for piece in known for path in paths_of(base, piece)} - present:
        base.set_submodule(path, Absent(path))
    base.pooler = None
    base.load_state_dict(weights, strict=True, assign=True)
    _fill_buffers(base)
    return as_module(base.requires_grad_(False).eval())


def _require_tensors(
    base: Any, piece: str, tensors: Mapping[str, Tensor], known: list[str]
) -> None:
    """Raise CacheCorruptError unless a piece has the tensors that it must, and no others."""
    if piece not in known:
        raise CacheCorruptError(
            "a piece of a teacher that it does not have",
            where=piece,
            expected=f"{known[0]}, or {known[1]} to {known[-1]}",
        )
    expected = {name: _described(weight) for name, weight in _weights(base, piece).items()}
    found = {name: _described(value) for name, value in tensors.items()}
    if wrong := sorted(name for name, _ in expected.items() ^ found.items()):
        raise CacheCorruptError(
            "a piece of the teacher is not as its configuration says",
            where=f"{piece}, {wrong[0]}",
            expected=expected.get(wrong[0], "no such tensor"),
            found=found.get(wrong[0], "none"),
        )


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _merged(pieces: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors by name. Raises CacheCorruptError if pieces differ in one that they share."""
    weights: dict[str, Tensor] = {}
    for piece, tensors in pieces.items():
        for name, value in tensors.items():
            if name in weights and not torch.equal(weights[name], value):
                raise CacheCorruptError(
                    "two pieces of one teacher differ in what they share", where=f"{piece}, {name}"
                )
            weights[name] = value
    return weights


def _fill_buffers(base: Any) -> None:
    """Give the buffers that no state dict holds the values that a model is made with."""
    if hasattr(base, "rotary_emb"):
        base.rotary_emb = type(base.rotary_emb)(config=base.config)
    for name, buffer in list(base.embeddings.named_buffers()):
        if name == "position_ids":
            filled = torch.arange(buffer.shape[-1]).expand(buffer.shape)
        else:
            assert name == "token_type_ids", name
            filled = torch.zeros(buffer.shape, dtype=buffer.dtype)
        base.embeddings.register_buffer(name, filled, persistent=False)


def _weights(base: Any, piece: str) -> dict[str, Tensor]:
    """A piece's tensors by their names in the base model's state dict."""
    return {
        name: weight
        for path in paths_of(base, piece)
        for name, weight in base.get_submodule(path).state_dict(prefix=f"{path}.").items()
    }
