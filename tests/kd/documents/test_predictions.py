"""Predictions: rows of names that come back as they were, whatever stands in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.kd.documents.predictions import (
    PREDICTIONS,
    Prediction,
    read_predictions,
    write_predictions,
)
from tasks.kd.errors import DataError
from tests.makers.documents import make_predictions

ROWS = make_predictions([0, 1, 2], [0, 1, 1])


@given(st.lists(st.builds(Prediction, *[st.text(max_size=5)] * 4), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_survives(tmp_path: Path, rows: list[Prediction]) -> None:
    write_predictions(tmp_path, rows)
    assert read_predictions(tmp_path) == rows


def test_the_file_is_plain_lines_under_a_header(tmp_path: Path) -> None:
    write_predictions(tmp_path, ROWS[:1])
    text = (tmp_path / PREDICTIONS).read_bytes()
    assert text == b"example_id,label,teacher,student\ne0000,corn,corn,corn\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("label", "truth", "have another header: {path}. Expected example_id,label,teacher,stu"),
        ("e0001,money", "e0001", "have a broken row 3: {path}. Expected 4 fields, found 3"),
        ("ships,money\n", "ships,mon", "are cut short: {path}. Expected an end of line"),
        ("corn", "\udcff", "are no table: {path}. Expected comma-separated text in UTF-8"),
    ],
)
def test_another_table_is_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "tiny" / "evaluate_student"
    folder.mkdir(parents=True)
    write_predictions(folder, ROWS)
    path = folder / PREDICTIONS
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_bytes(text.replace(old, new).encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        read_predictions(folder)
    assert said.format(path=path) in str(caught.value)
    assert str(caught.value).endswith("Run: dvc repro -s -f evaluate_student@tiny")


def test_an_empty_file_and_none_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"can't be read: .*No such file"):
        read_predictions(tmp_path)
    (tmp_path / PREDICTIONS).touch()
    with pytest.raises(DataError, match=r"have another header: .*found an empty file"):
        read_predictions(tmp_path)
