"""The artifacts of a recipe's stages: read, checked, and given one fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.kd.digests import sha256_json
from tasks.kd.errors import DataError
from tasks.kd.gate.evidence import Candidate
from tasks.kd.recipe.recipe import Recipe

if TYPE_CHECKING:
    from tasks.kd.documents.data_card import DataCard
    from tasks.kd.documents.evaluation import Metrics

STAGES = (
    "fetch_sources",
    "prepare_data",
    "train_teacher",
    "cache_teacher",
    "train_student",
    "export_student",
    "evaluate_student",
)


@dataclass(frozen=True)
class Lineage:
    """The origin of artifacts. `dvc` holds the md5 of each stage's outs, by stage and path."""

    git_commit: str | None
    git_dirty: bool
    dvc: Mapping[str, Mapping[str, str]]
    flow_run_id: str | None = None


@dataclass(frozen=True)
class Produced:
    """A recipe with finished stages. `artifacts` is `<root>/artifacts/<name>`."""

    name: str
    recipe: Recipe
    root: Path
    artifacts: Path
    lineage: Lineage

    @property
    def model(self) -> str:
        """The name of the registered model."""
        return self.recipe.register_.model

    @property
    def recipe_file(self) -> Path:
        """The path of the recipe's file."""
        return self.root / "params" / f"{self.name}.yaml"

    @property
    def unrecorded(self) -> list[str]:
        """The stages without a hash of their outs in DVC."""
        return [stage for stage in STAGES if not self.lineage.dvc.get(stage)]

    @cached_property
    def fingerprint(self) -> str:
        """The digest of the artifacts and of the place to register them.

        It is computed from DVC's hashes of all outs. A change of gate, description, commit or
        machine does not change it. A stage that runs again and writes other bytes, timings
        included, does. Raises DataError if DVC lacks a hash.
        """
        if self.unrecorded:
            raise DataError(
                "DVC has no hash of some outs",
                where=", ".join(self.unrecorded),
                advice="Only what DVC has recorded can be registered.",
                mend=f"stillhouse run {self.name}",
            )
        place = [self.name, self.recipe.register_.experiment, self.model]
        outs = {stage: dict(paths) for stage, paths in self.lineage.dvc.items()}
        return sha256_json(["stillhouse-1", place, outs])

    def path(self, stage: str, name: str) -> Path:
        """A file or folder of a stage's out. Raises DataError if it is missing."""
        path = self.artifacts / stage / name
        if not path.exists():
            raise DataError(
                "An artifact is missing", where=path, mend=f"stillhouse run {self.name}"
            )
        return path

    @cached_property
    def data_card(self) -> DataCard:
        """The splits that `prepare_data` made."""
        from tasks.kd.documents.data_card import DataCard

        return DataCard.read(self.artifacts / "prepare_data")

    @cached_property
    def metrics(self) -> Metrics:
        """The figures of `evaluate_student`. Raises DataError if they are of another test split."""
        from tasks.kd.documents.evaluation import Metrics

        metrics = Metrics.read(self.artifacts / "evaluate_student")
        if metrics.evaluation_fingerprint != self.data_card.test_sha256:
            raise DataError(
                "The evaluation is of another test split than the prepared one",
                where=self.artifacts / "evaluate_student" / Metrics.FILE,
                expected=self.data_card.test_sha256,
                found=metrics.evaluation_fingerprint,
                mend=f"stillhouse run {self.name}",
            )
        return metrics

    @property
    def served_file(self) -> Path:
        """The path of the ONNX file that was evaluated and will be registered."""
        from tasks.kd.documents.exported import Contract

        return self.path("export_student", Contract.read(self.artifacts / "export_student").serve)

    @cached_property
    def candidate(self) -> Candidate:
        """The student's test results, for the gate. Raises DataError if some are missing."""
        from tasks.kd.documents.predictions import PREDICTIONS, read_predictions

        rows = read_predictions(self.artifacts / "evaluate_student")
        if len(rows) != self.metrics.examples:
            raise DataError(
                "the predictions are of another number of examples than the metrics",
                where=self.artifacts / "evaluate_student" / PREDICTIONS,
                expected=f"{self.metrics.examples} rows",
                found=len(rows),
                mend=f"stillhouse run {self.name}",
            )
        examples, labels, teacher, student = zip(*rows, strict=True) if rows else ((),) * 4
        return Candidate(
            examples,
            labels,
            teacher,
            student,
            size_bytes=self.served_file.stat().st_size,
            latency_p95_ms=self.metrics.student.latency_ms.p95,
        )

    @cached_property
    def tags(self) -> dict[str, str]:
        """Tags that link a run and a version to all their origins."""
        from tasks.kd.cache.format.manifest import MANIFEST
        from tasks.kd.cache.format.parsing import read_document
        from tasks.kd.documents.training import StudentReport, TeacherReport

        lineage = self.lineage
        teacher = TeacherReport.read(self.artifacts / "train_teacher")
        student = StudentReport.read(self.artifacts / "train_student")
        cache = read_document(self.artifacts / "cache_teacher" / MANIFEST)
        tags = {
            "stillhouse.fingerprint": self.fingerprint,
            "recipe": self.name,
            "git.commit": lineage.git_commit or "none",
            "git.dirty": str(lineage.git_dirty).lower(),
            "teacher.sha256": teacher.teacher_sha256,
            "student.sha256": student.student_sha256,
            "cache.fingerprint": cache.fingerprint,
            "evaluation.fingerprint": self.metrics.evaluation_fingerprint,
        }
        for stage in STAGES:
            hashes = dict(lineage.dvc[stage])
            only = next(iter(hashes.values()))
            tags[f"dvc.{stage}"] = only if len(hashes) == 1 else json.dumps(hashes, sort_keys=True)
        if lineage.flow_run_id is not None:
            tags["prefect.flow_run_id"] = lineage.flow_run_id
        return tags
