from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.errors import DataError
from tasks.kd.tables import Rows, drop_repeats, read_rows, stratified

TABLES = {
    "csv": 'id,body,kind\n1,"one, two",a\n2,"say ""hi""",b\n',
    "tsv": 'id\tbody\tkind\n1\tone, two\ta\n2\tsay "hi"\tb\n',
    "jsonl": '{"body": "one, two", "kind": "a"}\n{"body": "say \\"hi\\"", "kind": "b"}\n',
}


def write(folder: Path, kind: str, text: str) -> Path:
    path = folder / f"train.{kind}"
    path.write_text(text)
    return path


def read(path: Path, skip_lines: int = 0) -> Rows:
    return read_rows(path, text="body", label="kind", skip_lines=skip_lines)


@pytest.mark.parametrize("kind", TABLES)
def test_each_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    assert read(write(tmp_path, kind, TABLES[kind])) == Rows(["one, two", 'say "hi"'], ["a", "b"])


def test_parquet_too(tmp_path: Path) -> None:
    import pandas

    path = tmp_path / "train.parquet"
    pandas.DataFrame({"body": ["one", "two"], "kind": [1, 2]}).to_parquet(path)
    assert read(path) == Rows(["one", "two"], ["1", "2"])


def test_lines_after_the_header_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "tsv", "body\tkind\nstring\td\nclass\t\nhello\ta\n")
    assert read(path, skip_lines=2) == Rows(["hello"], ["a"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("body,sort\nx,a\n", r"no column 'kind'.*Found columns body, sort"),
        ("body,kind\n", r"an empty split"),
        ("", r"no column 'body'"),
        ("body,kind\nx,a\n,b\n", r"1 rows without text or label.*rows 2"),
        ("body,kind\nx,\n", r"without text or label"),
        ("body,kind\nx,a,b\n", r"wrong number of columns.*row 1. Expected 2, found 3"),
        ('body,kind\nx,"a\n', r"not a csv table"),
    ],
)
def test_a_table_that_is_not_as_declared_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(write(tmp_path, "csv", text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"body": "x", "kind": "a"}\n{"body": "y"}\n', r"1 rows without text or label.*rows 2"),
        ('{"body": null, "kind": 2}\n', r"without text or label"),
        ('{"body": NaN, "kind": 2}\n', r"without text or label"),
        ('{"body": "x", "kind": "a"}\n{"body": "y", "ki', r"not JSON: .*:2"),
        ('["x", "a"]\n', r"not a JSON object: .*:1"),
    ],
)
def test_json_lines_that_lack_something_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(write(tmp_path, "jsonl", text))


def test_numbers_in_json_lines_stay_as_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", '{"body": "2020-01-01", "kind": 1}\n{"body": "y", "kind": 2}\n')
    assert read(path) == Rows(["2020-01-01", "y"], ["1", "2"])


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a Parquet file"):
        read(write(tmp_path, "parquet", "PAR1 and no more"))


def test_a_csv_from_a_spreadsheet_has_a_mark_in_front(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("body,kind\nx,a\n", encoding="utf-8-sig")
    assert read(path) == Rows(["x"], ["a"])


def test_a_table_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b"body,kind\n\xff\xfe,a\n")
    with pytest.raises(DataError, match="not a csv table in UTF-8"):
        read(path)


def test_no_text_ends_up_in_two_splits_or_with_two_labels() -> None:
    train = Rows(["x", "x", "y", "z", "z", "t", "w"], ["a", "a", "b", "a", "b", "b", "a"])
    kept, dropped = drop_repeats(train, Rows(["t"], ["b"]), on_overlap="drop_from_train")
    assert kept == Rows(["x", "y", "w"], ["a", "b", "a"])
    assert dropped == {"repeated": 1, "contradictory": 2, "in_test_split": 1}


def test_an_overlap_can_be_refused() -> None:
    with pytest.raises(DataError, match="1 training texts are also in the test split"):
        drop_repeats(Rows(["x"], ["a"]), Rows(["x"], ["a"]), on_overlap="refuse")


@given(st.lists(st.sampled_from("aaaabbc"), min_size=2, max_size=200), st.data())
def test_a_stratified_sample_divides_and_never_empties_a_label(
    labels: list[str], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(labels)))
    chosen, left = stratified(labels, count, seed=1)
    assert sorted([*chosen, *left]) == list(range(len(labels)))
    assert len(chosen) <= count
    rest = Counter(labels[i] for i in left)
    assert set(rest) == set(labels)
    for label, size in Counter(labels).items():
        taken = size - rest[label]
        assert abs(taken - size * count / len(labels)) <= 1 or rest[label] == 1


def test_a_sample_is_that_of_its_seed() -> None:
    labels = ["a"] * 50 + ["b"] * 10
    first, again, other = (stratified(labels, 12, seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert Counter(labels[i] for i in first) == {"a": 10, "b": 2}
