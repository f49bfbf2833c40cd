"""What of a teacher the levels read, and what of it must be stored. Standard library only.

A stream is something that a level reads of the teacher: `logits`, `hidden.<l>` (layer 0 is the
embedding output), `attention.<l>` (the scores of layer l before the softmax), `relation.<l>` (its
queries, keys and values). Only logits and hidden states are ever stored: the rest is computed
from them and from frozen pieces of the teacher when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

STREAM = r"^(logits|hidden\.(0|[1-9][0-9]{0,2})|(attention|relation)\.[1-9][0-9]{0,2})$"
Recompute = Literal["projections", "layers"]


@dataclass(frozen=True)
class Plan:
    """How streams are served: `stored` on disk, `computed` from them with the frozen `pieces`."""

    stored: tuple[str, ...]
    computed: tuple[str, ...]
    pieces: tuple[str, ...]


def plan_streams(streams: Iterable[str], recompute: Recompute) -> Plan:
    """The least that must be stored so that every one of the streams can be served.

    Attention and relations of layer l come from hidden layer l-1 by the layer's own projections,
    layer 0 from the token ids by the embeddings. With `layers`, a layer whose input is at hand for
    its attention or relations anyway is run again, instead of storing its output too.

    >>> plan_streams(["logits", "hidden.3", "attention.3"], "projections")
    Plan(stored=('logits', 'hidden.2', 'hidden.3'), computed=('attention.3',), pieces=('layer.3',))
    >>> plan_streams(["logits", "hidden.3", "attention.3"], "layers")
    Plan(stored=('logits', 'hidden.2'), computed=('attention.3', 'hidden.3'), pieces=('layer.3',))
    """
    wanted = set(streams)
    projected = {layer_of(s) for s in wanted if kind_of(s) in ("attention", "relation")}
    hidden = {layer_of(s) for s in wanted if kind_of(s) == "hidden"}
    again = {layer for layer in hidden & projected if recompute == "layers"}
    states = (hidden - again) | {layer - 1 for layer in projected}
    stored = {f"hidden.{layer}" for layer in states if layer} | (wanted & {"logits"})
    pieces = [f"layer.{layer}" for layer in sorted(projected)]
    return Plan(
        stored=in_order(stored),
        computed=in_order(wanted - stored),
        pieces=(("embeddings",) if 0 in states else ()) + tuple(pieces),
    )


def kind_of(stream: str) -> str:
    """`logits`, `hidden`, `attention` or `relation`."""
    return stream.partition(".")[0]


def layer_of(stream: str) -> int:
    """The layer in a stream's name; -1 for `logits`."""
    return int(stream.partition(".")[2] or -1)


def in_order(streams: Iterable[str]) -> tuple[str, ...]:
    """Logits first, then by layer, then by kind.

    >>> in_order(["hidden.4", "attention.4", "hidden.0", "logits"])
    ('logits', 'hidden.0', 'attention.4', 'hidden.4')
    """
    return tuple(sorted(streams, key=lambda s: (layer_of(s), kind_of(s))))


def state_bytes(codec: str, width: int) -> int:
    """Bytes of one token's hidden state in a codec: int8 has a float16 scale per token."""
    return {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}[codec] * width + (
        2 if codec == "int8" else 0
    )


def stream_bytes(stream: str, codec: str, width: int, *, examples: int, tokens: int) -> int:
    """Bytes of a stored stream: values, token ids, keys and offsets. `width` is C for logits."""
    values = 4 * width * examples if stream == "logits" else state_bytes(codec, width) * tokens
    return values + 4 * tokens + 24 * examples


def naive_bytes(
    streams: Sequence[str], *, width: int, heads: int, tokens_per_example: float
) -> int:
    """Bytes per token if every stream were kept as it is read, in float32: what a plan saves on.

    A row of attention scores is as long as the text. Logits are left out: they are per example.
    """
    sizes = {
        "logits": 0.0,
        "hidden": 4.0 * width,
        "attention": 4.0 * heads * tokens_per_example,
        "relation": 12.0 * width,
    }
    return round(sum(sizes[kind_of(stream)] for stream in streams))
