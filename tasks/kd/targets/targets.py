"""The live teacher as targets, and one batch's streams from it or from its frozen pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import torch

from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.capture import capture
from tasks.kd.encoders.running import QKV, embed, project, run_layer, scores
from tasks.kd.recipe.streams import kind_of, layer_of
from tasks.kd.shapes import require_shape


class LiveTargets:
    """The live teacher, run on each batch in evaluation mode."""

    def __init__(
        self,
        teacher: torch.nn.Module,
        streams: Iterable[str],
        *,
        pad_id: int,
        device: torch.device | None = None,
    ) -> None:
        """Run the teacher on `device`, if given: itself if it is there already, else a copy."""
        teacher = teacher.eval()
        if device is not None and device != device_of(teacher):
            teacher = deepcopy(teacher).to(device)
        self._teacher, self._streams, self._pad_id = teacher, tuple(streams), pad_id

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """Streams from one forward pass over the padded batch."""
        ids_BT, mask_BT = pad(input_ids, self._pad_id)
        streams = run_teacher(self._teacher, ids_BT, mask_BT, self._streams)
        return {
            name: zero_padding(value, mask_BT) if kind_of(name) in ("hidden", "relation") else value
            for name, value in streams.items()
        }


def own_device() -> torch.device:
    """This process's GPU, which Accelerate made current; the CPU if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of a model's weights; the CPU for a model without weights."""
    weight = next(model.parameters(), None)
    return weight.device if weight is not None else torch.device("cpu")


@torch.no_grad()
def run_teacher(
    teacher: torch.nn.Module,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    streams: Iterable[str],
) -> dict[str, torch.Tensor]:
    """Streams of one padded batch, from one forward pass with hooks on the needed modules.

    They are computed on the teacher's device in full float32 and moved to CPU memory. Shapes are
    those of `Targets.fetch`. Raises ShapeError if the mask has not the ids' shape.
    """
    require_shape("attention mask", mask_BT, tuple(ids_BT.shape))
    device = device_of(teacher)
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    streams = tuple(streams)
    hidden = tuple(sorted({layer_of(s) for s in streams if kind_of(s) == "hidden"}))
    projected = {layer_of(s) for s in streams if kind_of(s) in ("attention", "relation")}
    values = {}
    with _full_float32(device):
        with capture(teacher, hidden, tuple(sorted(projected))) as captured:
            logits = teacher(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
        for name in streams:
            layer = layer_of(name)
            if name == "logits":
                values[name] = logits
            elif kind_of(name) == "hidden":
                values[name] = captured.hidden[layer]
            elif kind_of(name) == "attention":
                values[name] = scores(teacher, layer, captured.qkv[layer], mask_BT)
            else:
                values[name] = together(captured.qkv[layer])
    return {name: value.cpu() for name, value in values.items()}


@torch.no_grad()
def derive(
    frozen: torch.nn.Module,
    streams: Iterable[str],
    states: Mapping[int, torch.Tensor],
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Streams computed from hidden states [B, T, D] by layer, with the teacher's frozen pieces.

    Layer 0 is computed from the token ids if it is needed and not among the states. Device and
    precision are those of `run_teacher`.
    """
    streams, device = tuple(streams), device_of(frozen)
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    inputs = {layer: states[layer].to(device) for layer in _layers_before(streams) & {*states}}
    values: dict[str, torch.Tensor] = {}
    projections: dict[int, QKV] = {}
    with _full_float32(device):
        if 0 in _layers_before(streams) - {*inputs}:
            inputs[0] = embed(frozen, ids_BT, mask_BT)
        for name in streams:
            layer = layer_of(name)
            if kind_of(name) == "hidden":
                state = run_layer(frozen, layer, inputs[layer - 1], mask_BT) if layer else inputs[0]
                values[name] = zero_padding(state, mask_BT)
                continue
            if layer not in projections:
                projections[layer] = project(frozen, layer, inputs[layer - 1])
            if kind_of(name) == "attention":
                values[name] = scores(frozen, layer, projections[layer], mask_BT)
            else:
                values[name] = zero_padding(together(projections[layer]), mask_BT)
    return {name: value.cpu() for name, value in values.items()}


def _layers_before(streams: Iterable[str]) -> set[int]:
    """The hidden layers that streams are computed from; hidden layer 0 counts as its own source."""
    return {max(layer_of(name) - 1, 0) for name in streams}


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Compute in full float32: neither autocast nor TF32, which keeps 10 of the 23 mantissa bits.

    Otherwise a cache would differ from a live teacher on a GPU by more than the codec explains. The
    settings are the process's: anything that trains meanwhile has them too.
    """
    kind, may_be_cast = device.type, torch.amp.is_autocast_available(device.type)
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(kind, enabled=False) if may_be_cast else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def together(qkv: QKV) -> torch.Tensor:
    """Queries, keys and values as one tensor [B, T, 3, D]."""
    return torch.stack([qkv.queries_BTD, qkv.keys_BTD, qkv.values_BTD], dim=2)


def zero_padding(value: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The value [B, T, ...] with zeros where the mask is false."""
    return value * mask_BT.reshape(*mask_BT.shape, *[1] * (value.dim() - 2))
