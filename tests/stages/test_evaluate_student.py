"""The stage's figures, predictions and report, over a tiny teacher and student."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.kd.data.examples.prepared import read_split
from tasks.kd.documents.evaluation import Metrics
from tasks.kd.documents.training import StudentReport
from tasks.kd.encoders.loading import load_classifier
from tasks.kd.errors import DataError
from tasks.kd.export.running import predict_torch
from tasks.kd.recipe.sections import EvaluateStudent, ExportStudent
from tasks.stages import Stage, evaluate_student, export_student
from tests.makers.tiny import LABELS, tiny_artifacts, tiny_tokenizer
from tests.makers.training_setup import make_compute

COMPUTE = make_compute(checkpoint_every_s=60.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an exported student."""
    root = tmp_path_factory.mktemp("project")
    tiny_artifacts(root / "artifacts" / "tiny")
    params = ExportStudent(
        serve="float32", max_logit_difference=1e-4, min_int8_agreement=0.1, parity_examples=10
    )
    stage = Stage("export_student", "tiny", params, COMPUTE, root, root / ".work" / "export")
    stage.draft.mkdir(parents=True)
    export_student.main(stage)
    stage.draft.rename(stage.out)
    return root


def make_stage(root: Path, work: str) -> Stage:
    """The stage, in a work folder of its own."""
    params = EvaluateStudent(
        bootstrap_resamples=200,
        confidence=0.95,
        latency_examples=20,
        similarity_examples=16,
        seed=3,
    )
    stage = Stage("evaluate_student", "tiny", params, COMPUTE, root, root / ".work" / work)
    stage.draft.mkdir(parents=True)
    return stage


@pytest.fixture(scope="module")
def draft(root: Path) -> Path:
    """What the stage wrote."""
    stage = make_stage(root, "evaluate")
    evaluate_student.main(stage)
    return stage.draft


@pytest.fixture(scope="module")
def metrics(draft: Path) -> Any:
    """metrics.json."""
    return Metrics.read(draft).as_json()


def test_metrics_hold_every_figure(metrics: Any) -> None:
    for who, layers in (("teacher", 4), ("student", 2)):
        figures = metrics[who]
        assert set(figures) == {
            "accuracy",
            "lead",
            "macro_f1",
            "ece",
            "latency_ms",
            "size_bytes",
            "parameters",
            "layers",
        }
        assert figures["layers"] == layers
        assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p95"]
    for figure in (metrics["retention"], metrics["agreement"], metrics["teacher"]["accuracy"]):
        assert set(figure) == {"value", "n", "low", "high"}
        assert figure["n"] == metrics["examples"] == 60
    assert metrics["teacher"]["accuracy"]["value"] == pytest.approx(0.9)
    assert metrics["student_torch"]["accuracy"] == metrics["student"]["accuracy"]["value"]
    assert metrics["student"]["size_bytes"] < metrics["teacher"]["size_bytes"]
    assert metrics["evaluation_fingerprint"] == "c" * 64
    assert metrics["labels"] == LABELS
    assert metrics["served_file"] == "model.onnx"
    assert sum(metrics["right"].values()) == 60
    assert np.sum(metrics["confusion"]["student"]) == 60
    assert [row["label"] for row in metrics["per_class"]] == LABELS
    assert sum(row["support"] for row in metrics["per_class"]) == 60


def test_similarity_spans_all_layers_and_embeddings(metrics: Any) -> None:
    similarity = metrics["similarity"]
    assert similarity["layers_student"] == [0, 1, 2]
    assert similarity["layers_teacher"] == [0, 1, 2, 3, 4]
    assert np.shape(similarity["cka"]) == (3, 5)
    assert similarity["cka"][0][0] == pytest.approx(1, abs=1e-5)  # the same embeddings


def test_what_dvc_shows_is_written_beside_the_metrics(draft: Path, metrics: Any) -> None:
    summary = json.loads((draft / "summary.json").read_text(encoding="utf-8"))
    assert summary["accuracy"] == round(metrics["student"]["accuracy"]["value"], 4)
    for split in ("train", "dev"):
        lines = (draft / f"learning_{split}.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("step,loss")


def test_predictions_are_names_in_the_order_of_the_split(
    root: Path, draft: Path, metrics: Any
) -> None:
    artifacts = root / "artifacts" / "tiny"
    test = read_split(artifacts / "prepare_data" / "test.arrow")
    with (draft / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["example_id", "label", "teacher", "student"]
    assert [row["example_id"] for row in rows] == test.example_ids
    assert [row["label"] for row in rows] == [LABELS[label] for label in test.labels]
    for who in ("teacher", "student"):
        model = load_classifier(artifacts / f"train_{who}" / "model")
        classes = predict_torch(model, test.input_ids, pad_token_id=0).argmax(axis=1)
        assert [row[who] for row in rows] == [LABELS[c] for c in classes]
        right = np.mean([row[who] == row["label"] for row in rows])
        assert right == pytest.approx(metrics[who]["accuracy"]["value"])


def test_the_report_traces_what_the_student_was_made_from(root: Path, draft: Path) -> None:
    page = (draft / "report.html").read_text(encoding="utf-8")
    trained = StudentReport.read(root / "artifacts" / "tiny" / "train_student")
    for digest in (trained.cache_fingerprint, "b" * 64, "c" * 64, trained.student_sha256):
        assert digest in page
    assert "<script" not in page
    assert len(list((draft / "plots").iterdir())) == 7


def test_figures_without_a_clock_are_the_same_again(
    root: Path,
    draft: Path,
    metrics: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported = draft.parent / "teacher" / "model.onnx"

    def copy(_model: Any, path: Path, *, one_file: bool) -> None:
        assert not one_file
        shutil.copyfile(exported, path)

    monkeypatch.setattr(evaluate_student, "write_onnx", copy)
    stage = make_stage(root, "again")
    evaluate_student.main(stage)
    again = Metrics.read(stage.draft).as_json()
    for figures in (metrics, again):
        for who in ("teacher", "student"):
            figures[who] = {k: v for k, v in figures[who].items() if k != "latency_ms"}
    assert again == metrics
    predictions = (stage.draft / "predictions.csv").read_bytes()
    assert predictions == (draft / "predictions.csv").read_bytes()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "retention" in shown.err


def test_an_exported_tokenizer_that_differs_is_refused(root: Path) -> None:
    stage = make_stage(root, "tokenizer")
    path = stage.input("export_student") / "tokenizer.json"
    kept = path.read_bytes()
    path.write_text(tiny_tokenizer(path).read_text(encoding="utf-8").replace("word1", "WORD1"))
    try:
        with pytest.raises(DataError, match="other token ids"):
            evaluate_student.main(stage)
    finally:
        path.write_bytes(kept)
    assert list(stage.draft.iterdir()) == []
