"""A student's main figures and learning curves, in the files that DVC shows.

`dvc metrics show`, `dvc exp show` and `dvc plots show` read these files; params/figures/dvc.yaml
names them for every recipe. All figures, with their intervals, are in metrics.json.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.kd.digests import write_json

SUMMARY = "summary.json"
CURVES = {"train": ("step", "loss"), "dev": ("step", "loss", "accuracy")}


def write_summary(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write summary.json: a flat selection of metrics.json, in megabytes and milliseconds."""
    student, teacher = metrics["student"], metrics["teacher"]
    handful = {
        "accuracy": student["accuracy"]["value"],
        "macro_f1": student["macro_f1"]["value"],
        "retention": metrics["retention"]["value"],
        "agreement": metrics["agreement"]["value"],
        "size_mb": student["size_bytes"] / 1e6,
        "latency_p50_ms": student["latency_ms"]["p50"],
        "latency_p95_ms": student["latency_ms"]["p95"],
        "teacher_accuracy": teacher["accuracy"]["value"],
    }
    write_json(folder / SUMMARY, {name: round(value, 4) for name, value in handful.items()})


def write_curves(folder: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write learning_train.csv and learning_dev.csv from the lines of a metrics.jsonl."""
    lines = list(history)
    for split, columns in CURVES.items():
        path = folder / f"learning_{split}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(line for line in lines if line["split"] == split)
