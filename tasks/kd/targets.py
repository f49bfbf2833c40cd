"""What the objective asks of a teacher: one interface, served from the cache or by the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch

from tasks.kd.cache.streams import kind_of, layer_of
from tasks.kd.data import Ids
from tasks.kd.families import QKV, capture, project, run_layer, scores
from tasks.kd.shapes import require_shape


class Targets(Protocol):
    """The teacher's streams for given examples, padded to the longest."""

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """Float32, by stream name.

        `logits` [B, C], `hidden.<l>` [B, T, D], `attention.<l>` [B, H, T, T] (scores before the
        softmax), `relation.<l>` [B, T, 3, D] (queries, keys, values). Hidden states and relations
        are zero at padding; what attention holds there means nothing.
        """
        ...


class NoTargets:
    """For training on labels alone."""

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Nothing."""
        return {}


class LiveTargets:
    """The teacher itself, run on each batch in eval mode."""

    def __init__(self, teacher: torch.nn.Module, streams: Iterable[str], *, pad_id: int) -> None:
        self._teacher, self._streams, self._pad_id = teacher.eval(), tuple(streams), pad_id

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """One forward pass over the padded batch."""
        ids_BT, mask_BT = pad(input_ids, self._pad_id)
        streams = run_teacher(self._teacher, ids_BT, mask_BT, self._streams)
        return {
            name: zero_padding(value, mask_BT) if kind_of(name) in ("hidden", "relation") else value
            for name, value in streams.items()
        }


@torch.no_grad()
def run_teacher(
    teacher: torch.nn.Module,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    streams: Iterable[str],
) -> dict[str, torch.Tensor]:
    """The given streams of one padded batch, from one forward pass with hooks on what they need.

    Raises ShapeError if the mask is not the ids' shape.
    """
    require_shape("attention mask", mask_BT, tuple(ids_BT.shape))
    streams = tuple(streams)
    hidden = tuple(sorted({layer_of(s) for s in streams if kind_of(s) == "hidden"}))
    projected = {layer_of(s) for s in streams if kind_of(s) in ("attention", "relation")}
    with capture(teacher, hidden, tuple(sorted(projected))) as captured:
        logits = teacher(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
    found = {}
    for name in streams:
        layer = layer_of(name)
        if name == "logits":
            found[name] = logits
        elif kind_of(name) == "hidden":
            found[name] = captured.hidden[layer]
        elif kind_of(name) == "attention":
            found[name] = scores(teacher, layer, captured.qkv[layer], mask_BT)
        else:
            found[name] = together(captured.qkv[layer])
    return found


@torch.no_grad()
def derive(
    frozen: torch.nn.Module,
    streams: Iterable[str],
    states: Mapping[int, torch.Tensor],
    mask_BT: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Streams that are computed from hidden states `[B, T, D]` by layer, with the frozen pieces."""
    found: dict[str, torch.Tensor] = {}
    projections: dict[int, QKV] = {}
    for name in streams:
        layer = layer_of(name)
        if kind_of(name) == "hidden":
            before = states[layer - 1] if layer else None
            state = states[0] if before is None else run_layer(frozen, layer, before, mask_BT)
            found[name] = zero_padding(state, mask_BT)
            continue
        if layer not in projections:
            projections[layer] = project(frozen, layer, states[layer - 1])
        if kind_of(name) == "attention":
            found[name] = scores(frozen, layer, projections[layer], mask_BT)
        else:
            found[name] = zero_padding(together(projections[layer]), mask_BT)
    return found


def together(qkv: QKV) -> torch.Tensor:
    """Queries, keys and values as one tensor `[B, T, 3, D]`."""
    return torch.stack([qkv.queries_BTD, qkv.keys_BTD, qkv.values_BTD], dim=2)


def zero_padding(value: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """`[B, T, ...]` with zeros where the mask is false."""
    return value * mask_BT.reshape(*mask_BT.shape, *[1] * (value.dim() - 2))


def pad(input_ids: Sequence[Ids], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] int64, padded to the longest, and the mask [B, T] bool."""
    longest = max(len(ids) for ids in input_ids)
    ids_BT = torch.full((len(input_ids), longest), pad_id, dtype=torch.int64)
    mask_BT = torch.zeros((len(input_ids), longest), dtype=torch.bool)
    for row, ids in enumerate(input_ids):
        ids_BT[row, : len(ids)] = torch.from_numpy(ids)
        mask_BT[row, : len(ids)] = True
    return ids_BT, mask_BT
