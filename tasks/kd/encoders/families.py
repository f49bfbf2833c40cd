"""Where each family of encoders keeps its layers, and how one layer is run by itself.

Layers are counted from 1; hidden layer 0 is the embedding output. Values are those that
transformers computes, under whatever attention kernel the model was loaded with; nothing here asks
for `output_attentions`, which is empty under SDPA and, in training, comes after dropout.

B examples, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
)
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from tasks.kd.encoders.files.architectures import (
    ATTENTION_FAMILIES,
    BY_NAME,
    EMBEDDINGS,
    FAMILIES,
    Family,
    Shape,
    kernel,
    require_attention,
    require_family,
    reshaped,
)
from tasks.kd.errors import CacheCorruptError, DataError, ShapeError
from tasks.kd.shapes import require_shape

__all__ = [
    "ATTENTION_FAMILIES",
    "FAMILIES",
    "QKV",
    "Captured",
    "capture",
    "config_json",
    "count_parameters",
    "depth",
    "embed",
    "heads",
    "kernel",
    "layers_of",
    "layers_prefix",
    "pieces_of",
    "project",
    "require_attention",
    "require_family",
    "run_layer",
    "scores",
    "shaped",
    "skeleton",
    "width",
]

_LAYER = "layer."
_LOCAL = "sliding_attention"
# Not of the encoder itself: what names things, and what was true of the file it came from.
_UNUSED = ("_name_or_path", "architectures", "id2label", "label2id", "transformers_version")


@dataclass(frozen=True)
class QKV:
    """Queries, keys and values as projected: heads side by side, before any rotary rotation."""

    queries_BTD: Tensor
    keys_BTD: Tensor
    values_BTD: Tensor


@dataclass(frozen=True)
class Captured:
    """What the last forward pass left, by layer: hidden states [B, T, D], and projections."""

    hidden: dict[int, Tensor]
    qkv: dict[int, QKV]


# --- what a model is -----------------------------------------------------------------------------


def depth(model: torch.nn.Module) -> int:
    """Number of layers, embeddings not counted."""
    return len(layers_of(model))


def heads(model: torch.nn.Module) -> int:
    """Attention heads per layer."""
    return int(_base(model).config.num_attention_heads)


def width(model: torch.nn.Module) -> int:
    """Width D of the hidden states."""
    return int(_base(model).config.hidden_size)


def count_parameters(model: torch.nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules of the layers, first to last."""
    base = _base(model)
    return list(base.get_submodule(_family(base).layers))


def layers_prefix(model: torch.nn.Module) -> str:
    """What the names of all the layers' weights begin with in the model's state dict."""
    base = _base(model)
    inside = "" if base is model else f"{base.base_model_prefix}."
    return f"{inside}{_family(base).layers}."


def shaped(
    config: Any, *, layers: int, hidden_size: int, attention_heads: int, intermediate_size: int
) -> Any:
    """The configuration of a like encoder in another shape: `architectures.reshaped`."""
    shape = Shape(layers, hidden_size, attention_heads, intermediate_size)
    return AutoConfig.for_model(**reshaped(config.to_dict(), shape))


# --- running a piece -----------------------------------------------------------------------------


def embed(model: torch.nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Hidden layer 0 [B, T, D] of token ids int64, as transformers' `hidden_states[0]`.

    ELECTRA's is the one after `embeddings_project`; DeBERTa's is zero where the mask is.
    """
    base = _base(model)
    _require_present(base.embeddings)
    if base.config.model_type == "deberta-v2":
        return _tensor(base.embeddings(input_ids=ids_BT, mask=mask_BT.long()))
    state_BTD = base.embeddings(input_ids=ids_BT)
    for path in _paths(base, EMBEDDINGS)[1:]:
        state_BTD = base.get_submodule(path)(state_BTD)
    return _tensor(state_BTD)


def run_layer(model: torch.nn.Module, layer: int, state_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Hidden layer `layer` [B, T, D] from the one below it, as transformers' `hidden_states`.

    That of ModernBERT's last layer is after `final_norm`. `mask_BT` is true, or 1, at real tokens.
    Raises ShapeError for a layer that the model does not have.
    """
    base, module = _base(model), _layer(model, layer)
    require_shape("attention mask", mask_BT, tuple(state_BTD.shape[:2]))
    if base.config.model_type == "deberta-v2":
        return _run_deberta(base, layer, state_BTD, mask_BT.long())
    masks = {"config": base.config, "inputs_embeds": state_BTD, "attention_mask": mask_BT.long()}
    if base.config.model_type == "modernbert":
        local = _layer_type(base, layer) == _LOCAL
        make = create_bidirectional_sliding_window_mask if local else create_bidirectional_mask
        angles = _rotary(base, layer, state_BTD)
        output = module(state_BTD, attention_mask=make(**masks), position_embeddings=angles)
    elif base.config.model_type == "mpnet":
        bias = base.encoder.compute_position_bias(state_BTD)
        output = module(state_BTD, create_bidirectional_mask(**masks), position_bias=bias)
    else:
        output = module(state_BTD, create_bidirectional_mask(**masks))
    last = _after_last(base) if layer == depth(model) else None
    return _tensor(output) if last is None else _tensor(last(_tensor(output)))


def _run_deberta(base: Any, layer: int, state_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    encoder = base.encoder
    output_BTD = _tensor(
        encoder.layer[layer - 1](
            state_BTD,
            encoder.get_attention_mask(mask_BT),
            relative_pos=encoder.get_rel_pos(state_BTD),
            rel_embeddings=encoder.get_rel_embedding(),
        )
    )
    if layer == 1 and encoder.conv is not None:
        return _tensor(encoder.conv(state_BTD, output_BTD, mask_BT))
    return output_BTD


def project(model: torch.nn.Module, layer: int, state_BTD: Tensor) -> QKV:
    """Queries, keys and values of a layer from the hidden layer below it.

    Where the family has a norm before its attention (ModernBERT), it is applied. Raises DataError
    for DeBERTa, ShapeError for a layer that the model does not have.
    """
    family, module = _attention_family(model), _layer(model, layer)
    if family.norm is not None:
        state_BTD = module.get_submodule(family.norm)(state_BTD)
    return _qkv([module.get_submodule(path)(state_BTD) for path in family.projections])


def scores(model: torch.nn.Module, layer: int, qkv: QKV, mask_BT: Tensor) -> Tensor:
    """Scaled scores [B, H, T, T] before the softmax, queries × keys, with the positional terms.

    ModernBERT's queries and keys are rotated with the layer's own base, and pairs outside a local
    layer's window are -inf; MPNet's relative bias is added. Padded keys are not masked: the caller
    knows what to do with them. Raises as `project` does, and ShapeError for a mask of other shape.
    """
    _attention_family(model)
    base, _ = _base(model), _layer(model, layer)
    require_shape("attention mask", mask_BT, tuple(qkv.queries_BTD.shape[:2]))
    queries_BHTK, keys_BHTK = (
        states.unflatten(-1, (heads(model), -1)).transpose(1, 2)
        for states in (qkv.queries_BTD, qkv.keys_BTD)
    )
    if base.config.model_type == "modernbert":
        cos, sin = _rotary(base, layer, qkv.queries_BTD)
        queries_BHTK, keys_BHTK = apply_rotary_pos_emb(queries_BHTK, keys_BHTK, cos, sin)
    scores_BHTT = queries_BHTK @ keys_BHTK.transpose(-1, -2) * queries_BHTK.shape[-1] ** -0.5
    if base.config.model_type == "mpnet":
        scores_BHTT = scores_BHTT + base.encoder.compute_position_bias(qkv.queries_BTD)
    if _layer_type(base, layer) == _LOCAL:
        place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        far_TT = (place_T[:, None] - place_T).abs() > base.config.sliding_window
        scores_BHTT = scores_BHTT.masked_fill(far_TT, float("-inf"))
    return _tensor(scores_BHTT)


def _rotary(base: Any, layer: int, state_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1, T, K] for ModernBERT's queries and keys in that layer."""
    places_1T = torch.arange(state_BTD.shape[1], device=state_BTD.device).unsqueeze(0)
    cos, sin = base.rotary_emb(state_BTD, places_1T, _layer_type(base, layer))
    return cos, sin


def _layer_type(base: Any, layer: int) -> str | None:
    """Whether a ModernBERT layer is local; None in families that know no such thing."""
    types = getattr(base.config, "layer_types", None)
    return None if types is None else str(types[layer - 1])


# --- capturing while a model runs ----------------------------------------------------------------


@contextmanager
def capture(
    model: torch.nn.Module, hidden: tuple[int, ...], projected: tuple[int, ...]
) -> Iterator[Captured]:
    """While open, each forward pass leaves these hidden states and projections, with gradient.

    Hooks on the wanted modules only: no other layer is kept alive, and every attention kernel
    will do. Raises DataError where `projected` is asked of DeBERTa, ShapeError for a layer that the
    model does not have.
    """
    captured = Captured({}, {})
    wanted = [(_state_module(model, layer), _keep(captured.hidden, layer)) for layer in hidden]
    if projected:
        family = _attention_family(model)
        for layer in projected:
            parts: dict[int, Tensor] = {}
            for place, path in enumerate(family.projections):
                hook = _collect(captured, layer, parts, (place, len(family.projections)))
                wanted.append((_layer(model, layer).get_submodule(path), hook))
    handles = [module.register_forward_hook(hook) for module, hook in wanted]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _keep(states: dict[int, Tensor], layer: int) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        states[layer] = _tensor(output)

    return hook


def _collect(
    captured: Captured, layer: int, parts: dict[int, Tensor], which: tuple[int, int]
) -> Any:
    """A hook on one of the projections; with the last of them, the layer's QKV is whole."""
    place, count = which

    def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
        parts[place] = output
        if len(parts) == count:
            captured.qkv[layer] = _qkv([parts.pop(i) for i in range(count)])

    return hook


def _state_module(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    """The module whose output is a hidden layer."""
    base = _base(model)
    if layer == 0:
        return _module(base.get_submodule(_paths(base, EMBEDDINGS)[-1]))
    module = _layer(model, layer)
    if layer == depth(model) and (last := _after_last(base)) is not None:
        return last
    first = [path for path in _family(base).first_layer if layer == 1 and _has(base, path)]
    return _module(base.get_submodule(first[0])) if first else module


# --- frozen pieces of a model --------------------------------------------------------------------


def pieces_of(
    model: torch.nn.Module, layers: tuple[int, ...], *, embeddings: bool
) -> dict[str, dict[str, Tensor]]:
    """Weights by piece, `embeddings` and `layer.<l>`, named as in the base model's state dict.

    A layer's piece holds all that `project`, `scores` and `run_layer` read of it. The tensors are
    the model's own, detached, but for those that several layers share, which are copies: a
    safetensors file takes no tensor twice. Raises ShapeError for a layer that is not there.
    """
    base = _base(model)
    for module in [base.embeddings] * embeddings + [_layer(model, layer) for layer in layers]:
        _require_present(module)
    shared = tuple(f"{path}." for path in _family(base).each_layer)
    wanted = [EMBEDDINGS] * embeddings + [f"{_LAYER}{layer}" for layer in layers]
    return {
        piece: {
            name: weight.clone() if name.startswith(shared) else weight
            for name, weight in _weights(base, piece).items()
        }
        for piece in wanted
    }


def config_json(model: torch.nn.Module) -> str:
    """What `skeleton` needs to know of a model, as JSON with sorted keys."""
    base = _base(model)
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
    known = [EMBEDDINGS, *(f"{_LAYER}{layer}" for layer in range(1, depth(base) + 1))]
    for piece in pieces:
        _require_tensors(base, piece, pieces[piece], known)
    weights = _merged(pieces)
    present = {path for piece in pieces for path in _paths(base, piece)}
    for path in {path for piece in known for path in _paths(base, piece)} - present:
        base.set_submodule(path, _Absent(path))
    base.pooler = None
    base.load_state_dict(weights, strict=True, assign=True)
    _fill_buffers(base)
    return _module(base.requires_grad_(False).eval())


class _Absent(torch.nn.Module):
    """What stands where a skeleton has no weights."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, *_args: Any, **_named: Any) -> None:
        _require_present(self)


def _require_present(module: Any) -> None:
    if isinstance(module, _Absent):
        raise DataError("not among the pieces that this model was built from", where=module.path)


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
        for path in _paths(base, piece)
        for name, weight in base.get_submodule(path).state_dict(prefix=f"{path}.").items()
    }


def _paths(base: Any, piece: str) -> list[str]:
    """Paths of the modules that a piece is made of, where this model has them."""
    family = _family(base)
    if piece == EMBEDDINGS:
        paths = family.embeddings
    else:
        layer = int(piece.removeprefix(_LAYER))
        paths = (f"{family.layers}.{layer - 1}", *family.each_layer)
        paths += family.first_layer if layer == 1 else ()
        paths += family.last_layer if layer == depth(base) else ()
    return [path for path in paths if _has(base, path)]


def _has(base: Any, path: str) -> bool:
    """Whether there is a module at that path; an attribute may also be None, or not there."""
    try:
        base.get_submodule(path)
    except AttributeError:
        return False
    return True


# --- finding one's way in a model ----------------------------------------------------------------


def _base(model: torch.nn.Module) -> Any:
    """The encoder without its head."""
    return model.base_model


def _family(base: Any) -> Family:
    require_family(base.config.model_type)
    return BY_NAME[base.config.model_type]


def _attention_family(model: torch.nn.Module) -> Family:
    base = _base(model)
    require_attention(base.config.model_type)
    return _family(base)


def _layer(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    modules = layers_of(model)
    if not 1 <= layer <= len(modules):
        raise ShapeError(
            "the model has no such layer", expected=f"layers 1 to {len(modules)}", found=layer
        )
    _require_present(modules[layer - 1])
    return modules[layer - 1]


def _after_last(base: Any) -> torch.nn.Module | None:
    """What makes the last hidden state of the last layer's output, if anything does."""
    paths = _family(base).last_layer
    return _module(base.get_submodule(paths[0])) if paths else None


def _qkv(outputs: list[Tensor]) -> QKV:
    queries_BTD, keys_BTD, values_BTD = (
        outputs[0].chunk(3, dim=-1) if len(outputs) == 1 else outputs
    )
    return QKV(queries_BTD, keys_BTD, values_BTD)


def _tensor(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    value = output[0] if isinstance(output, tuple) else output
    assert isinstance(value, Tensor)
    return value


def _module(value: Any) -> torch.nn.Module:
    assert isinstance(value, torch.nn.Module)
    return value
