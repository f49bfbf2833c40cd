"""Parquet: types, paths into structs, class names, and files that are not whole."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from tasks.kd.data.formats import Columns, read_header
from tasks.kd.data.tables import Rows
from tasks.kd.errors import DataError
from tests.makers.small_tables import COLUMNS, FORMATS, read, write

NESTED = Columns("message.body", "kind")
CLASSES = {"kind": {"names": ["no", "yes"], "_type": "ClassLabel"}}
METADATA = {"huggingface": json.dumps({"info": {"features": CLASSES}})}
BROKEN_TEXT = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"]).buffers())


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["one", "two"]),
        pa.array(["one", "two"], pa.large_string()),
        pa.array([b"one", b"two"]),
        pa.array(["one", "two"]).dictionary_encode(),
    ],
)
def test_texts_are_texts_however_they_are_kept(texts: Any, tmp_path: Path) -> None:
    part = write(tmp_path, "parquet", pa.table({"body": texts, "kind": [1, 2]}))
    assert read(part).rows == Rows(["one", "two"], ["1", "2"])


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ([b"x", b"caf\xe9"], [1, 2], r"row 2, column 'body'. Found bytes that are not UTF-8"),
        (BROKEN_TEXT, [1, 2], r"row 2, column 'body'. Found bytes that are not UTF-8"),
        ([["x"], ["y"]], [1, 2], r"no text, number or boolean: .*'body'. Found type list"),
        ([{"a": "x"}] * 2, [1, 2], r"column 'body'. Found an object with the fields a"),
        (["x", "y"], [datetime.date(2026, 1, 1)] * 2, r"column 'kind'. Found type date32"),
        (["x", "y"], [1.0, float("nan")], r"1 rows without text .*row 2, column 'kind'"),
        (["x", None], [1, 2], r"1 rows without text .*row 2, column 'body'"),
        (["x", "y"], [1.0, float("inf")], r"row 2, column 'kind'. Found an infinite number"),
    ],
)
def test_cells_that_are_no_text_are_refused(
    body: Any, kind: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        read(write(tmp_path, "parquet", pa.table({"body": body, "kind": kind})))


def test_one_name_for_two_columns_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["x"]), pa.array(["a"]), pa.array(["b"])]
    part = write(tmp_path, "parquet", pa.Table.from_arrays(columns, ["body", "kind", "kind"]))
    for look in (read, lambda part: read_header(part, FORMATS["parquet"], COLUMNS)):
        with pytest.raises(DataError, match=r"two columns are named 'kind': train.parquet"):
            look(part)


@pytest.mark.parametrize("kept", [0, 10, 200, -1, -300])
def test_a_file_that_is_cut_is_refused(kept: int, tmp_path: Path) -> None:
    part = write(tmp_path, "parquet", pa.table({"body": ["x"] * 99, "kind": ["a"] * 99}))
    part.path.write_bytes(part.path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"not a whole Parquet file: train.parquet"):
        read(part)


def test_a_file_that_git_lfs_left_is_told(tmp_path: Path) -> None:
    part = write(tmp_path, "parquet", "version https://git-lfs.github.com/spec/v1\n")
    for look in (read, lambda part: read_header(part, FORMATS["parquet"], COLUMNS)):
        with pytest.raises(DataError, match=r"train.parquet.* Run: git lfs pull"):
            look(part)


def test_a_column_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    part = write(tmp_path, "parquet", pa.table({"body": ["x"], "kind": ["a"]}))
    part.path.write_bytes(part.path.read_bytes().replace(b"kind", b"ki\xa2d"))
    with pytest.raises(DataError, match=r"not a whole Parquet file: train.parquet"):
        read(part)


def test_a_field_of_a_struct_is_a_column(tmp_path: Path) -> None:
    table = pa.table({"message": [{"body": "x", "to": ["z"]}], "kind": ["a"]})
    part = write(tmp_path, "parquet", table)
    assert read(part, columns=NESTED).rows == Rows(["x"], ["a"])
    assert read_header(part, FORMATS["parquet"], NESTED).names == [
        "message",
        "kind",
        "message.body",
    ]
    with pytest.raises(DataError, match=r"no column 'message\.text'"):
        read(part, columns=Columns("message.text", "kind"))
    own = table.append_column("message.body", pa.array(["of that very name"]))
    assert read(write(tmp_path, "parquet", own), columns=NESTED).rows.texts == ["of that very name"]


def test_a_struct_that_is_not_there_is_a_row_without_text(tmp_path: Path) -> None:
    part = write(tmp_path, "parquet", pa.table({"message": [{"body": "x"}, None], "kind": [1, 2]}))
    with pytest.raises(DataError, match=r"row 2, column 'message\.body'"):
        read(part, columns=NESTED)


@pytest.fixture
def classes() -> Any:
    """An Arrow table of the data set library with class names in its metadata."""
    kinds = {"body": datasets.Value("string"), "kind": datasets.ClassLabel(names=["no", "yes"])}
    rows = {"body": ["x", "y", "z"], "kind": [1, 0, 1]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def relabel(table: Any, kinds: list[int | None]) -> Any:
    """The Arrow table with other numbers in its column of classes."""
    found = table.data.table
    return found.set_column(1, "kind", pa.array(kinds, pa.int64()))


def test_class_names_in_the_file_stand_for_its_numbers(classes: Any, tmp_path: Path) -> None:
    classes.to_parquet(tmp_path / "train.parquet")
    part = write(tmp_path, "parquet", (tmp_path / "train.parquet").read_bytes())
    assert read(part).rows.labels == ["yes", "no", "yes"]


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ([0, 1, 2], r"no class name for: .*row 3, column 'kind'. Expected 0 to 1, of no, yes, f"),
        ([0, 1, -2], r"no class name for: .*row 3"),
        ([0, -1, 1], r"1 rows without text or label: .*row 2, column 'kind'"),
        ([0, 1, None], r"1 rows without text or label: .*row 3, column 'kind'"),
    ],
)
def test_a_number_without_a_class_name_is_refused(
    classes: Any, kinds: list[int | None], said: str, tmp_path: Path
) -> None:
    table = relabel(classes, kinds).replace_schema_metadata(METADATA)
    with pytest.raises(DataError, match=said):
        read(write(tmp_path, "parquet", table))


def test_a_column_of_names_keeps_them(tmp_path: Path) -> None:
    table = pa.table({"body": ["x"], "kind": ["yes"]}).replace_schema_metadata(METADATA)
    assert read(write(tmp_path, "parquet", table)).rows.labels == ["yes"]
