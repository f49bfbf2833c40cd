"""What a cache will take and cost, from a recipe's figures alone.

No teacher, no data and no torch are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tasks.kd.recipe.streams import (
    Plan,
    Recompute,
    in_order,
    kind_of,
    layer_of,
    naive_bytes,
    plan_streams,
    stream_bytes,
)

CODECS = ("float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Teacher:
    """A teacher's shape: `width` and `intermediate` in channels, `heads` per layer."""

    layers: int
    width: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class Texts:
    """What is cached: examples, their real tokens, and the classes of the teacher's head."""

    examples: int
    tokens: int
    labels: int


_NONE = Texts(0, 0, 0)


@dataclass(frozen=True)
class Served:
    """How one stream is served. A computed stream has a piece that computes it, and takes no bytes.

    `needed_for` names the streams that are computed from it. `bytes_per_example` comes on top of
    `bytes_per_token`; of logits it holds four bytes per label once the labels are known. `bytes`
    is None before that.
    """

    stream: str
    read: bool
    stored: bool
    source: str | None
    piece: str | None
    needed_for: tuple[str, ...]
    bytes_per_token: int
    bytes_per_example: int
    bytes: int | None


@dataclass(frozen=True)
class Size:
    """Bytes of all stored streams in one codec, per token and in all.

    Bytes per example are spread over the tokens.
    """

    bytes_per_token: float
    bytes: int | None


@dataclass(frozen=True)
class Estimate:
    """What a cache takes, by stream and by codec, and what reading it costs.

    `naive_bytes_per_token` is the float32 content of all that is read, for texts of
    `tokens_per_example`. `recompute_share` is of the teacher's forward pass; `break_even` is in
    epochs, infinite where the cache never pays.
    """

    served: tuple[Served, ...]
    sizes: dict[str, Size]
    tokens_per_example: float
    naive_bytes_per_token: int
    recompute_share: float
    break_even: float


def estimate(
    streams: Iterable[str],
    recompute: Recompute,
    codec: str,
    teacher: Teacher,
    *,
    longest: int,
    texts: Texts | None,
) -> Estimate:
    """What the cache of those streams takes and costs.

    Before there are texts they are taken to be as long as the `longest`, in tokens. It holds if
    no stream is kept in float32 because the codec was too coarse for it; equal texts, which are
    stored once, and the frozen pieces of the teacher are not in it.
    """
    read = in_order(set(streams))
    planned = plan_streams(read, recompute)
    length = texts.tokens / max(1, texts.examples) if texts is not None else float(longest)
    share = recompute_share(planned, teacher)
    return Estimate(
        served=tuple(
            _serve(stream, set(read), planned, codec, teacher.width, texts)
            for stream in in_order({*read, *planned.stored})
        ),
        sizes={name: _size(planned, name, teacher.width, length, texts) for name in CODECS},
        tokens_per_example=length,
        naive_bytes_per_token=naive_bytes(
            read, width=teacher.width, heads=teacher.heads, tokens_per_example=length
        ),
        recompute_share=share,
        break_even=break_even(share),
    )


def stored_bytes(codecs: Mapping[str, str], *, width: int, texts: Texts) -> int:
    """Bytes of stored streams in their codecs: values, token ids, keys and offsets.

    `width` is the teacher's. The shards' headers, a few hundred bytes each, are left out.
    """
    return sum(
        stream_bytes(
            stream,
            codec,
            texts.labels if stream == "logits" else width,
            examples=texts.examples,
            tokens=texts.tokens,
        )
        for stream, codec in codecs.items()
    )


def recompute_share(planned: Plan, teacher: Teacher) -> float:
    """The work of computing streams at each reading, as a share of the teacher's forward pass.

    Multiply-adds per token, with d the width and i the intermediate width: a layer has
    4·d² + 2·d·i (queries, keys, values and output; the two feed-forward matrices), the queries,
    keys and values of a layer alone 3·d². The scores, which grow with the text, the embeddings,
    which are looked up, and the head are left out on both sides. A layer that is run again counts
    as one layer, and its queries, keys and values once more, as they are computed apart.
    """
    d, layer = teacher.width, 4 * teacher.width**2 + 2 * teacher.width * teacher.intermediate
    projected = sum(piece.startswith("layer.") for piece in planned.pieces)
    again = sum(kind_of(stream) == "hidden" and layer_of(stream) > 0 for stream in planned.computed)
    return (projected * 3 * d**2 + again * layer) / (teacher.layers * layer)


def break_even(share: float) -> float:
    """Epochs e at which the cache has cost no more than a live teacher; beyond, it is quicker.

    A live teacher costs e forward passes, the cache one, to write it, and then `share` of one an
    epoch: e = 1 + e·share. Reading and writing are taken to be free, which they are not quite;
    `mode: auto` measures.
    """
    return 1 / (1 - share) if share < 1 else float("inf")


def _serve(
    stream: str, read: set[str], planned: Plan, codec: str, width: int, texts: Texts | None
) -> Served:
    stored = stream in planned.stored
    layer = layer_of(stream)
    per_token, per_example = _row_bytes(stream, codec, width, texts) if stored else (0, 0)
    total = stored_bytes({stream: codec} if stored else {}, width=width, texts=texts or _NONE)
    return Served(
        stream=stream,
        read=stream in read,
        stored=stored,
        source=None if stored else source_of(stream),
        piece=None if stored else (f"layer.{layer}" if layer else "embeddings"),
        needed_for=tuple(s for s in planned.computed if source_of(s) == stream),
        bytes_per_token=per_token,
        bytes_per_example=per_example,
        bytes=total if texts is not None or not stored else None,
    )


def source_of(computed: str) -> str:
    """The stream, or the token ids, that a computed stream is computed from."""
    layer = layer_of(computed)
    return f"hidden.{layer - 1}" if layer else "the token ids"


def _row_bytes(stream: str, codec: str, width: int, texts: Texts | None) -> tuple[int, int]:
    """Bytes per token of a stored stream and, on top, per example."""
    labels = texts.labels if texts is not None else 0
    per_token, per_example = (
        stored_bytes({stream: codec}, width=width, texts=one)
        for one in (Texts(0, 1, labels), Texts(1, 0, labels))
    )
    return per_token, per_example


def _size(planned: Plan, codec: str, width: int, length: float, texts: Texts | None) -> Size:
    rows = [_row_bytes(stream, codec, width, texts) for stream in planned.stored]
    codecs = dict.fromkeys(planned.stored, codec)
    return Size(
        sum(per_token + per_example / max(length, 1) for per_token, per_example in rows),
        None if texts is None else stored_bytes(codecs, width=width, texts=texts),
    )
