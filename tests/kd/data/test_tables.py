from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.data.formats import Part
from tasks.kd.data.tables import (
    Rows,
    drop_repeats,
    find_similar_labels,
    list_parts,
    read_table,
    stratified,
)
from tasks.kd.errors import DataError
from tests.makers.small_tables import COLUMNS, CSV, layout_of, read, write

TABLES = {
    "csv": 'id,body,kind\n1,"one, two",a\n2,"say ""hi""",b\n',
    "tsv": 'id\tbody\tkind\n1\tone, two\ta\n2\tsay "hi"\tb\n',
    "jsonl": '{"body": "one, two", "kind": "a"}\n{"body": "say \\"hi\\"", "kind": "b"}\n',
    "parquet": pa.table({"body": ["one, two", 'say "hi"'], "kind": ["a", "b"]}),
}
HALF = '{"body": "%s", "kind": "%s"}\n{"body": "y", "kind": "b"}\n'


@pytest.mark.parametrize("kind", TABLES)
def test_each_form_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    table = read(write(tmp_path, kind, TABLES[kind]))
    assert table.rows == Rows(["one, two", 'say "hi"'], ["a", "b"])
    assert (table.dropped, table.replaced, table.warnings) == ({"unreadable": 0, "blank": 0}, 0, [])


NUMBERS: dict[str, Any] = {
    "csv": "body,kind\n1,1\n2,1.0\n3,2.5\n4,-3.00\n",
    "jsonl": "".join(
        f'{{"body": {i}, "kind": {k}}}\n' for i, k in ((1, 1), (2, "1.0"), (3, "2.5"), (4, -3.0))
    ),
    "floats": pa.table({"body": [1, 2, 3, 4], "kind": [1.0, 1.0, 2.5, -3.0]}),
    "short floats": pa.table(
        {"body": [1, 2, 3, 4], "kind": pa.array([1, 1, 2.5, -3], pa.float32())}
    ),
    "decimals": pa.table(
        {"body": ["1", "2", "3", "4"], "kind": [Decimal(x) for x in ["1", "1.00", "2.5", "-3"]]}
    ),
}
TRUTHS: dict[str, Any] = {
    "csv": "body,kind\n1,True\n2,FALSE\n3,true\n",
    "jsonl": '{"body": 1, "kind": true}\n{"body": 2, "kind": false}\n{"body": 3, "kind": "True"}\n',
    "booleans": pa.table({"body": ["1", "2", "3"], "kind": [True, False, True]}),
}


def kind_of(name: str) -> str:
    return name if name in TABLES else "parquet"


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_has_one_spelling_whatever_the_file(name: str, tmp_path: Path) -> None:
    rows = read(write(tmp_path, kind_of(name), NUMBERS[name])).rows
    assert rows == Rows(["1", "2", "3", "4"], ["1", "1", "2.5", "-3"])


@pytest.mark.parametrize("name", TRUTHS)
def test_a_boolean_has_one_spelling_whatever_the_file(name: str, tmp_path: Path) -> None:
    rows = read(write(tmp_path, kind_of(name), TRUTHS[name])).rows
    assert rows.labels == ["true", "false", "true"]


def test_labels_that_are_read_as_one_are_told(tmp_path: Path) -> None:
    table = read(write(tmp_path, "csv", "body,kind\nx,1\ny,1.0\nz, 2\n"))
    assert table.rows.labels == ["1", "1", "2"]
    assert table.warnings == ["labels 1, 1.0 of train.csv are read as 1"]


def test_versions_and_codes_stay_as_they_are(tmp_path: Path) -> None:
    rows = read(write(tmp_path, "csv", "body,kind\nx,1.10\ny,1.1\nz,007\nw,1e3\n")).rows
    assert rows.labels == ["1.10", "1.1", "007", "1e3"]


def test_labels_that_only_look_different_are_told() -> None:
    found = find_similar_labels(
        ["Billing", "billing", "log in", "log  in", "caf\u00e9", "cafe\u0301"]
    )
    assert [sentence.split(" are ")[0] for sentence in found] == [
        "labels 'Billing', 'billing'",
        "labels 'cafe\u0301', 'caf\u00e9'",
        "labels 'log  in', 'log in'",
    ]
    assert find_similar_labels(["a", "b", "a"]) == []


def test_what_other_tools_write_for_nothing_is_told(tmp_path: Path) -> None:
    part = write(tmp_path, "csv", "body,kind\nx,NA\nNone,b\ny,NA\n")
    told = read(part).warnings
    assert [x.split(":")[0] for x in told] == [
        "2 rows of train.csv have the label 'NA'",
        "1 rows of train.csv have the text 'None'",
    ]
    with pytest.raises(
        DataError, match=r"2 rows without text or label: .*row 1, line 2, column 'k"
    ):
        read(part, layout_of("csv", missing=("NA",)))


def test_a_row_of_blanks_is_left_out_and_counted(tmp_path: Path) -> None:
    table = read(write(tmp_path, "csv", "body,kind\nx,a\n , \n   \n\ny,b\n"))
    assert table.rows == Rows(["x", "y"], ["a", "b"])
    assert table.dropped == {"unreadable": 0, "blank": 2}


def test_a_text_that_can_not_be_encoded_is_refused_with_its_row(tmp_path: Path) -> None:
    said = "half of a surrogate pair.*train.jsonl, row 1, line 1, column 'body'.*on_unreadable"
    with pytest.raises(DataError, match=said):
        read(write(tmp_path, "jsonl", HALF % ("x \\ud83d", "a")))


@pytest.mark.parametrize(
    ("mode", "texts", "dropped", "replaced"),
    [("replace", ["x \ufffd", "y"], 0, 1), ("drop", ["y"], 1, 0)],
)
def test_it_can_be_replaced_or_left_out(
    mode: str, texts: list[str], dropped: int, replaced: int, tmp_path: Path
) -> None:
    part = write(tmp_path, "jsonl", HALF % ("x \\ud83d", "a"))
    table = read(part, on_unreadable=mode)
    assert table.rows.texts == texts
    assert (table.dropped["unreadable"], table.replaced) == (dropped, replaced)


def test_both_halves_of_a_pair_are_a_letter(tmp_path: Path) -> None:
    table = read(write(tmp_path, "jsonl", HALF % ("x \\ud83d\\ude00", "a")))
    assert table.rows.texts == ["x \U0001f600", "y"]


def test_half_a_pair_in_a_label_is_no_class(tmp_path: Path) -> None:
    part = write(tmp_path, "jsonl", HALF % ("x", "a\\udc00"))
    with pytest.raises(DataError, match="row 1, line 1, column 'kind'"):
        read(part, on_unreadable="replace")
    assert read(part, on_unreadable="drop").rows == Rows(["y"], ["b"])


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    part = write(tmp_path, "jsonl", '{"body": "\\ud83d", "kind": "a"}\n')
    with pytest.raises(DataError, match=r"an empty split.*found none but 1 unreadable"):
        read(part, on_unreadable="drop")


# --- parts ---------------------------------------------------------------------------------------


def parts_in(folder: Path, **contents: str) -> list[Part]:
    (folder / "train").mkdir()
    for name, content in contents.items():
        (folder / "train" / f"{name}.csv").write_text(content)
    return list_parts(folder, "train", "data/train-*.csv")


def test_parts_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    parts = parts_in(tmp_path, b="kind,body\nb,two\n", a="body,kind\none,a\n")
    assert [part.name for part in parts] == ["data/a.csv", "data/b.csv"]
    table = read_table(parts, CSV, COLUMNS, on_unreadable="refuse")
    assert table.rows == Rows(["one", "two"], ["a", "b"])


def test_a_fault_names_the_part(tmp_path: Path) -> None:
    parts = parts_in(tmp_path, a="body,kind\none,a\n", b="body,kind\ntwo,a\n,a\n")
    with pytest.raises(DataError, match=r"data/b\.csv, row 2, line 3, column 'body'"):
        read_table(parts, CSV, COLUMNS, on_unreadable="refuse")


def test_parts_have_the_same_columns(tmp_path: Path) -> None:
    parts = parts_in(tmp_path, a="body,kind\none,a\n", b="two,a\nthree,b\n")
    with pytest.raises(DataError, match=r"other columns .*data/b\.csv. Expected .*a\.csv: body, k"):
        read_table(parts, CSV, COLUMNS, on_unreadable="refuse")


# --- and what is done with them ------------------------------------------------------------------


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
