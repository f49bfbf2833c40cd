"""Teachers of which is known what a narrower student can keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from tasks.kd.encoders.shape import layers_of
from tasks.kd.students.layouts import embedding_norm, embedding_projection, layout_of, linear, norm
from tests.makers.small_families import small

NARROW, WIDE = 16, 32
GAIN = 0.8


def of_shape(family: str, width: int, *, heads: int = 4, neurons: int = 48) -> Any:
    """A small family's classifier in another shape; ELECTRA's tables stay 24 wide."""
    if family == "distilbert":
        return small(family, dim=width, n_heads=heads, hidden_dim=neurons)
    return small(family, hidden_size=width, num_attention_heads=heads, intermediate_size=neurons)


def even(model: Any) -> Any:
    """The same with one gain for all channels in each norm, which any basis carries exactly."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(GAIN)
    return model


def turned(have: int, width: int) -> torch.Tensor:
    """Orthonormal columns [have, width], at random, that take the mean over channels to itself."""
    generator = torch.Generator().manual_seed(7)
    bases = []
    for size in (have, width):
        rest = torch.randn(size, width - 1, generator=generator, dtype=torch.float64)
        ones = torch.ones(size, 1, dtype=torch.float64)
        basis, _ = torch.linalg.qr(torch.cat([ones, rest], 1))
        bases.append(basis * basis[0, 0].sign())
    columns: torch.Tensor = bases[0] @ bases[1].T
    return columns


@dataclass(frozen=True)
class _Heads:
    """Where a narrow model's rows of queries, keys and values stand in a wide one: [32, 16]."""

    places: torch.Tensor
    factor: float  # of queries and of keys: their products are divided by the root of the width
    idle: bool  # whether keys are 0 where nothing stands


def pair(
    family: str,
    *,
    noise: float = 0.0,
    channels: bool = False,
    thin_heads: Literal["channels", "turned"] | None = None,
) -> tuple[Any, Any]:
    """A narrow model, and the same function of twice the width: heads, neurons, head's neurons.

    The wide one's states are the narrow one's, turned, or put into every second of its channels
    (which no LayerNorm quite allows: the mean over all channels is another). Every other of its
    heads and neurons, the first included, writes nothing; or, with thin heads, half of each head,
    which may be turned as well. Then each weight gets some noise, as a share of its matrix's size.
    """
    count = 4 if thin_heads else 2
    narrow = even(of_shape(family, NARROW, heads=count, neurons=24))
    wide = even(of_shape(family, WIDE, heads=4, neurons=48))
    columns = torch.eye(WIDE, dtype=torch.float64)[:, ::2] if channels else turned(WIDE, NARROW)
    second_and_fourth = torch.eye(WIDE).unflatten(1, (4, -1))[:, 1::2].flatten(1)
    head = _Heads(second_and_fourth, 1.0, False)
    if thin_heads:
        rows = turned(8, 4) if thin_heads == "turned" else torch.eye(8, dtype=torch.float64)[:, ::2]
        head = _Heads(torch.block_diag(*[rows.float()] * 4), 2**0.25, True)
    with torch.no_grad():
        _widen(wide, narrow, columns.float() * (WIDE / NARROW) ** 0.5, head)
        torch.manual_seed(3)
        for weight in wide.parameters():
            weight.add_(noise * weight.std() * torch.randn_like(weight))
    return narrow, wide


def _widen(wide: Any, narrow: Any, columns: torch.Tensor, head: _Heads) -> None:
    layout, back = layout_of(narrow), columns * NARROW / WIDE
    own, theirs = wide.base_model, narrow.base_model
    project, from_project = embedding_projection(wide), embedding_projection(narrow)
    for name, table in theirs.embeddings.named_children():
        if isinstance(table, torch.nn.Embedding):
            rows = table.weight @ columns.T if project is None else table.weight
            own.embeddings.get_submodule(name).weight.copy_(rows)
    if project is None or from_project is None:
        embedding_norm(wide).bias.copy_(columns @ embedding_norm(narrow).bias)
    else:
        embedding_norm(wide).load_state_dict(embedding_norm(narrow).state_dict())
        _write(project, from_project, columns)
    for target, source in zip(layers_of(wide), layers_of(narrow), strict=True):
        for path, factor in zip(layout.projections, (head.factor, head.factor, 1), strict=True):
            _read(linear(target, path), linear(source, path), back, factor * head.places)
        if head.idle:
            keys = linear(target, layout.projections[1])
            keys.weight.copy_(head.places @ head.places.T @ keys.weight)
            keys.bias.copy_(head.places @ head.places.T @ keys.bias)
        attended = linear(target, layout.attended)
        _write(attended, linear(source, layout.attended), columns)
        attended.weight.copy_(attended.weight @ _every_second(WIDE) @ head.places.T)
        _read(linear(target, layout.up), linear(source, layout.up), back)
        _write(linear(target, layout.down), linear(source, layout.down), columns)
        for path in (layout.attended_norm, layout.norm):
            norm(target, path).bias.copy_(columns @ norm(source, path).bias)
    _read(linear(wide, layout.pooled), linear(narrow, layout.pooled), back)
    classifier = linear(wide, layout.classifier)
    classifier.weight.copy_(linear(narrow, layout.classifier).weight @ _every_second(WIDE).T)
    classifier.bias.copy_(linear(narrow, layout.classifier).bias)


def _read(
    own: torch.nn.Linear,
    theirs: torch.nn.Linear,
    back: torch.Tensor,
    places: torch.Tensor | None = None,
) -> None:
    """Outputs that the narrow one lacks stay what they are."""
    if places is None:
        places = _every_second(own.out_features)
    unit = places / places.norm(dim=0)
    own.weight.add_(places @ theirs.weight @ back.T - unit @ unit.T @ own.weight)
    own.bias.add_(places @ theirs.bias - unit @ unit.T @ own.bias)


def _write(own: torch.nn.Linear, theirs: torch.nn.Linear, columns: torch.Tensor) -> None:
    """Inputs that the narrow one lacks are not read."""
    wide_inputs = own.in_features != theirs.in_features
    places = _every_second(own.in_features) if wide_inputs else torch.eye(own.in_features)
    own.weight.copy_(columns @ theirs.weight @ places.T)
    own.bias.copy_(columns @ theirs.bias)


def _every_second(count: int) -> torch.Tensor:
    """Where a narrow model's outputs stand among so many of a wide one's."""
    return torch.eye(count)[:, 1::2]
