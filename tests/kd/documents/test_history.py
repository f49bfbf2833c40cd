"""The records of a training: read as they were told, refused by their line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.kd.documents.document import Part
from tasks.kd.documents.history import (
    HISTORY,
    DevRecord,
    NoticeRecord,
    Record,
    RefusedRecord,
    TrainRecord,
    read_history,
)
from tasks.kd.errors import DataError
from tests.makers import documents as makers
from tests.makers.drawn import draw_parts

KINDS: tuple[type[Part], ...] = (TrainRecord, RefusedRecord, DevRecord, NoticeRecord)
RECORDS: list[Record] = [
    makers.make_train_record(1),
    makers.make_refused_record(2),
    makers.make_notice_record(2),
    makers.make_dev_record(10),
]


@given(
    st.lists(
        st.one_of(*(draw_parts(kind) for kind in KINDS)),
        max_size=4,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_record_survives(tmp_path: Path, records: list[Record]) -> None:
    makers.write_history(tmp_path, records)
    again = read_history(tmp_path)
    assert again == records
    assert [one.as_json() for one in again] == [one.as_json() for one in records]


def test_a_norm_that_is_not_finite_is_null_and_one_that_was_not_measured_is_absent() -> None:
    assert makers.make_level_record(grad_norm=None).as_json()["grad_norm"] is None
    assert "grad_norm" not in makers.make_level_record().as_json()


def test_a_teacher_that_was_given_has_no_records(tmp_path: Path) -> None:
    (tmp_path / HISTORY).touch()
    assert read_history(tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"split":"dev"', '"split":"test"', "line 4. Expected"),
        ('"loss":0.5', '"loss":NaN', "line 4, field dev.loss. Expected a finite number, found NaN"),
        ('"accuracy":0.9,', "", "lacks a field: {path}, line 4, field dev.accuracy"),
        ('"waiting":0.25', '"waiting":"long"', "line 1, field train.waiting. Expected a valid num"),
        ('"raw":1.0', '"raw":null', "line 1, field train.levels.prediction.kl.raw"),
        ('"step":1,', '"step":1,"rank":0,', "line 1, field train.rank. Expected no such field"),
    ],
)
def test_a_line_that_is_no_record_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "tiny" / "train_student"
    folder.mkdir(parents=True)
    makers.write_history(folder, RECORDS)
    path = folder / HISTORY
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        read_history(folder)
    assert said.format(path=path) in str(caught.value)
    assert str(caught.value).endswith("Run: dvc repro -s -f train_student@tiny")


def test_a_history_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    makers.write_history(tmp_path, RECORDS)
    path = tmp_path / HISTORY
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"is cut short: .*metrics\.jsonl, line 4\. Exp"):
        read_history(tmp_path)
