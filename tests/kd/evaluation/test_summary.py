"""What DVC shows of a student: a flat handful of numbers, and curves as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.kd.digests import read_json
from tasks.kd.evaluation.summary import write_curves, write_summary


def test_the_summary_is_flat_and_says_megabytes_and_milliseconds(tmp_path: Path) -> None:
    def figure(value: float) -> dict[str, float]:
        return {"value": value, "low": 0.0, "high": 1.0, "n": 10}

    def side(accuracy: float) -> dict[str, Any]:
        return {
            "accuracy": figure(accuracy),
            "macro_f1": figure(0.71234),
            "size_bytes": 17_540_642,
            "latency_ms": {"p50": 2.71, "p95": 3.29, "mean": 2.8},
        }

    metrics = {
        "student": side(0.96),
        "teacher": side(0.95),
        "retention": figure(1.0105263),
        "agreement": figure(0.977),
    }
    write_summary(tmp_path, metrics)
    assert read_json(tmp_path / "summary.json") == {
        "accuracy": 0.96,
        "macro_f1": 0.7123,
        "retention": 1.0105,
        "agreement": 0.977,
        "size_mb": 17.5406,
        "latency_p50_ms": 2.71,
        "latency_p95_ms": 3.29,
        "teacher_accuracy": 0.95,
    }


def test_curves_hold_steps_and_dev_figures_apart(tmp_path: Path) -> None:
    history = [
        {"split": "train", "step": 1, "loss": 0.5, "levels": {}},
        {"split": "notice", "step": 1, "message": "a remark"},
        {"split": "train", "step": 2, "loss": 0.25},
        {"split": "dev", "step": 2, "loss": 0.3, "accuracy": 0.8},
    ]
    write_curves(tmp_path, history)
    assert (tmp_path / "learning_train.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n"
    assert (tmp_path / "learning_dev.csv").read_text() == "step,loss,accuracy\n2,0.3,0.8\n"
