"""Opening a large cache: sizes compared, bytes not.

Real shard files of zeros under the keys of random texts; opened in a process of its own, out of
the page cache and in it: `python -m bench.opening <folder>`, started here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.caches import HIDDEN, MAX_RELATIVE_ERROR, Bench, settings_of
from bench.figures import Figure, Findings, paragraphs
from bench.material import ROOT
from tasks.kd.cache.format.codec import Encoded
from tasks.kd.cache.format.fingerprint import (
    FORMAT_VERSION,
    fingerprint,
    piece_fields,
    stream_fields,
)
from tasks.kd.cache.format.manifest import MANIFEST, File, Manifest, Piece, Stream
from tasks.kd.cache.format.parsing import read_document
from tasks.kd.cache.reading.reader import open_cache
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.finishing import WEIGHTS
from tasks.kd.cache.writing.job import CacheJob, distinct, work_list
from tasks.kd.cache.writing.measuring import STATISTICS
from tasks.kd.cache.writing.shards import (
    commit_shard,
    commit_tensors,
    note_name,
    shard_name,
    shard_tensors,
)
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.digests import read_json
from tasks.kd.encoders.pieces import config_json, pieces_of
from tasks.kd.encoders.shape import width
from tasks.kd.recipe.streams import state_bytes

GIGABYTE = 10**9
BATCH = 32
_ASKED = "asked.npz"
NOTES = """
Opening is reading the manifest and `open_cache(..., verify=False)` in a new process, imports not
counted. From disk: after the files were given up to the kernel with posix_fadvise;
`resident_bytes_before_opening_from_disk` is what of them was still in memory (null where fincore is
missing).
"""


def measure(bench: Bench) -> Findings:
    """Build it, open it in turns from disk and from memory, remove it."""
    rounds = bench.pick(3, 1)
    size = bench.pick(10 * GIGABYTE, GIGABYTE // 10)
    folder = bench.folder / "big"
    _require_room(folder.parent, size)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return _measure(bench, folder, size, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(bench: Bench, folder: Path, size: int, rounds: int) -> Findings:
    manifest = build(bench, folder, size)
    bench.watch.expect(2 * rounds)
    found: dict[str, list[dict[str, float]]] = {"from disk": [], "from memory": []}
    resident: list[int | None] = []
    for _ in range(rounds):
        _drop(folder)
        resident.append(_resident(folder))
        for times in found.values():  # the second finds in memory what the first has read
            times.append(_open(folder))
            bench.watch.advance()
    figures = []
    for where, times in found.items():
        opens = tuple(each["open_s"] for each in times)
        fetches = tuple(1e3 * each["fetch_s"] for each in times)
        goal = 1.0 if where == "from disk" else None
        figures += [
            Figure(f"opening {manifest.bytes / GIGABYTE:.3g} GB, {where}", opens, "s", goal),
            Figure(f"first batch of {BATCH}, {where}", fetches, "ms"),
        ]
    shards = sum(len(stream.shards) for stream in manifest.streams.values())
    return Findings(
        tuple(figures),
        {
            "rounds": rounds,
            "bytes": manifest.bytes,
            "examples": manifest.examples,
            "tokens": manifest.tokens,
            "shards": shards,
            "resident_bytes_before_opening_from_disk": resident,
        },
        paragraphs(NOTES),
    )


# --- the cache -----------------------------------------------------------------------------------


def build(bench: Bench, folder: Path, size: int) -> Manifest:
    """A finished cache of about `size` bytes: logits and three stored hidden streams, float16."""
    teacher = bench.material.teacher
    states = sum(name not in ("logits", "hidden.0") for name in HIDDEN)
    tokens = size // (states * (state_bytes("float16", width(teacher)) + 4))
    keys, texts = _texts(bench, tokens)
    base = {**bench.material.short.base, "encoded_sha256": "random texts"}
    params = settings_of(bench.material, shard_mib=bench.pick(128, 16))
    job = CacheJob(teacher, texts, bench.material.short.pad_id, base, params)
    store, parts = Store(folder), work_list(texts, job)
    bench.watch.expect(len(parts) * len(job.plan.stored))
    streams = {
        name: _build_stream(bench, store, job, name, (keys, texts, parts))
        for name in job.plan.stored
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint(job.made_of),
        made_of=job.made_of,
        kind="cache",
        streams=streams,
        computed=dict.fromkeys(job.plan.computed, 0.0),
        pieces={"embeddings": _build_embeddings(store, job)},
        layers=6,
    )
    store.entry(manifest.fingerprint).mkdir(parents=True)
    manifest.write(store.entry(manifest.fingerprint) / MANIFEST)
    manifest.write(folder / MANIFEST)
    asked = np.random.default_rng(1).choice(len(texts), BATCH, replace=False)
    np.savez(folder / _ASKED, *(texts[row] for row in asked))
    return manifest


def _texts(bench: Bench, tokens: int) -> tuple[list[bytes], list[Ids]]:
    """Random token ids in texts as long as R52's, distinct and sorted."""
    random = np.random.default_rng(0)
    lengths = bench.material.short.train.lengths
    drawn = random.choice(lengths, int(tokens / lengths.mean()))
    values = random.integers(1000, 30000, int(drawn.sum()), dtype=np.int32)
    return distinct(np.split(values, np.cumsum(drawn)[:-1]))


def _build_stream(
    bench: Bench,
    store: Store,
    job: CacheJob,
    name: str,
    content: tuple[Sequence[bytes], Sequence[Ids], Sequence[np.ndarray]],
) -> Stream:
    keys, texts, parts = content
    folder = store.entry(job.streams[name])
    folder.mkdir(parents=True)
    is_logits = name == "logits"
    config: Any = job.teacher.config
    columns = int(config.num_labels) if is_logits else width(job.teacher)
    kind = torch.float32 if is_logits else torch.float16
    shards = []
    for number, rows in enumerate(parts):
        own = [texts[row] for row in rows]
        values = torch.zeros(len(own) if is_logits else sum(map(len, own)), columns, dtype=kind)
        raw = b"".join(keys[row] for row in rows)
        commit_shard(folder, number, shard_tensors(raw, own, Encoded(values)))
        note = read_json(folder / note_name(shard_name(number)))
        shards.append(File.model_validate(note))
        bench.watch.advance()
    statistics = {"mean": torch.zeros(columns), "deviation": torch.ones(columns)}
    entry = Stream(
        format_version=FORMAT_VERSION,
        fingerprint=folder.name,
        made_of=stream_fields(
            job.base, name, codec="float16", max_relative_error=MAX_RELATIVE_ERROR
        ),
        kind="stream",
        codec="float32" if is_logits else "float16",
        relative_error=0.0,
        attention_kl=None,
        width=columns,
        examples=len(texts),
        tokens=sum(shard.tokens for shard in shards),
        statistics=None if is_logits else commit_tensors(statistics, folder / STATISTICS),
        shards=tuple(shards),
    )
    entry.write(folder / MANIFEST)
    return entry


def _build_embeddings(store: Store, job: CacheJob) -> Piece:
    folder = store.entry(job.pieces["embeddings"])
    folder.mkdir(parents=True)
    tensors = pieces_of(job.teacher, (), embeddings=True)["embeddings"]
    piece = Piece(
        format_version=FORMAT_VERSION,
        fingerprint=folder.name,
        made_of=piece_fields(job.base, "embeddings"),
        kind="piece",
        weights=commit_tensors(tensors, folder / WEIGHTS, {"config": config_json(job.teacher)}),
    )
    piece.write(folder / MANIFEST)
    return piece


# --- memory and disk -----------------------------------------------------------------------------


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.2 * size:
        need, there = 1.2 * size / GIGABYTE, free / GIGABYTE
        raise SystemExit(f"opening needs {need:.1f} GB of disk, {there:.1f} are free")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _drop(folder: Path) -> None:
    """Ask the kernel to forget all pages of these files; they are on disk already."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _resident(folder: Path) -> int | None:
    """Bytes of these files that are in memory; None where nothing can tell."""
    if shutil.which("fincore") is None:
        return None
    program = ["fincore", "--bytes", "--noheadings", "--output", "RES"]
    done = subprocess.run(
        [*program, *map(str, _files(folder))], capture_output=True, text=True, check=True
    )
    return sum(int(line) for line in done.stdout.split())


def _open(folder: Path) -> dict[str, float]:
    """Open it in a child process."""
    program = [sys.executable, "-m", "bench.opening", str(folder)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"opening failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


# --- in the child --------------------------------------------------------------------------------


def main(folder: Path) -> dict[str, float]:
    """Seconds of opening, and of the first batch."""
    with np.load(folder / _ASKED) as asked:
        texts: list[Ids] = [asked[name] for name in asked.files]
    torch.zeros(1)
    began = time.perf_counter()
    manifest = read_document(folder / MANIFEST)
    assert isinstance(manifest, Manifest)
    cached = open_cache(
        manifest,
        Store(folder),
        expected=manifest.made_of,
        pad_id=0,
        mend="python -m bench",
        verify=False,
    )
    opened = time.perf_counter()
    cached.fetch(texts)
    return {"open_s": opened - began, "fetch_s": time.perf_counter() - opened}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
