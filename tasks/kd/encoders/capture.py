"""Hidden states and projections that a model leaves while it runs.

B examples, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.kd.encoders.files.architectures import EMBEDDINGS
from tasks.kd.encoders.running import QKV, qkv_of
from tasks.kd.encoders.shape import (
    after_last,
    as_module,
    attention_family_of,
    base_of,
    depth,
    family_of,
    first_tensor,
    has_module,
    layer_of,
    paths_of,
)


@dataclass(frozen=True)
class Captured:
    """What the last forward pass left, by layer: hidden states [B, T, D], and projections."""

    hidden: dict[int, Tensor]
    qkv: dict[int, QKV]


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
        family = attention_family_of(model)
        for layer in projected:
            parts: dict[int, Tensor] = {}
            for place, path in enumerate(family.projections):
                hook = _collect(captured, layer, parts, (place, len(family.projections)))
                wanted.append((layer_of(model, layer).get_submodule(path), hook))
    handles = [module.register_forward_hook(hook) for module, hook in wanted]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture_hidden(model: torch.nn.Module, layers: tuple[int, ...]) -> Iterator[dict[int, Tensor]]:
    """While open, each forward pass of the model leaves its hidden states [B, T, D] here.

    This is `capture` without projections.
    """
    with capture(model, layers, ()) as captured:
        yield captured.hidden


def _keep(states: dict[int, Tensor], layer: int) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        states[layer] = first_tensor(output)

    return hook


def _collect(
    captured: Captured, layer: int, parts: dict[int, Tensor], which: tuple[int, int]
) -> Any:
    """A hook on one of the projections; with the last of them, the layer's QKV is whole."""
    place, count = which

    def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
        parts[place] = output
        if len(parts) == count:
            captured.qkv[layer] = qkv_of([parts.pop(i) for i in range(count)])

    return hook


def _state_module(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    """The module whose output is a hidden layer."""
    base = base_of(model)
    if layer == 0:
        return as_module(base.get_submodule(paths_of(base, EMBEDDINGS)[-1]))
    module = layer_of(model, layer)
    if layer == depth(model) and (last := after_last(base)) is not None:
        return last
    first = [path for path in family_of(base).first_layer if layer == 1 and has_module(base, path)]
    return as_module(base.get_submodule(first[0])) if first else module
