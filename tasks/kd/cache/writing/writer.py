"""Running the teacher once over all examples and keeping what the levels need of it.

Every stream is an entry of its own, so that a recipe which needs one more adds that one alone.
When a killed writer starts again, finished shards are kept and only the rest is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from tasks.kd.cache.format.codec import Codec, Encoded
from tasks.kd.cache.format.fingerprint import FORMAT_VERSION
from tasks.kd.cache.format.manifest import MANIFEST, Manifest, Piece, Stream
from tasks.kd.cache.store.store import Store, disk_faults
from tasks.kd.cache.writing.calibration import Calibration
from tasks.kd.cache.writing.encoding import encode_shard
from tasks.kd.cache.writing.finishing import finish_stream, write_piece
from tasks.kd.cache.writing.job import CacheJob, DistinctTexts, distinct, work_list
from tasks.kd.cache.writing.measuring import (
    STATISTICS,
    Calibrator,
    begin,
    begun,
    statistics_in,
    too_coarse,
)
from tasks.kd.cache.writing.shards import commit_shard, find_shard, give_back, shard_tensors
from tasks.kd.cache.writing.space import require_space
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.loading import attention_kernel
from tasks.kd.encoders.shape import depth
from tasks.kd.errors import DataError

# Does a share of the shards, for each stream in its codec: in this process, or in several.
Spread = Callable[[dict[str, Codec]], None]


def write_cache(
    job: CacheJob,
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
    content = distinct(job.input_ids)
    calibrator = Calibrator(job, content.texts)
    while True:
        with store.writing(job.entries):
            survey = _survey(job, store, calibrator)
            if survey.whole is not None:
                return survey.whole
            if not survey.coarse:
                calibrator.forget()
                share = spread or partial(write_share, job, store, on_tokens=on_tokens)
                return _complete(job, store, survey, content, share)
        for reason in filter(None, survey.coarse.values()):
            on_coarse(reason)
        job = replace(job, exact=job.exact | {*survey.coarse})


@dataclass(frozen=True)
class _Survey:
    """What the store has of a job, and what was measured of the rest.

    `coarse` are the streams that must be exact and are not, with the reason if it is new. Their
    entries are others, so nothing is written of these. `whole` is the cache if nothing is lacking.
    """

    whole: Manifest | None = None
    pieces: dict[str, Piece] = field(default_factory=dict)
    finished: dict[str, Stream] = field(default_factory=dict)
    lacking: dict[str, Calibration] = field(default_factory=dict)
    computed: dict[str, float] = field(default_factory=dict)
    coarse: dict[str, str] = field(default_factory=dict)


def _survey(job: CacheJob, store: Store, calibrator: Calibrator) -> _Survey:
    """Look at every entry of a job, and measure the streams that are lacking."""
    whole = store.finished(job.fingerprint)
    if isinstance(whole, Manifest) and (known := _exact_in(whole) - job.exact):
        return _Survey(coarse=dict.fromkeys(known, ""))
    entries = {stream: store.finished(at) for stream, at in job.streams.items()}
    finished = {stream: entry for stream, entry in entries.items() if isinstance(entry, Stream)}
    pieces = {name: write_piece(job, store, name) for name in job.plan.pieces}
    lacking = [stream for stream in entries if stream not in finished]
    if isinstance(whole, Manifest) and not lacking and _is_good(job, store, whole):
        return _Survey(whole=whole)
    calibrations = {
        stream: begun(store.entry(job.streams[stream]))
        or calibrator.calibrate(stream, job.codec_of(stream))
        for stream in lacking
    }
    kept: dict[str, Stream | Calibration] = {**finished, **calibrations}
    computed = calibrator.derived_errors(store, kept)
    coarse = _raised(job, calibrations) or too_coarse(job, computed, kept)
    return _Survey(None, pieces, finished, calibrations, computed, coarse)


def _complete(
    job: CacheJob, store: Store, survey: _Survey, content: DistinctTexts, share: Spread
) -> Manifest:
    """Write the streams that are lacking, then the cache's manifest."""
    streams = dict(survey.finished)
    if survey.lacking:
        require_space(job, content.texts, survey.lacking, store, survey.finished)
        for stream, calibration in survey.lacking.items():
            begin(store.entry(job.streams[stream]), calibration)
        share({stream: calibration.codec for stream, calibration in survey.lacking.items()})
        for stream, calibration in survey.lacking.items():
            streams[stream] = finish_stream(job, store, stream, calibration, content)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=job.fingerprint,
        made_of=job.made_of,
        kind="cache",
        streams={stream: streams[stream] for stream in job.streams},
        computed=survey.computed,
        pieces=survey.pieces,
        layers=depth(job.teacher),
    )
    manifest.write(store.entry(job.fingerprint) / MANIFEST)
    return manifest


def _exact_in(manifest: Manifest) -> set[str]:
    """The hidden streams of a cache that are not the entries of its own codec."""
    return {
        name
        for name, stream in manifest.streams.items()
        if name != "logits" and stream.made_of["codec"] != manifest.made_of["codec"]
    }


def _raised(job: CacheJob, calibrations: Mapping[str, Calibration]) -> dict[str, str]:
    """The streams that were measured to need another codec than they were to be kept in."""
    return {
        stream: f"{stream} is kept in float32: {job.params.codec} was too coarse for it"
        for stream, calibration in calibrations.items()
        if stream != "logits" and calibration.codec != job.codec_of(stream)
    }


def _is_good(job: CacheJob, store: Store, manifest: Manifest) -> bool:
    """Whether a cache is the one that would be written: all there, and as exact as it must be."""
    is_here = all(map(store.holds, manifest.entries))
    return is_here and not too_coarse(job, manifest.computed, manifest.streams)


def _require_kernel(job: CacheJob) -> None:
    """Raise DataError for a teacher with another attention kernel than the fingerprint says."""
    numerics, kernel = job.base["numerics"], attention_kernel(job.teacher)
    said = numerics["attention"]  # type: ignore[index]
    if said != kernel:
        raise DataError(
            "the teacher's attention kernel is not what the cache's fingerprint says",
            expected=said,
            found=kernel,
        )


# --- a share of the shards -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    """One shard's number, the keys of its records as one string of bytes, and their texts."""

    number: int
    raw_keys: bytes
    texts: list[Ids]


def write_share(
    job: CacheJob,
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
        writing: Future[None] | None = None
        for number in range(rank, len(shards), world_size):
            rows = shards[number]
            raw_keys = b"".join(keys[row] for row in rows)
            shard = _Shard(number, raw_keys, [texts[row] for row in rows])
            lacking = _lacking_streams(job, store, codecs, shard)
            if not lacking:
                on_tokens(sum(map(len, shard.texts)))
                continue
            parts = encode_shard(job, shard.texts, lacking, statistics, on_tokens)
            if writing is not None:
                writing.result()
            give_back()
            writing = thread.submit(_commit, job, store, shard, parts)
        if writing is not None:
            writing.result()


def _lacking_streams(
    job: CacheJob, store: Store, codecs: Mapping[str, Codec], shard: _Shard
) -> dict[str, Codec]:
    """The streams, with their codecs, of which that shard is not there or not whole."""
    return {
        stream: codec
        for stream, codec in codecs.items()
        if find_shard(store.entry(job.streams[stream]), shard.number, shard.raw_keys) is None
    }


def _commit(job: CacheJob, store: Store, shard: _Shard, parts: Mapping[str, Encoded]) -> None:
    for stream, encoded in parts.items():
        tensors = shard_tensors(shard.raw_keys, shard.texts, encoded)
        commit_shard(store.entry(job.streams[stream]), shard.number, tensors)
