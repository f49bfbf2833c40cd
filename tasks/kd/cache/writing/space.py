"""Whether a cache fits its quota and the free disk, before its first byte is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.kd.cache.format.estimate import Texts, stored_bytes
from tasks.kd.cache.format.manifest import Stream
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.calibration import Calibration
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.shape import width
from tasks.kd.errors import CacheQuotaError


def require_space(
    job: CacheJob,
    texts: Sequence[Ids],
    lacking: Mapping[str, Calibration],
    store: Store,
    finished: Mapping[str, Stream],
) -> None:
    """Raise CacheQuotaError unless all streams fit the quota, and what is lacking the free disk."""
    tokens = sum(len(ids) for ids in texts)
    need = job_bytes(job, texts, {stream: each.codec for stream, each in lacking.items()})
    folders = [store.entry(job.streams[stream]) for stream in lacking]
    shards = [path for folder in folders for path in folder.glob("shard-*.safetensors")]
    written = sum(path.stat().st_size for path in shards)
    whole = need + sum(file.bytes for entry in finished.values() for file in entry.files)
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


def job_bytes(job: CacheJob, texts: Sequence[Ids], codecs: Mapping[str, str]) -> int:
    """Bytes that stored streams of these distinct texts take, in their codecs."""
    config: Any = job.teacher.config
    tokens = sum(len(ids) for ids in texts)
    sizes = Texts(len(texts), tokens, config.num_labels)
    return stored_bytes(codecs, width=width(job.teacher), texts=sizes)
