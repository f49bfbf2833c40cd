"""From texts to the encoded streams of one shard: the teacher's passes, and the codecs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from tasks.kd.cache.format.codec import Codec, Encoded, Statistics, encode, is_finite
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.data.examples.batching import split_by_tokens
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.errors import NonFiniteLossError
from tasks.kd.targets.targets import run_teacher


def encode_shard(
    job: CacheJob,
    texts: Sequence[Ids],
    codecs: Mapping[str, Codec],
    statistics: Mapping[str, Statistics | None],
    on_tokens: Callable[[int], None],
) -> dict[str, Encoded]:
    """The encoded streams of one shard's texts, filled batch by batch."""
    lengths = np.asarray([len(ids) for ids in texts], dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    shard: dict[str, Encoded] = {}
    for piece in split_by_tokens(
        np.arange(len(texts)), lengths, max_tokens=job.params.batch_tokens
    ):
        for stream, states in _run(job, [texts[i] for i in piece], codecs):
            begins = texts[piece[0]][:8].tolist()
            encoded = _encode(stream, states, codecs[stream], statistics[stream], begins)
            is_logits = stream == "logits"
            rows = len(texts) if is_logits else int(ends[-1])
            at = int(piece[0]) if is_logits else int(ends[piece[0]])
            if stream not in shard:
                shard[stream] = _empty_like(encoded, rows)
            shard[stream].values[at : at + len(states)] = encoded.values
            if encoded.scale is not None:
                shard[stream].scale[at : at + len(states)] = encoded.scale  # type: ignore[index]
        on_tokens(int(lengths[piece].sum()))
    return shard


def _run(
    job: CacheJob, texts: Sequence[Ids], streams: Mapping[str, Codec]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Stored streams of a batch, padding dropped: logits [B, C], hidden [tokens, D]."""
    ids_BT, mask_BT = pad(texts, job.pad_id)
    for name, value in run_teacher(job.teacher, ids_BT, mask_BT, streams).items():
        yield name, value if name == "logits" else value[mask_BT]


def _encode(
    stream: str,
    states: torch.Tensor,
    codec: Codec,
    statistics: Statistics | None,
    begins: list[int],
) -> Encoded:
    """States in the codec's form. Raises NonFiniteLossError, naming the stream, if they have none.

    `begins` are the first token ids of the batch, by which an error names it.
    """
    encoded = Encoded(states) if statistics is None else encode(states, codec, statistics)
    if not is_finite(encoded):
        if not bool(torch.isfinite(states).all()):
            raise NonFiniteLossError(
                f"the teacher's {stream} holds NaN or infinity",
                where=f"the batch whose first text begins {begins}",
                advice="Its weights or its training are at fault; nothing was kept of this shard.",
            )
        raise NonFiniteLossError(
            f"{stream} has values that overflow {codec}",
            where="cache_teacher.codec",
            advice="Set it to bfloat16 or float32.",
        )
    return encoded


def _empty_like(encoded: Encoded, rows: int) -> Encoded:
    def empty(like: torch.Tensor) -> torch.Tensor:
        return torch.empty((rows, *like.shape[1:]), dtype=like.dtype)

    scale = empty(encoded.scale) if encoded.scale is not None else None
    return Encoded(empty(encoded.values), scale)
