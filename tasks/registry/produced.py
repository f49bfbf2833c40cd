"""What a recipe's stages left on disk: read, checked, and given one fingerprint."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.kd.digests import sha256_json
from tasks.kd.errors import DataError
from tasks.kd.gate.decision import Candidate
from tasks.kd.recipe.recipe import Recipe

STAGES = (
    "fetch_sources",
    "prepare_data",
    "train_teacher",
    "cache_teacher",
    "train_student",
    "export_student",
    "evaluate_student",
)
_HEADER = ["example_id", "label", "teacher", "student"]


@dataclass(frozen=True)
class Lineage:
    """Where artifacts come from: `dvc` is the md5 of each stage's outs, by stage and path."""

    git_commit: str | None
    git_dirty: bool
    dvc: Mapping[str, Mapping[str, str]]
    flow_run_id: str | None = None


@dataclass(frozen=True)
class Produced:
    """A recipe whose stages are done. `artifacts` is `<root>/artifacts/<name>`."""

    name: str
    recipe: Recipe
    root: Path
    artifacts: Path
    lineage: Lineage

    @property
    def model(self) -> str:
        """Name of the registered model."""
        return self.recipe.register_.model

    @property
    def recipe_file(self) -> Path:
        """The recipe as it was written."""
        return self.root / "params" / f"{self.name}.yaml"

    @property
    def unrecorded(self) -> list[str]:
        """The stages of whose outs DVC has no hash."""
        return [stage for stage in STAGES if not self.lineage.dvc.get(stage)]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what would be registered, and where.

        Made of DVC's own hashes of all outs. A changed gate, description, commit or machine leaves
        it as it is; a stage that ran again and wrote other bytes, timings included, does not.
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
        """A file or folder of a stage's out, which must be there."""
        path = self.artifacts / stage / name
        if not path.exists():
            raise DataError(
                "An artifact is missing", where=path, mend=f"stillhouse run {self.name}"
            )
        return path

    def read(self, stage: str, name: str) -> dict[str, Any]:
        """A JSON object of a stage's out."""
        path = self.path(stage, name)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"An artifact is no JSON ({error})", where=path) from error
        if not isinstance(value, dict):
            raise DataError("An artifact is not what it should be", where=path, expected="object")
        return value

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`evaluate_student/metrics.json`, of the very test split that was prepared."""
        metrics = self.read("evaluate_student", "metrics.json")
        prepared = self.read("prepare_data", "data_card.json")["test_sha256"]
        if metrics["evaluation_fingerprint"] != prepared:
            raise DataError(
                "The evaluation is of another test split than the prepared one",
                where=self.artifacts / "evaluate_student" / "metrics.json",
                expected=prepared,
                found=metrics["evaluation_fingerprint"],
                mend=f"stillhouse run {self.name}",
            )
        return metrics

    @property
    def served_file(self) -> Path:
        """The ONNX file that was evaluated and will be registered."""
        return self.path("export_student", self.read("export_student", "student.json")["serve"])

    @cached_property
    def candidate(self) -> Candidate:
        """The test results, for the gate."""
        rows = read_predictions(self.path("evaluate_student", "predictions.csv"))
        examples, labels, teacher, student = zip(*rows, strict=True) if rows else ((),) * 4
        return Candidate(
            examples,
            labels,
            teacher,
            student,
            size_bytes=self.served_file.stat().st_size,
            latency_p95_ms=self.metrics["student"]["latency_ms"]["p95"],
        )

    @cached_property
    def tags(self) -> dict[str, str]:
        """What links a run and a version to everything that they were made from."""
        lineage = self.lineage
        tags = {
            "stillhouse.fingerprint": self.fingerprint,
            "recipe": self.name,
            "git.commit": lineage.git_commit or "none",
            "git.dirty": str(lineage.git_dirty).lower(),
            "teacher.sha256": self.read("train_teacher", "report.json")["teacher_sha256"],
            "student.sha256": self.read("train_student", "report.json")["student_sha256"],
            "cache.fingerprint": self.read("cache_teacher", "manifest.json")["fingerprint"],
            "evaluation.fingerprint": self.metrics["evaluation_fingerprint"],
        }
        for stage in STAGES:
            hashes = dict(lineage.dvc[stage])
            only = next(iter(hashes.values()))
            tags[f"dvc.{stage}"] = only if len(hashes) == 1 else json.dumps(hashes, sort_keys=True)
        if lineage.flow_run_id is not None:
            tags["prefect.flow_run_id"] = lineage.flow_run_id
        return tags


def read_predictions(path: Path) -> list[tuple[str, ...]]:
    """The rows of a `predictions.csv`: example id, label, teacher, student."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != _HEADER:
        raise DataError(
            "Predictions have another header",
            where=path,
            expected=",".join(_HEADER),
            found=",".join(rows[0]) if rows else "an empty file",
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(_HEADER):
            raise DataError(
                "A row of the predictions is broken",
                where=f"{path}, row {number}",
                expected=f"{len(_HEADER)} fields",
                found=len(row),
            )
    return [tuple(row) for row in rows[1:]]
