"""Opening a recipe's cache against the teacher and the data as they are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.kd.cache.format.fingerprint import base_fields
from tasks.kd.cache.format.manifest import Live, Manifest
from tasks.kd.cache.format.parsing import read_recipe_manifest
from tasks.kd.cache.reading.audit import audit
from tasks.kd.cache.reading.reader import CachedTargets, open_cache, require_fresh
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheInputs
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.data.examples.targets import Targets
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.training import TeacherReport
from tasks.kd.encoders.loading import attention_kernel
from tasks.kd.errors import CacheIncompleteError, DataError
from tasks.kd.targets.targets import LiveTargets, own_device
from tasks.kd.teacher.ensemble import teacher_sha256

# Records compared with the teacher before a training; the stage that wrote them compared more.
AUDITED = 4


@dataclass(frozen=True)
class Opened:
    """A teacher's streams for a training, and the manifest that says how they are served."""

    targets: Targets
    manifest: Manifest | Live


def read_inputs(
    teacher_folder: Path, teacher: torch.nn.Module, card: DataCard, input_ids: Sequence[Ids]
) -> CacheInputs:
    """The teacher of that folder and the encoded texts, with the fields that name both.

    Raises DataError unless the teacher's report is of the weights beside it.
    """
    report = TeacherReport.read(teacher_folder)
    digest = teacher_sha256(teacher_folder)
    if report.teacher_sha256 != digest:
        raise DataError(
            "the teacher is not the one that its report is of",
            where=teacher_folder / "model",
            expected=f"sha256 {report.teacher_sha256}",
            found=digest,
        )
    base = base_fields(
        teacher_sha256=digest,
        tokenizer_sha256=card.tokenizer_sha256,
        encoded_sha256=card.encoded_sha256,
        attention=attention_kernel(teacher),
    )
    return CacheInputs(teacher, input_ids, card.pad_token_id, base)


def open_targets(
    path: Path,
    inputs: CacheInputs,
    streams: Sequence[str],
    *,
    open_store: Callable[[], Store],
    part: tuple[int, int],
    mend: str,
) -> Opened:
    """The cache whose manifest is at that path, or the teacher itself where the manifest says so.

    `streams` are all that the training reads. `open_store` is called for a cache alone. `part` is
    (i, n) where n processes share the work of comparing the cache's bytes: none may use it before
    all have said that theirs are right (`agreement.agreed`). On every one of them a few records are
    compared with the teacher's. `mend` is the command that makes the cache again.

    Raises CacheIncompleteError for a stream that isn't served or a file that is nowhere,
    CacheStaleError for a cache of another teacher or other data, CacheCorruptError for bytes or
    records that are not as they should be.
    """
    manifest = read_recipe_manifest(path, mend=mend)
    _require_streams(manifest, streams, mend=mend)
    expected = {**manifest.made_of, **inputs.base}
    if isinstance(manifest, Live):
        require_fresh(manifest, expected, mend=mend)
        return Opened(_run_live(inputs, streams), manifest)
    cached = open_cache(
        manifest, open_store(), expected=expected, pad_id=inputs.pad_id, mend=mend, verify=part
    ).on(own_device())
    audit_cache(cached, inputs, count=AUDITED)
    return Opened(cached, manifest)


def audit_cache(cached: CachedTargets, inputs: CacheInputs, *, count: int) -> int:
    """Compare up to `count` records with the teacher's, on this process's device; how many.

    Raises CacheCorruptError for a record that differs by more than its codec explains.
    """
    live = _run_live(inputs, cached.streams)
    return audit(cached, live, inputs.input_ids, count=count)


def own_part(environment: Mapping[str, str]) -> tuple[int, int]:
    """The part of a cache's files that this process compares, (i, n), by its launcher's variables.

    The processes of a machine have their own disk, or their own copies. A launcher that doesn't say
    how many they are leaves the whole to each.
    """
    rank, size = (environment.get(name, "") for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    known = rank.isdecimal() and size.isdecimal() and int(rank) < int(size)
    return (int(rank), int(size)) if known else (0, 1)


def _run_live(inputs: CacheInputs, streams: Sequence[str]) -> LiveTargets:
    return LiveTargets(inputs.teacher, streams, pad_id=inputs.pad_id, device=own_device())


def _require_streams(manifest: Manifest | Live, streams: Sequence[str], *, mend: str) -> None:
    """Raise CacheIncompleteError for a stream that a level reads and that isn't served."""
    served = manifest.served if isinstance(manifest, Manifest) else manifest.made_of["streams"]
    if missing := [stream for stream in streams if stream not in served]:
        raise CacheIncompleteError(
            "the teacher cache lacks what a level reads",
            where="cache_teacher.streams",
            expected=", ".join(streams),
            found=f"no {', '.join(missing)}",
            mend=mend,
        )
