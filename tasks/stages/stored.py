"""The store of teacher caches, and the report that names them, for the stages that use both."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.kd.cache.store.store import Store, open_store, store_place
from tasks.kd.documents.training import TeacherReport
from tasks.kd.errors import DataError
from tasks.kd.teacher.ensemble import teacher_sha256
from tasks.stages import Stage


def store_of(stage: Stage) -> Store:
    """The store: `.store`, or the folder or URL of STILLHOUSE_STORE."""
    place, local = store_place(os.environ, stage.root)
    copies_bytes = int(stage.compute.copies_gib * 2**30)
    return open_store(place, local, copies_bytes=copies_bytes)


def read_report(teacher_folder: Path) -> TeacherReport:
    """The teacher's report. Raises DataError unless it belongs to the weights beside it.

    Caches are named after the digest in the report.
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
    return report
