"""Documents as the stages write them, small: each field can be given another value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tasks.kd.cache.format.fingerprint import FORMAT_VERSION, fingerprint
from tasks.kd.cache.format.manifest import Live
from tasks.kd.digests import write_bytes
from tasks.kd.documents.data_card import DataCard, Replaced, SplitCard, Splits
from tasks.kd.documents.decision import DecisionRecord, RuleRecord
from tasks.kd.documents.document import Part
from tasks.kd.documents.evaluation import (
    ClassMetrics,
    Confusion,
    Cost,
    Figure,
    Latency,
    Metrics,
    ModelMetrics,
    Right,
    Similarity,
    TorchMetrics,
)
from tasks.kd.documents.exported import Contract, ExportReport
from tasks.kd.documents.history import (
    HISTORY,
    DevRecord,
    LevelRecord,
    NoticeRecord,
    Record,
    RefusedRecord,
    TrainRecord,
)
from tasks.kd.documents.predictions import Prediction
from tasks.kd.documents.sources import Sources
from tasks.kd.documents.training import Standing, StudentReport, TeacherReport

LABELS = ("corn", "money", "ships")
FINGERPRINT = "9" * 32

Given = TypeVar("Given", bound=Part)


def change(document: Given, **changes: Any) -> Given:
    """The same document with other values."""
    return type(document)(**{**document.given, **changes})


def make_sources(**changes: Any) -> Sources:
    """What a recipe of two local files and a local teacher brings."""
    fields = {
        "data": {
            "kind": "path",
            "train": "data/train.parquet",
            "test": "data/test.parquet",
            "format": {"kind": "parquet"},
        },
        "teacher": {"kind": "path", "folder": "models/base"},
        "student": None,
        "more_teachers": {},
        "files": {"data/train.parquet": "1" * 64, "data/test.parquet": "2" * 64},
    }
    return Sources(**{**fields, **changes})


def make_split_card(labels: Sequence[str] = LABELS, **changes: Any) -> SplitCard:
    """A split of ten texts of each label."""
    fields = {
        "examples": 10 * len(labels),
        "unlabelled": 0,
        "tokens": 90 * len(labels),
        "longest_tokens": 16,
        "label_counts": dict.fromkeys(labels, 10),
        "cut_fraction": 0.125,
        "tokens_for_99_percent": 32,
        "unknown_fraction": 0.0,
    }
    return SplitCard(**{**fields, **changes})


def make_data_card(labels: Sequence[str] = LABELS, **changes: Any) -> DataCard:
    """A data card whose splits are alike; `splits` may name those that are not."""
    same = dict.fromkeys(("train", "dev", "test"), make_split_card(labels))
    fields = {
        "dropped": {"repeated": 2, "contradictory": 0, "in_test_split": 0},
        "dropped_from_test": {"unreadable": 0, "blank": 0},
        "replaced": Replaced(train=0, test=0),
        "warnings": (),
        "labels": tuple(labels),
        "pad_token_id": 0,
        "max_length_tokens": 16,
        "truncation_side": "right",
        "tokenizer_sha256": "a" * 64,
        "encoded_sha256": "b" * 64,
        "test_sha256": "c" * 64,
    }
    splits = Splits(**{**same, **changes.pop("splits", {})})
    return DataCard(**{**fields, **changes, "splits": splits})


def make_standing(**changes: Any) -> Standing:
    """The standing of a good classifier."""
    fields = {
        "examples": 30,
        "accuracy": 0.9,
        "constant": 0.5,
        "constant_label": LABELS[0],
        "chance": 1 / len(LABELS),
        "lead": 0.8,
        "lead_bound": 0.6,
    }
    return Standing(**{**fields, **changes})


def make_teacher_report(**changes: Any) -> TeacherReport:
    """The report of a teacher that was tuned."""
    fields = {
        "mode": "fine_tune",
        "steps": 20,
        "seconds": 1.5,
        "dev_accuracy": 0.9,
        "best_epoch": 2,
        "refused_updates": 0,
        "parameters": 2000,
        "dev_standing": make_standing(),
        "teacher_sha256": "d" * 64,
    }
    return TeacherReport(**{**fields, **changes})


def make_student_report(**changes: Any) -> StudentReport:
    """The report of a student of one phase."""
    fields = {
        "steps": 30,
        "seconds": 2.5,
        "dev_accuracy": 0.85,
        "best_epoch": 3,
        "refused_updates": 0,
        "parameters": 1000,
        "cache_fingerprint": FINGERPRINT,
        "phases": ({"name": "learn"},),
        "student_sha256": "e" * 64,
    }
    return StudentReport(**{**fields, **changes})


def make_manifest() -> Live:
    """The manifest of a recipe that runs its teacher, with a fingerprint of its own."""
    made_of = {"mode": "live", "streams": ["logits"]}
    return Live(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint(made_of),
        made_of=made_of,
        kind="live",
        why="the recipe says so",
        layers=4,
    )


def make_level_record(raw: float = 1.0, weight: float = 2.0, **changes: Any) -> LevelRecord:
    """A level's part of an update."""
    return LevelRecord(raw=raw, weight=weight, weighted=raw * weight, **changes)


def make_train_record(step: int = 1, **changes: Any) -> TrainRecord:
    """An update of a training of ten steps an epoch."""
    fields = {
        "step": step,
        "epoch": step / 10,
        "phase": "learn",
        "split": "train",
        "loss": 2.0,
        "levels": {"prediction.kl": make_level_record()},
        "learning_rate": 1e-4,
        "grad_norm": 1.0,
        "examples_per_s": 50.0,
        "tokens_per_s": 400.0,
        "waiting": 0.25,
    }
    return TrainRecord(**{**fields, **changes})


def make_dev_record(step: int = 10, **changes: Any) -> DevRecord:
    """An evaluation at the end of an epoch."""
    fields = {
        "step": step,
        "epoch": step / 10,
        "phase": "learn",
        "split": "dev",
        "accuracy": 0.9,
        "loss": 0.5,
    }
    return DevRecord(**{**fields, **changes})


def make_refused_record(step: int = 1, **changes: Any) -> RefusedRecord:
    """A step without an update."""
    fields = {
        "step": step,
        "epoch": step / 10,
        "phase": "learn",
        "split": "refused",
        "message": "a loss is not finite",
        "in_a_row": 1,
        "examples": ("0-1",),
        "examples_per_s": 50.0,
        "tokens_per_s": 400.0,
        "waiting": 0.25,
    }
    return RefusedRecord(**{**fields, **changes})


def make_notice_record(step: int = 1, **changes: Any) -> NoticeRecord:
    """A word to whoever watches."""
    fields = {"step": step, "epoch": step / 10, "phase": "learn", "split": "notice"}
    return NoticeRecord(**{**fields, "message": "memory did not suffice", **changes})


def make_history(steps: int = 20) -> list[Record]:
    """A training with an evaluation every ten steps."""
    records: list[Record] = []
    for step in range(1, steps + 1):
        records.append(make_train_record(step))
        if step % 10 == 0:
            records.append(make_dev_record(step))
    return records


def write_history(folder: Path, records: Sequence[Record]) -> None:
    """The file that a training leaves of its records."""
    text = "".join(record.model_dump_json(exclude_unset=True) + "\n" for record in records)
    write_bytes(folder / HISTORY, text.encode())


def make_contract(labels: Sequence[str] = LABELS, **changes: Any) -> Contract:
    """The contract of a student that is served in float32."""
    fields = {
        "labels": tuple(labels),
        "max_length_tokens": 16,
        "pad_token_id": 0,
        "serve": "model.onnx",
        "inputs": ("input_ids", "attention_mask"),
        "output": "logits",
    }
    return Contract(**{**fields, **changes})


def make_export_report(**changes: Any) -> ExportReport:
    """The report of an export whose int8 file would do."""
    fields = {
        "max_logit_difference": 1e-6,
        "int8_agreement": 0.99,
        "int8_agreement_suffices": True,
        "parity_examples": 30,
        "sizes": {"model.onnx": 4000, "model.int8.onnx": 1000},
        "serve": "model.onnx",
    }
    return ExportReport(**{**fields, **changes})


def make_figure(value: float = 0.9, *, n: int = 300, margin: float = 0.02) -> Figure:
    """A figure with an interval of so much on either side."""
    return Figure(value=value, n=n, low=value - margin, high=value + margin)


def make_latency(p50: float = 2.0) -> Latency:
    """Times in proportion to the median."""
    return Latency(p50=p50, p95=1.5 * p50, mean=1.1 * p50)


def make_cost(**changes: Any) -> Cost:
    """What one model costs."""
    fields = {
        "latency_ms": make_latency(),
        "size_bytes": 9000,
        "parameters": 2000,
        "layers": 2,
    }
    return Cost(**{**fields, **changes})


def make_model_metrics(**changes: Any) -> ModelMetrics:
    """The figures of one model."""
    fields = {
        "accuracy": make_figure(),
        "macro_f1": make_figure(0.8),
        "ece": make_figure(0.05),
        "lead": make_figure(0.7),
        **make_cost().given,
    }
    return ModelMetrics(**{**fields, **changes})


def make_class_metrics(label: str, support: int = 100) -> ClassMetrics:
    """A label that both models know well."""
    names = ("precision", "recall", "f1")
    values = {f"{who}_{name}": 0.9 for who in ("teacher", "student") for name in names}
    return ClassMetrics(label=label, support=support, **values)


def make_metrics(labels: Sequence[str] = LABELS, **changes: Any) -> Metrics:
    """An evaluation of a student of half its teacher's layers."""
    size = len(labels)
    matrix = tuple(tuple(100 * (row == column) for column in range(size)) for row in range(size))
    fields = {
        "recipe": "tiny",
        "evaluation_fingerprint": "c" * 64,
        "labels": tuple(labels),
        "examples": 300,
        "served_file": "model.onnx",
        "teacher": make_model_metrics(),
        "student": make_model_metrics(size_bytes=900, parameters=1000, layers=1),
        "student_torch": TorchMetrics(accuracy=0.9),
        "retention": make_figure(0.98),
        "agreement": make_figure(0.95),
        "right": Right(both=250, teacher_only=20, student_only=10, neither=20),
        "per_class": tuple(map(make_class_metrics, labels)),
        "confusion": Confusion(teacher=matrix, student=matrix),
        "similarity": Similarity(
            layers_student=(0, 1), layers_teacher=(0, 1, 2), cka=((1.0, 0.5, 0.1), (0.2, 0.4, 0.9))
        ),
    }
    return Metrics(**{**fields, **changes})


def make_predictions(
    truth: Sequence[int], answers: Sequence[int], labels: Sequence[str] = LABELS
) -> list[Prediction]:
    """Rows of a teacher that is always right and a student with those answers."""
    return [
        Prediction(f"e{i:04d}", labels[label], labels[label], labels[answer])
        for i, (label, answer) in enumerate(zip(truth, answers, strict=True))
    ]


def make_rule_record(**changes: Any) -> RuleRecord:
    """A rule that passed."""
    fields = {
        "name": "examples",
        "passed": True,
        "measured": 300.0,
        "limit": 100.0,
        "explanation": "300 test examples; at least 100 are asked for.",
        "outcome": "passed",
    }
    return RuleRecord(**{**fields, **changes})


def make_decision_record(**changes: Any) -> DecisionRecord:
    """A decision to promote the first student of a model."""
    fields: Mapping[str, Any] = {
        "verdict": "promote",
        "against": None,
        "rules": (make_rule_record(),),
    }
    return DecisionRecord(**{**fields, **changes})
