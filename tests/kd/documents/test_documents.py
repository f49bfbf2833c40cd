"""Documents: written and read back the same; whatever is not one is refused in one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.decision import DecisionRecord, GateRecord
from tasks.kd.documents.document import Document
from tasks.kd.documents.evaluation import Metrics
from tasks.kd.documents.exported import Contract, ExportReport, read_known_labels
from tasks.kd.documents.sources import Sources
from tasks.kd.documents.training import StudentReport, TeacherReport
from tasks.kd.errors import DataError
from tests.makers import documents as makers
from tests.makers.drawn import draw_parts

RUNS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]  # a file written over is fine

MADE: tuple[Document, ...] = (
    makers.make_sources(),
    makers.make_data_card(),
    makers.make_teacher_report(),
    makers.make_student_report(),
    makers.make_contract(),
    makers.make_export_report(),
    makers.make_metrics(),
    makers.make_decision_record(),
)
KINDS = (
    Sources,
    DataCard,
    TeacherReport,
    StudentReport,
    Contract,
    ExportReport,
    Metrics,
    DecisionRecord,
    GateRecord,
)
# What releases before the first wrote of a split that is not cut.
OLDER_CARD = {
    "dropped": {"contradictory": 10, "in_test_split": 5, "repeated": 55},
    "encoded_sha256": "5" * 64,
    "labels": ["acq", "crude"],
    "max_length_tokens": 64,
    "pad_token_id": 0,
    "splits": {
        name: {
            "examples": 4,
            "label_counts": {"acq": 2, "crude": 2},
            "longest_tokens": 64,
            "tokens": 200,
            "unlabelled": 0,
        }
        for name in ("train", "dev", "test")
    },
    "test_sha256": "6" * 64,
    "tokenizer_sha256": "7" * 64,
}


def name_of(document: Document) -> str:
    return type(document).__name__


def place(tmp_path: Path, stage: str = "prepare_data") -> Path:
    """The folder of a stage's out, in a repository."""
    folder = tmp_path / "artifacts" / "tiny" / stage
    folder.mkdir(parents=True)
    return folder


def refuse(kind: type[Document], folder: Path, content: bytes | str) -> str:
    """What is said of a file; it stays as it is."""
    path = folder / kind.FILE
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        kind.read(folder)
    assert path.read_bytes() == content
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 700
    return message.replace(str(folder), "")


def write_changed(document: Document, change: Any) -> str:
    """A document's JSON, changed in place."""
    fields = document.as_json()
    change(fields)
    return json.dumps(fields)


# --- what is written is read ---------------------------------------------------------------------


@pytest.mark.parametrize("document", MADE, ids=name_of)
def test_what_is_written_is_read_and_written_again_the_same(
    document: Document, tmp_path: Path
) -> None:
    document.write(tmp_path)
    first = (tmp_path / document.FILE).read_bytes()
    again = type(document).read(tmp_path)
    assert again == document
    again.write(tmp_path)
    assert (tmp_path / document.FILE).read_bytes() == first
    assert first.endswith(b"}\n")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=RUNS)
def test_every_content_survives(kind: type[Document], data: st.DataObject, tmp_path: Path) -> None:
    document = data.draw(draw_parts(kind))
    document.write(tmp_path)
    again = kind.read(tmp_path)
    assert again == document
    assert again.as_json() == document.as_json()


def test_a_field_that_was_not_given_is_not_in_the_file(tmp_path: Path) -> None:
    whole = makers.make_teacher_report().given
    given_teacher = {name: value for name, value in whole.items() if name != "refused_updates"}
    TeacherReport(**given_teacher).write(tmp_path)
    assert set(json.loads((tmp_path / "report.json").read_text())) == set(given_teacher)
    assert TeacherReport.read(tmp_path).dev_standings is None


def test_a_lead_that_can_t_be_measured_is_null_and_one_that_is_not_is_absent() -> None:
    standing = makers.make_standing(lead=None, lead_bound=None)
    assert standing.as_json()["lead"] is None
    assert not standing.is_above_chance
    assert "all have one label, so that nothing is shown" in str(standing)


def test_a_document_never_changes() -> None:
    contract: Any = makers.make_contract()
    with pytest.raises(ValueError, match="frozen"):
        contract.serve = "another.onnx"


# --- what is refused -----------------------------------------------------------------------------


def test_an_older_version_s_is_refused_with_its_fields_and_what_makes_it_again(
    tmp_path: Path,
) -> None:
    message = refuse(DataCard, place(tmp_path), json.dumps(OLDER_CARD))
    assert message == (
        "the data card lacks a field: /data_card.json, field splits.train.cut_fraction. "
        "Expected a value, found nothing. Another version wrote it, or a hand. More fields are "
        "wrong: splits.train.tokens_for_99_percent, splits.train.unknown_fraction, "
        "splits.dev.cut_fraction, splits.dev.tokens_for_99_percent, splits.dev.unknown_fraction, "
        "splits.test.cut_fraction, splits.test.tokens_for_99_percent, "
        "splits.test.unknown_fraction, dropped_from_test, replaced, warnings, truncation_side. "
        "Run: dvc repro -s -f prepare_data@tiny"
    )


@pytest.mark.parametrize("document", MADE, ids=name_of)
def test_each_field_that_is_missing_is_named(document: Document, tmp_path: Path) -> None:
    folder = place(tmp_path)
    for name, field in type(document).model_fields.items():
        if field.is_required():
            text = write_changed(document, lambda fields, name=name: fields.pop(name))
            message = refuse(type(document), folder, text)
            assert f"{document.TITLE} lacks a field: /{document.FILE}, field {name}." in message


@pytest.mark.parametrize("document", MADE, ids=name_of)
def test_a_field_too_many_is_named_with_its_value(document: Document, tmp_path: Path) -> None:
    text = write_changed(document, lambda fields: fields.update(form=3))
    message = refuse(type(document), place(tmp_path), text)
    assert f"{document.TITLE} has a field that this version does not write" in message
    assert f"/{document.FILE}, field form. Expected no such field, found 3." in message


@pytest.mark.parametrize("document", MADE, ids=name_of)
@given(data=st.data())
@settings(max_examples=20, suppress_health_check=RUNS)
def test_one_that_is_cut_short_is_refused(
    document: Document, data: st.DataObject, tmp_path: Path
) -> None:
    document.write(tmp_path)
    whole = (tmp_path / document.FILE).read_bytes().rstrip()
    kept = data.draw(st.integers(0, len(whole) - 1))
    message = refuse(type(document), tmp_path, whole[:kept])
    assert f"{document.TITLE} is not JSON, or is cut short" in message


@pytest.mark.parametrize(
    ("document", "field", "value", "said"),
    [
        (makers.make_teacher_report(), "steps", "20", 'Expected a valid integer, found "20"'),
        (makers.make_teacher_report(), "steps", 2.5, "Expected a valid integer, found 2.5"),
        (makers.make_teacher_report(), "steps", -1, "greater than or equal to 0, found -1"),
        (makers.make_teacher_report(), "dev_accuracy", float("nan"), "a finite number, found NaN"),
        (makers.make_teacher_report(), "seconds", float("inf"), "a finite number, found Infinity"),
        (makers.make_teacher_report(), "dev_accuracy", 90.0, "less than or equal to 1, found 90.0"),
        (makers.make_teacher_report(), "teacher_sha256", "d" * 63, "String should match pattern"),
        (makers.make_teacher_report(), "mode", "frozen", "Expected 'fine_tune' or 'given'"),
        (makers.make_teacher_report(), "dev_standing", None, "found null"),
        (makers.make_contract(), "labels", "corn", 'Expected a valid array, found "corn"'),
        (makers.make_contract(), "labels", [1, 2], "field labels.0. Expected a valid string"),
        (makers.make_export_report(), "int8_agreement_suffices", 1, "Expected a valid boolean"),
        (makers.make_metrics(), "retention", 0.9, "field retention. Expected an object, found 0.9"),
        (makers.make_data_card(), "warnings", [None], "field warnings.0"),
    ],
)  # fmt: skip
def test_a_mistyped_field_is_named_with_what_it_should_be(
    document: Document, field: str, value: Any, said: str, tmp_path: Path
) -> None:
    text = write_changed(document, lambda fields: fields.update({field: value}))
    message = refuse(type(document), place(tmp_path, "train_teacher"), text)
    assert f"{document.TITLE} has a wrong field: /{document.FILE}, field {field}" in message
    assert said in message
    assert message.endswith("Run: dvc repro -s -f train_teacher@tiny")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON, or is cut short"),
        (b"\xff\xfe{}", "is not JSON, or is cut short"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not JSON, or is cut short"),
        (b"[]", "has a wrong field: /data_card.json. Expected an object, found []"),
        (b"null", "Expected an object, found null"),
        (b"[" * 100_000, "is not JSON, or is cut short"),
    ],
)
def test_a_file_that_holds_no_object_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    assert said in refuse(DataCard, place(tmp_path), content)


def test_one_that_is_not_there_is_named_with_what_makes_it(tmp_path: Path) -> None:
    folder = place(tmp_path)
    with pytest.raises(DataError) as caught:
        DataCard.read(folder)
    assert str(caught.value) == (
        f"the data card can't be read: {folder / 'data_card.json'}. "
        "Found No such file or directory. Run: dvc repro -s -f prepare_data@tiny"
    )
    (folder / DataCard.FILE).mkdir()
    with pytest.raises(DataError, match="Found Is a directory"):
        DataCard.read(folder)


def test_a_folder_that_no_stage_makes_has_no_command_that_mends_it(tmp_path: Path) -> None:
    message = refuse(DataCard, tmp_path, "{}")
    assert "Run:" not in message


# --- students of other releases ------------------------------------------------------------------


def test_the_labels_of_a_student_of_another_release_are_read(tmp_path: Path) -> None:
    fields = {"labels": ["a", "b"], "form": 7, "heads": [{"kind": "softmax"}]}
    (tmp_path / Contract.FILE).write_text(json.dumps(fields))
    assert read_known_labels(tmp_path) == ("a", "b")
    (tmp_path / Contract.FILE).write_text('{"classes": ["a", "b"]}')
    with pytest.raises(DataError, match=r"contract lacks a field: .*student\.json, field labels"):
        read_known_labels(tmp_path)
