"""One piece of a model run by itself: the embeddings, a layer, its projections and its scores.

Values are those that transformers computes, under whatever attention kernel the model was loaded
with; nothing here asks for `output_attentions`, which is empty under SDPA and, in training, comes
after dropout.

B examples, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
)
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from tasks.kd.encoders.files.architectures import EMBEDDINGS
from tasks.kd.encoders.shape import (
    after_last,
    attention_family_of,
    base_of,
    depth,
    first_tensor,
    heads,
    layer_of,
    paths_of,
    require_present,
)
from tasks.kd.shapes import require_shape

_LOCAL = "sliding_attention"


@dataclass(frozen=True)
class QKV:
    """Queries, keys and values as projected: heads side by side, before any rotary rotation."""

    queries_BTD: Tensor
    keys_BTD: Tensor
    values_BTD: Tensor


def embed(model: torch.nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Hidden layer 0 [B, T, D] of token ids int64, as transformers' `hidden_states[0]`.

    ELECTRA's is the one after `embeddings_project`; DeBERTa's is zero where the mask is.
    """
    base = base_of(model)
    require_present(base.embeddings)
    if base.config.model_type == "deberta-v2":
        return first_tensor(base.embeddings(input_ids=ids_BT, mask=mask_BT.long()))
    state_BTD = base.embeddings(input_ids=ids_BT)
    for path in paths_of(base, EMBEDDINGS)[1:]:
        state_BTD = base.get_submodule(path)(state_BTD)
    return first_tensor(state_BTD)


def run_layer(model: torch.nn.Module, layer: int, state_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Hidden layer `layer` [B, T, D] from the one below it, as transformers' `hidden_states`.

    ModernBERT's last one is the state after `final_norm`. `mask_BT` is true, or 1, at real tokens.
    Raises ShapeError for a layer that the model does not have.
    """
    base, module = base_of(model), layer_of(model, layer)
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
    last = after_last(base) if layer == depth(model) else None
    return first_tensor(output) if last is None else first_tensor(last(first_tensor(output)))


def _run_deberta(base: Any, layer: int, state_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    encoder = base.encoder
    output_BTD = first_tensor(
        encoder.layer[layer - 1](
            state_BTD,
            encoder.get_attention_mask(mask_BT),
            relative_pos=encoder.get_rel_pos(state_BTD),
            rel_embeddings=encoder.get_rel_embedding(),
        )
    )
    if layer == 1 and encoder.conv is not None:
        return first_tensor(encoder.conv(state_BTD, output_BTD, mask_BT))
    return output_BTD


def project(model: torch.nn.Module, layer: int, state_BTD: Tensor) -> QKV:
    """Queries, keys and values of a layer from the hidden layer below it.

    Where the family has a norm before its attention (ModernBERT), it is applied. Raises DataError
    for DeBERTa, ShapeError for a layer that the model does not have.
    """
    family, module = attention_family_of(model), layer_of(model, layer)
    if family.norm is not None:
        state_BTD = module.get_submodule(family.norm)(state_BTD)
    return qkv_of([module.get_submodule(path)(state_BTD) for path in family.projections])


def scores(model: torch.nn.Module, layer: int, qkv: QKV, mask_BT: Tensor) -> Tensor:
    """Scaled scores [B, H, T, T] before the softmax, queries × keys, with the positional terms.

    ModernBERT's queries and keys are rotated with the layer's own base, and pairs outside a local
    layer's window are -inf; MPNet's relative bias is added. Padded keys are not masked: the caller
    knows what to do with them. Raises as `project` does, and ShapeError for a mask of other shape.
    """
    attention_family_of(model)
    base, _ = base_of(model), layer_of(model, layer)
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
    return first_tensor(scores_BHTT)


def _rotary(base: Any, layer: int, state_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1, T, K] for ModernBERT's queries and keys in that layer."""
    places_1T = torch.arange(state_BTD.shape[1], device=state_BTD.device).unsqueeze(0)
    cos, sin = base.rotary_emb(state_BTD, places_1T, _layer_type(base, layer))
    return cos, sin


def _layer_type(base: Any, layer: int) -> str | None:
    """Whether a ModernBERT layer is local; None in families that know no such thing."""
    types = getattr(base.config, "layer_types", None)
    return None if types is None else str(types[layer - 1])


def qkv_of(outputs: list[Tensor]) -> QKV:
    """The outputs of a layer's projections, of three or of a fused one."""
    queries_BTD, keys_BTD, values_BTD = (
        outputs[0].chunk(3, dim=-1) if len(outputs) == 1 else outputs
    )
    return QKV(queries_BTD, keys_BTD, values_BTD)
