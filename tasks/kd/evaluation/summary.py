"""A student's main figures and learning curves, in the files that DVC shows.

`dvc metrics show`, `dvc exp show` and `dvc plots show` read these files; params/figures/dvc.yaml
names them for every recipe. All figures, with their intervals, are in metrics.json.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from tasks.kd.digests import write_json
from tasks.kd.documents.evaluation import Metrics
from tasks.kd.documents.history import Record

SUMMARY = "summary.json"
CURVES = {"train": ("step", "loss"), "dev": ("step", "loss", "accuracy")}


def write_summary(folder: Path, metrics: Metrics) -> None:
    """Write summary.json: a flat selection of metrics.json, in megabytes and milliseconds."""
    student, teacher = metrics.student, metrics.teacher
    handful = {
        "accuracy": student.accuracy.value,
        "macro_f1": student.macro_f1.value,
        "retention": metrics.retention.value,
        "agreement": metrics.agreement.value,
        "size_mb": student.size_bytes / 1e6,
        "latency_p50_ms": student.latency_ms.p50,
        "latency_p95_ms": student.latency_ms.p95,
        "teacher_accuracy": teacher.accuracy.value,
    }
    write_json(folder / SUMMARY, {name: round(value, 4) for name, value in handful.items()})


def write_curves(folder: Path, history: Sequence[Record]) -> None:
    """Write learning_train.csv and learning_dev.csv from the records of a training."""
    for split, columns in CURVES.items():
        path = folder / f"learning_{split}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            told = [record for record in history if record.split == split]
            writer.writerows([getattr(record, name) for name in columns] for record in told)
