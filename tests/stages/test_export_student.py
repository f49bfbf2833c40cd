"""The stage leaves all that serving needs, and refuses a student of other labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.kd.digests import read_json, write_json
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.exported import Contract
from tasks.kd.documents.training import TeacherReport
from tasks.kd.errors import DataError, ExportError
from tasks.kd.recipe.sections import ExportStudent
from tasks.stages import Stage
from tasks.stages.export_student import main
from tests.makers.documents import change
from tests.makers.tiny import LABELS, tiny_artifacts
from tests.makers.training_setup import make_compute


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """The stage over tiny artifacts."""
    tiny_artifacts(tmp_path / "artifacts" / "tiny")
    params = ExportStudent(
        serve="int8", max_logit_difference=1e-4, min_int8_agreement=0.5, parity_examples=30
    )
    compute = make_compute(checkpoint_every_s=60.0)
    stage = Stage("export_student", "tiny", params, compute, tmp_path, tmp_path / ".work")
    stage.draft.mkdir(parents=True)
    return stage


def test_the_stage_writes_what_is_served(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    main(stage)
    assert {path.name for path in stage.draft.iterdir()} == {
        "model.onnx",
        "model.int8.onnx",
        "tokenizer.json",
        "student.json",
        "model_card.md",
        "report.json",
    }
    contract = Contract.read(stage.draft)
    assert contract.serve == "model.int8.onnx"
    assert contract.labels == tuple(LABELS)
    assert "one text at a time" in (stage.draft / "model_card.md").read_text(encoding="utf-8")
    assert "model.int8.onnx: 0.0 MB (served)" in capsys.readouterr().err


def test_a_student_of_other_labels_is_refused(stage: Stage) -> None:
    folder = stage.root / "artifacts" / "tiny" / "prepare_data"
    change(DataCard.read(folder), labels=(*LABELS[1:], LABELS[0])).write(folder)
    with pytest.raises(ExportError, match="other labels"):
        main(stage)
    assert list(stage.draft.iterdir()) == []


def test_a_report_of_an_older_version_is_refused_before_anything_is_written(stage: Stage) -> None:
    path = stage.root / "artifacts" / "tiny" / "train_teacher" / TeacherReport.FILE
    fields = read_json(path)
    del fields["dev_standing"]
    write_json(path, fields)
    said = rf"teacher's report lacks a field: {path}, field dev_standing.*-f train_teacher@tiny$"
    with pytest.raises(DataError, match=said):
        main(stage)
    assert list(stage.draft.iterdir()) == []
