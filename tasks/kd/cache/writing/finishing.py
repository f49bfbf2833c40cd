"""The entries that make a cache whole: a piece's weights, and the manifests, written last."""

from __future__ import annotations

from tasks.kd.cache.format.fingerprint import FORMAT_VERSION, piece_fields
from tasks.kd.cache.format.manifest import MANIFEST, File, Piece, Stream
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.calibration import Calibration
from tasks.kd.cache.writing.job import CacheJob, DistinctTexts, work_list
from tasks.kd.cache.writing.measuring import STATISTICS
from tasks.kd.cache.writing.shards import (
    commit_tensors,
    describe_file,
    find_shard,
    note_name,
)
from tasks.kd.encoders.pieces import config_json, pieces_of
from tasks.kd.recipe.streams import layer_of

WEIGHTS = "weights.safetensors"


def write_piece(job: CacheJob, store: Store, name: str) -> Piece:
    """Write one frozen piece of the teacher, or find it written."""
    written = store.finished(job.pieces[name])
    if isinstance(written, Piece):
        return written
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


def finish_stream(
    job: CacheJob, store: Store, stream: str, calibration: Calibration, content: DistinctTexts
) -> Stream:
    """Write the manifest of a stream whose shards are all there; drop files that are not its own.

    `content` is all that the shards must hold.
    """
    folder = store.entry(job.streams[stream])
    shards = [
        _require_shard(job, store, stream, number, b"".join(content.keys[row] for row in rows))
        for number, rows in enumerate(work_list(content.texts, job))
    ]
    names = {shard.name for shard in shards} | {note_name(shard.name) for shard in shards}
    for path in (*folder.glob("shard-*"), *folder.glob(".*")):
        if path.name not in names:
            path.unlink()
    has_statistics = calibration.statistics is not None
    entry = Stream(
        format_version=FORMAT_VERSION,
        fingerprint=folder.name,
        made_of=job.fields_of(stream),
        kind="stream",
        codec=calibration.codec,
        relative_error=calibration.relative_error,
        attention_kl=calibration.attention_kl,
        width=calibration.width,
        examples=len(content.texts),
        tokens=sum(shard.tokens for shard in shards),
        statistics=describe_file(folder / STATISTICS) if has_statistics else None,
        shards=tuple(shards),
    )
    entry.write(folder / MANIFEST)
    return entry


def _require_shard(job: CacheJob, store: Store, stream: str, number: int, raw_keys: bytes) -> File:
    folder = store.entry(job.streams[stream])
    shard = find_shard(folder, number, raw_keys)
    if shard is None:
        raise AssertionError(f"{folder}: shard {number} was not written")
    return shard
