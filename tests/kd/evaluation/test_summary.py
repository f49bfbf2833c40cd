"""What DVC shows of a student: a flat handful of numbers, and curves as tables."""

from __future__ import annotations

from pathlib import Path

from tasks.kd.digests import read_json
from tasks.kd.documents.evaluation import Latency
from tasks.kd.documents.history import Record
from tasks.kd.evaluation.summary import write_curves, write_summary
from tests.makers.documents import (
    make_dev_record,
    make_figure,
    make_metrics,
    make_model_metrics,
    make_notice_record,
    make_train_record,
)


def test_the_summary_is_flat_and_says_megabytes_and_milliseconds(tmp_path: Path) -> None:
    latency = Latency(p50=2.71, p95=3.29, mean=2.8)
    student = make_model_metrics(
        accuracy=make_figure(0.96),
        macro_f1=make_figure(0.71234),
        size_bytes=17_540_642,
        latency_ms=latency,
    )
    metrics = make_metrics(
        teacher=make_model_metrics(accuracy=make_figure(0.95)),
        student=student,
        retention=make_figure(1.0105263),
        agreement=make_figure(0.977),
    )
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
    history: list[Record] = [
        make_train_record(1, loss=0.5, levels={}),
        make_notice_record(1),
        make_train_record(2, loss=0.25),
        make_dev_record(2, loss=0.3, accuracy=0.8),
    ]
    write_curves(tmp_path, history)
    assert (tmp_path / "learning_train.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n"
    assert (tmp_path / "learning_dev.csv").read_text() == "step,loss,accuracy\n2,0.3,0.8\n"
