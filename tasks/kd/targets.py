"""What the objective asks of a teacher: one interface, served from the cache or by the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from tasks.kd.data import Ids
from tasks.kd.encoders import capture_hidden
from tasks.kd.shapes import require_shape


class Targets(Protocol):
    """The teacher's streams for given examples, padded with zeros to the longest."""

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """`logits` [B, C] and `hidden.<l>` [B, T, D], float32."""
        ...


class NoTargets:
    """For training on labels alone."""

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Nothing."""
        return {}


class LiveTargets:
    """The teacher itself, run on each batch in eval mode."""

    def __init__(self, teacher: torch.nn.Module, streams: tuple[str, ...], *, pad_id: int) -> None:
        self._teacher, self._streams, self._pad_id = teacher.eval(), streams, pad_id
        self._layers = hidden_layers(streams)

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """One forward pass over the padded batch."""
        ids_BT, mask_BT = pad(input_ids, self._pad_id)
        streams = run_teacher(self._teacher, ids_BT, mask_BT, self._layers)
        return {
            name: value * mask_BT.unsqueeze(-1) if value.dim() == 3 else value
            for name, value in streams.items()
            if name in self._streams
        }


@torch.no_grad()
def run_teacher(
    teacher: torch.nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor, layers: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """The streams of one padded batch: `logits` and the hidden states of the given layers.

    Raises ShapeError if the mask is not the ids' shape.
    """
    require_shape("attention mask", mask_BT, tuple(ids_BT.shape))
    with capture_hidden(teacher, layers) as states:
        logits = teacher(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
    return {"logits": logits, **{f"hidden.{layer}": states[layer] for layer in layers}}


def hidden_layers(streams: Sequence[str]) -> tuple[int, ...]:
    """The layers of the hidden streams among the given ones, in order."""
    return tuple(sorted(int(s.removeprefix("hidden.")) for s in streams if s != "logits"))


def pad(input_ids: Sequence[Ids], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] int64, padded to the longest, and the mask [B, T] bool."""
    longest = max(len(ids) for ids in input_ids)
    ids_BT = torch.full((len(input_ids), longest), pad_id, dtype=torch.int64)
    mask_BT = torch.zeros((len(input_ids), longest), dtype=torch.bool)
    for row, ids in enumerate(input_ids):
        ids_BT[row, : len(ids)] = torch.from_numpy(ids)
        mask_BT[row, : len(ids)] = True
    return ids_BT, mask_BT
