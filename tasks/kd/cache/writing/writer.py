"""Running the teacher once over all examples and keeping what the levels need of it.

Every stream is an entry of its own, so that a recipe which needs one more adds that one alone.
Finished shards are kept and only the rest is computed when a killed writer starts again: the
work list is a function of the examples and the settings alone, whoever does which part of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tasks.kd.cache.format.codec import Codec, Encoded, Statistics, encode, is_finite
from tasks.kd.cache.format.estimate import Texts, stored_bytes
from tasks.kd.cache.format.fingerprint import (
    FORMAT_VERSION,
    example_key,
    fingerprint,
    piece_fields,
    stream_fields,
)
from tasks.kd.cache.format.manifest import MANIFEST, Manifest, Piece, Stream
from tasks.kd.cache.store.store import Store, disk_faults
from tasks.kd.cache.writing.calibration import Calibrated
from tasks.kd.cache.writing.measuring import (
    STATISTICS,
    Measured,
    begin,
    begun,
    statistics_in,
    too_coarse,
)
from tasks.kd.cache.writing.shards import (
    commit_shard,
    commit_tensors,
    describe_file,
    find_shard,
    give_back,
    note_name,
    shard_tensors,
)
from tasks.kd.data.examples.batching import Rows, split_by_tokens
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.families import config_json, depth, pieces_of, width
from tasks.kd.encoders.loading import attention_kernel
from tasks.kd.errors import CacheQuotaError, DataError, NonFiniteLossError
from tasks.kd.recipe.streams import (
    Plan,
    layer_of,
    plan,
    state_bytes,
)
from tasks.kd.recipe.training import CacheTeacher
from tasks.kd.targets.targets import run_teacher

__all__ = [
    "STATISTICS",
    "WEIGHTS",
    "Job",
    "distinct",
    "fields_of",
    "job_bytes",
    "require_space",
    "work_list",
    "write_cache",
    "write_share",
]

WEIGHTS = "weights.safetensors"
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Job:
    """All that decides a cache's content.

    `exact` are the hidden streams that are kept in float32 because the recipe's codec was measured
    to be too coarse; whoever makes a job need not know them.
    """

    teacher: torch.nn.Module
    input_ids: Sequence[Ids]
    pad_id: int
    params: CacheTeacher
    base: Mapping[str, object]
    exact: frozenset[str] = frozenset()

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """The fields that the cache's fingerprint is taken over."""
        return fields_of(self.base, self.params)

    @cached_property
    def plan(self) -> Plan:
        """What is stored and what is computed."""
        return plan(self.params.streams, self.params.recompute)

    @cached_property
    def streams(self) -> dict[str, str]:
        """Fingerprint of each stored stream's entry."""
        return {name: fingerprint(self.fields_of(name)) for name in self.plan.stored}

    def codec_of(self, stream: str) -> Codec:
        """What a stored stream is to be kept in."""
        return "float32" if stream in self.exact else self.params.codec

    def fields_of(self, stream: str) -> dict[str, object]:
        """The fields that a stored stream's fingerprint is taken over."""
        return stream_fields(
            self.base,
            stream,
            codec=self.codec_of(stream),
            max_relative_error=self.params.max_relative_error,
        )

    @cached_property
    def pieces(self) -> dict[str, str]:
        """Fingerprint of each frozen piece's entry."""
        return {name: fingerprint(piece_fields(self.base, name)) for name in self.plan.pieces}


# Does a share of the shards, for each stream in its codec: in this process, or in several.
Spread = Callable[[dict[str, Codec]], None]


def fields_of(base: Mapping[str, object], params: CacheTeacher) -> dict[str, Any]:
    """The fields of a cache's fingerprint."""
    return {
        **base,
        "streams": sorted(params.streams),
        "codec": params.codec,
        "max_relative_error": params.max_relative_error,
        "recompute": params.recompute,
    }


def write_cache(
    job: Job,
    store: Store,
    *,
    on_tokens: Callable[[int], None],
    spread: Spread | None = None,
    on_coarse: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Make the cache, or find it made. One writer at a time; a second waits and finds it done.

    A stream for which the recipe's codec is too coarse, or too coarse for what is computed from it,
    is kept in float32: that is another entry of the store, the one of recipes that ask for it.

    `on_tokens` is called with the number of real tokens of each part that is finished, `on_coarse`
    with a line for each stream that was measured to need float32. `spread` runs `write_share` in
    several processes; without it this process does all. Raises CacheQuotaError before the first
    byte if it would not fit, NonFiniteLossError for a teacher whose states are not finite,
    DataError for one that computes in another way than the fingerprint says.
    """
    _require_kernel(job)
    job.teacher.eval()
    keys, texts = distinct(job.input_ids)
    measured = Measured(job, texts)
    while True:
        found = _write(job, store, (keys, texts, measured), on_tokens=on_tokens, spread=spread)
        if isinstance(found, Manifest):
            return found
        for reason in filter(None, found.values()):
            on_coarse(reason)
        job = replace(job, exact=job.exact | {*found})


def _write(
    job: Job,
    store: Store,
    content: tuple[Sequence[bytes], Sequence[Ids], Measured],
    *,
    on_tokens: Callable[[int], None],
    spread: Spread | None,
) -> Manifest | dict[str, str]:
    """As `write_cache`; or the streams that must be exact and are not, with the reason if new.

    Their entries are others: nothing was written of them, and no lock is held any more.
    """
    keys, texts, measured = content
    name = fingerprint(job.made_of)
    with store.writing([name, *job.streams.values(), *job.pieces.values()]):
        whole = store.finished(name)
        if isinstance(whole, Manifest) and (known := _exact_in(whole) - job.exact):
            return dict.fromkeys(known, "")
        entries = {stream: store.finished(at) for stream, at in job.streams.items()}
        pieces = {piece: _piece(job, store, piece) for piece in job.plan.pieces}
        lacking = [stream for stream, entry in entries.items() if not isinstance(entry, Stream)]
        if isinstance(whole, Manifest) and not lacking and _is_good(job, store, whole):
            return whole
        calibrated = {
            stream: begun(store.entry(job.streams[stream]))
            or measured.calibrate(stream, job.codec_of(stream))
            for stream in lacking
        }
        there = {stream: entry for stream, entry in entries.items() if isinstance(entry, Stream)}
        computed = measured.derived_errors(store, {**there, **calibrated})
        coarse = {
            stream: f"{stream} is kept in float32: {job.params.codec} was too coarse for it"
            for stream, found in calibrated.items()
            if stream != "logits" and found.codec != job.codec_of(stream)
        }
        if coarse := coarse or too_coarse(job, computed, {**there, **calibrated}):
            return coarse
        if lacking:
            measured.forget()
            require_space(job, texts, calibrated, store, there)
            for stream, found in calibrated.items():
                begin(store.entry(job.streams[stream]), found)
            codecs = {stream: found.codec for stream, found in calibrated.items()}
            if spread is None:
                write_share(job, store, codecs, on_tokens=on_tokens)
            else:
                spread(codecs)
            for stream in lacking:
                there[stream] = _finish(job, store, stream, (keys, texts, calibrated[stream]))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fingerprint=name,
            made_of=job.made_of,
            kind="cache",
            streams={stream: there[stream] for stream in job.streams},
            computed=computed,
            pieces=pieces,
            layers=depth(job.teacher),
        )
        manifest.write(store.entry(name) / MANIFEST)
        return manifest


def _exact_in(manifest: Manifest) -> set[str]:
    """The hidden streams of a cache that are not the entries of its own codec."""
    return {
        name
        for name, stream in manifest.streams.items()
        if name != "logits" and stream.made_of["codec"] != manifest.made_of["codec"]
    }


def _is_good(job: Job, store: Store, manifest: Manifest) -> bool:
    """Whether a cache is the one that would be written: all there, and as exact as it must be."""
    is_here = all(map(store.holds, manifest.entries))
    return is_here and not too_coarse(job, manifest.computed, manifest.streams)


def _require_kernel(job: Job) -> None:
    """Raise DataError for a teacher with another attention kernel than the fingerprint says."""
    numerics, found = job.base["numerics"], attention_kernel(job.teacher)
    said = numerics["attention"]  # type: ignore[index]
    if said != found:
        raise DataError(
            "the teacher's attention kernel is not what the cache's fingerprint says",
            expected=said,
            found=found,
        )


def write_share(
    job: Job,
    store: Store,
    codecs: Mapping[str, Codec],
    *,
    on_tokens: Callable[[int], None],
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Compute and commit every `world_size`-th shard, from the `rank`-th on.

    A shard that is there and whole is left alone. Writing one overlaps the next one's forward
    passes. `codecs` say what each stream is kept in, and with that which entry it is.
    """
    exact = {s for s, codec in codecs.items() if s != "logits" and codec != job.params.codec}
    job = replace(job, exact=frozenset(exact))
    keys, texts = distinct(job.input_ids)
    shards = work_list(texts, job)
    give_back()
    statistics = {s: statistics_in(store.entry(job.streams[s]) / STATISTICS) for s in codecs}
    with disk_faults(store.folder), ThreadPoolExecutor(1) as thread:
        writing: list[Future[None]] = []
        for number in range(rank, len(shards), world_size):
            rows = shards[number]
            raw = b"".join(keys[row] for row in rows)
            wanted = {
                stream: codec
                for stream, codec in codecs.items()
                if find_shard(store.entry(job.streams[stream]), number, raw) is None
            }
            if not wanted:
                on_tokens(sum(len(texts[row]) for row in rows))
                continue
            parts = _compute(job, [texts[row] for row in rows], wanted, statistics, on_tokens)
            for done in writing:
                done.result()
            give_back()
            writing = [
                thread.submit(
                    commit_shard,
                    store.entry(job.streams[stream]),
                    number,
                    shard_tensors(raw, [texts[row] for row in rows], encoded),
                )
                for stream, encoded in parts.items()
            ]
        for done in writing:
            done.result()


def distinct(input_ids: Sequence[Ids]) -> tuple[list[bytes], list[Ids]]:
    """Each distinct text once with its key, sorted by length and key."""
    found = {example_key(ids.astype("<i4").tobytes()): ids for ids in input_ids}
    order = sorted(found, key=lambda key: (len(found[key]), key))
    return order, [found[key] for key in order]


def work_list(texts: Sequence[Ids], job: Job) -> list[Rows]:
    """The rows of each shard: consecutive, of the recipe's size if they were float32."""
    lengths = np.asarray([len(ids) for ids in texts], dtype=np.int64)
    tokens = max(1, job.params.shard_mib * MEBIBYTE // state_bytes("float32", width(job.teacher)))
    ends = np.searchsorted(np.cumsum(lengths), np.arange(1, lengths.sum() // tokens + 1) * tokens)
    cuts = np.unique(np.clip(ends + 1, 0, len(texts)))
    return [part for part in np.split(np.arange(len(texts)), cuts) if len(part)]


def require_space(
    job: Job,
    texts: Sequence[Ids],
    calibrated: Mapping[str, Calibrated],
    store: Store,
    there: Mapping[str, Stream],
) -> None:
    """Raise CacheQuotaError unless all streams fit the quota, and what is lacking the free disk."""
    tokens = sum(len(ids) for ids in texts)
    need = job_bytes(job, texts, {stream: found.codec for stream, found in calibrated.items()})
    folders = [store.entry(job.streams[stream]) for stream in calibrated]
    shards = [path for folder in folders for path in folder.glob("shard-*.safetensors")]
    written = sum(path.stat().st_size for path in shards)
    whole = need + sum(file.bytes for entry in there.values() for file in entry.files)
    quota, free = int(job.params.quota_gib * 2**30), shutil.disk_usage(store.folder).free
    if whole > quota:
        raise CacheQuotaError(
            "the teacher cache would pass its quota",
            where="cache_teacher.quota_gib",
            expected=f"at most {quota / 2**30:.2f} GiB",
            found=f"an estimate of {whole / 2**30:.2f} GiB for {tokens} tokens",
            advice="Raise the quota, keep fewer streams, or choose a smaller codec.",
        )
    if need - written > free:
        raise CacheQuotaError(
            "the disk is too full for the teacher cache",
            where=store.folder,
            expected=f"{(need - written) / 2**30:.2f} GiB free",
            found=f"{free / 2**30:.2f} GiB",
            advice="Make room, or set STILLHOUSE_STORE to a folder on another disk.",
        )


def job_bytes(job: Job, texts: Sequence[Ids], codecs: Mapping[str, str]) -> int:
    """What stored streams of these distinct texts take, in their codecs."""
    config: Any = job.teacher.config
    tokens = sum(len(ids) for ids in texts)
    sizes = Texts(len(texts), tokens, config.num_labels)
    return stored_bytes(codecs, width=width(job.teacher), texts=sizes)


def _piece(job: Job, store: Store, name: str) -> Piece:
    """Write one frozen piece, or find it."""
    found = store.finished(job.pieces[name])
    if isinstance(found, Piece):
        return found
    embeddings = name == "embeddings"
    layers = () if embeddings else (layer_of(name),)
    tensors = pieces_of(job.teacher, layers, embeddings=embeddings)[name]
    folder = store.entry(job.pieces[name])
    piece = Piece(
        format_version=FORMAT_VERSION,
        fingerprint=folder.name,
        made_of=piece_fields(job.base, name),
        kind="piece",
        weights=commit_tensors(tensors, folder / WEIGHTS, {"config": config_json(job.teacher)}),
    )
    piece.write(folder / MANIFEST)
    return piece


def _finish(
    job: Job, store: Store, stream: str, content: tuple[Sequence[bytes], Sequence[Ids], Calibrated]
) -> Stream:
    """Write the manifest of a stream whose shards are all there; drop what is not of it."""
    keys, texts, calibrated = content
    folder = store.entry(job.streams[stream])
    shards = []
    for number, rows in enumerate(work_list(texts, job)):
        kept = find_shard(folder, number, b"".join(keys[row] for row in rows))
        if kept is None:
            raise AssertionError(f"{folder}: shard {number} was not written")
        shards.append(kept)
    names = {shard.name for shard in shards} | {note_name(shard.name) for shard in shards}
    for path in (*folder.glob("shard-*"), *folder.glob(".*")):
        if path.name not in names:
            path.unlink()
    has_statistics = calibrated.statistics is not None
    entry = Stream(
        format_version=FORMAT_VERSION,
        fingerprint=folder.name,
        made_of=job.fields_of(stream),
        kind="stream",
        codec=calibrated.codec,
        relative_error=calibrated.relative_error,
        attention_kl=calibrated.attention_kl,
        width=calibrated.width,
        examples=len(texts),
        tokens=sum(shard.tokens for shard in shards),
        statistics=describe_file(folder / STATISTICS) if has_statistics else None,
        shards=tuple(shards),
    )
    entry.write(folder / MANIFEST)
    return entry


def _compute(
    job: Job,
    texts: Sequence[Ids],
    codecs: Mapping[str, Codec],
    statistics: Mapping[str, Statistics | None],
    on_tokens: Callable[[int], None],
) -> dict[str, Encoded]:
    """The encoded streams of one shard's texts, filled batch by batch."""
    lengths = np.asarray([len(ids) for ids in texts], dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    found: dict[str, Encoded] = {}
    for piece in split_by_tokens(
        np.arange(len(texts)), lengths, max_tokens=job.params.batch_tokens
    ):
        for stream, states in _run(job, [texts[i] for i in piece], codecs):
            begins = texts[piece[0]][:8].tolist()
            encoded = _encode(stream, states, codecs[stream], statistics[stream], begins)
            is_logits = stream == "logits"
            rows = len(texts) if is_logits else int(ends[-1])
            at = int(piece[0]) if is_logits else int(ends[piece[0]])
            if stream not in found:
                found[stream] = _empty_like(encoded, rows)
            found[stream].values[at : at + len(states)] = encoded.values
            if encoded.scale is not None:
                found[stream].scale[at : at + len(states)] = encoded.scale  # type: ignore[index]
        on_tokens(int(lengths[piece].sum()))
    return found


def _run(
    job: Job, texts: Sequence[Ids], streams: Mapping[str, Codec]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Stored streams of a batch, padding dropped: logits [B, C], hidden [tokens, D]."""
    ids_BT, mask_BT = pad(texts, job.pad_id)
    found = run_teacher(job.teacher, ids_BT, mask_BT, streams)
    for name, value in found.items():
        yield name, value if name == "logits" else value[mask_BT]


def _encode(
    stream: str,
    states: torch.Tensor,
    codec: Codec,
    statistics: Statistics | None,
    begins: list[int],
) -> Encoded:
    """In the codec's form. Raises NonFiniteLossError, naming the stream, for what has none."""
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
