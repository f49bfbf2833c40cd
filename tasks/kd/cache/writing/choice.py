"""Cache or live teacher: measured on a few batches, on this machine and this disk."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.cache.format.codec import Codec, decode, encode, statistics_of
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob, distinct
from tasks.kd.cache.writing.space import job_bytes
from tasks.kd.data.examples.batching import split_by_tokens
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.recipe.streams import layer_of
from tasks.kd.targets.targets import derive, run_teacher

_BATCHES = 4  # the first of them warms up


@dataclass(frozen=True)
class Timings:
    """Seconds per real token of the teacher's pass, of storing and of reading; bytes in all."""

    forward: float
    write: float
    read: float
    bytes: int

    @property
    def break_even(self) -> float:
        """Epochs from which on the cache is quicker; infinite if reading is no quicker."""
        if self.read >= self.forward:
            return float("inf")
        return (self.forward + self.write) / (self.forward - self.read)


def choose(timings: Timings, *, epochs: float, quota_bytes: int) -> tuple[str, str]:
    """`cache` or `live`, and why, for a training that reads the teacher for so many epochs."""
    figures = (
        f"a pass of the teacher takes {1e6 * timings.forward:.0f} µs a token, storing it "
        f"{1e6 * timings.write:.1f}, reading it back {1e6 * timings.read:.1f}"
    )
    if timings.bytes > quota_bytes:
        size, quota = timings.bytes / 2**30, quota_bytes / 2**30
        return "live", f"the cache would take {size:.2f} GiB, quota_gib allows {quota:.2f}"
    if timings.break_even == float("inf"):
        return "live", f"{figures}: reading is no quicker than running it"
    pays = (
        f"{figures}: the cache pays from {timings.break_even:.2f} epochs on, there are {epochs:g}"
    )
    return ("cache" if epochs > timings.break_even else "live"), pays


def measure(job: CacheJob, store: Store) -> Timings:
    """Time a few batches of middle length on this machine, as it is at the moment.

    Files are written to the store's disk and dropped from memory before they are read.
    """
    job.teacher.eval()
    _, texts = distinct(job.input_ids)
    lengths = np.asarray([len(ids) for ids in texts], dtype=np.int64)
    pieces = list(
        split_by_tokens(np.arange(len(texts)), lengths, max_tokens=job.params.batch_tokens)
    )
    middle = max(0, len(pieces) // 2 - _BATCHES // 2)
    chosen = pieces[middle : middle + _BATCHES]
    store.folder.mkdir(parents=True, exist_ok=True)
    spent = []
    with TemporaryDirectory(dir=store.folder, prefix="trial-") as folder:
        for number, rows in enumerate(chosen):
            spent.append(_trial(job, [texts[i] for i in rows], Path(folder) / f"{number}"))
    tokens = [int(lengths[rows].sum()) for rows in chosen]
    skipped = 1 if len(chosen) > 1 else 0
    per_token = [
        [seconds / count for seconds in trial]
        for trial, count in zip(spent[skipped:], tokens[skipped:], strict=True)
    ]
    forward, write, read = (float(np.median(column)) for column in zip(*per_token, strict=True))
    codecs = dict.fromkeys(job.plan.stored, job.params.codec)
    return Timings(forward, write, read, job_bytes(job, texts, codecs))


def _trial(job: CacheJob, texts: list[Ids], path: Path) -> tuple[float, float, float]:
    """Seconds of the teacher's pass, of encoding and writing, and of reading and computing."""
    codec: Codec = job.params.codec
    ids_BT, mask_BT = pad(texts, job.pad_id)
    began = time.perf_counter()
    streams = run_teacher(job.teacher, ids_BT, mask_BT, job.plan.stored)
    ran = time.perf_counter()
    states = {s: x[mask_BT] for s, x in streams.items() if s != "logits"}
    statistics = {s: statistics_of(x) for s, x in states.items()}
    calibrated = time.perf_counter()
    tensors: dict[str, torch.Tensor] = {"mask": mask_BT}
    for stream, value in states.items():
        encoded = encode(value, codec, statistics[stream])
        tensors[stream] = encoded.values
        if encoded.scale is not None:
            tensors[f"{stream}.scale"] = encoded.scale
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    written = time.perf_counter()
    _read(job, load_file(path), {s: statistics[s] for s in states}, ids_BT)
    return ran - began, written - calibrated, time.perf_counter() - written


def _read(
    job: CacheJob,
    stored: dict[str, torch.Tensor],
    statistics: Mapping[str, object],
    ids_BT: torch.Tensor,
) -> None:
    mask_BT = stored["mask"]
    states: dict[int, torch.Tensor] = {}
    for stream, moments in statistics.items():
        decoded = decode(stored[stream], stored.get(f"{stream}.scale"), moments)  # type: ignore[arg-type]
        padded = torch.zeros((*mask_BT.shape, decoded.shape[-1]))
        padded[mask_BT] = decoded
        states[layer_of(stream)] = padded
    derive(job.teacher, job.plan.computed, states, ids_BT, mask_BT)
