"""JSON lines: columns as paths, and lines that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.kd.data.formats import Columns, read_header
from tasks.kd.data.tables import Rows
from tasks.kd.errors import DataError
from tests.makers.small_tables import COLUMNS, FORMATS, read, write

NESTED = Columns("message.body", "kind")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"body": "x", "kind": "a"}\n\n{"body": "y"}\n',
            r"train.jsonl, row 2, line 3, column 'ki",
        ),
        ('{"body": null, "kind": 2}\n', r"without text or label: train.jsonl, row 1"),
        ('{"body": NaN, "kind": 2}\n', r"without text or label"),
        ('{"body": "x", "kind": Infinity}\n', r"no text, number or boolean.*'kind'.*infinite"),
        ('{"body": "x", "kind": "a"}\n{"body": "y", "ki', r"not JSON: train.jsonl:2"),
        ('["x", "a"]\n', r"not a JSON object: train.jsonl:1.*jq -c '\.\[\]'"),
        ('[\n{"body": "x", "kind": "a"}\n]\n', r"not JSON: train.jsonl:1.*jq -c '\.\[\]'"),
        ('"é' + 70 * "é" + '"\n', r"not a JSON object: train.jsonl:1"),
        ('{"body": "x", "kind": ' + 99_999 * "[" + "\n", r"not JSON: train.jsonl:1"),
        ('{"body": "x", "kind": ' + 5_000 * "1" + "}\n", r"not JSON: train.jsonl:1"),
        ('{"body": "x", "kind": 1, "kind": 2}\n', r"two columns are named 'kind': train.jsonl:1"),
        ('{"body": "x", "kind": 1}\n{"body": {"a": 1}, "kind": 1}\n', r"row 2.*'body'.*body\.a"),
        ('{"body": ["x"], "kind": 1}\n', r"row 1, line 1, column 'body'. Found a list of 1"),
        ('{"body": "x", "sort": 1}\n', r"no column 'kind': train.jsonl. Found columns body, sort"),
        (b'{"body": "x", "kind": 1}\n{"body": "\xe9"}\n', r"train.jsonl, line 2. Found byte 0xe9"),
        ("", r"an empty split: train.jsonl"),
    ],
)
def test_lines_that_are_not_as_declared_are_refused_with_their_place(
    content: str | bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        read(write(tmp_path, "jsonl", content))


def test_a_field_inside_an_object_is_a_column(tmp_path: Path) -> None:
    part = write(tmp_path, "jsonl", '{"message": {"body": "x", "to": ["y"]}, "kind": "a"}\n')
    assert read(part, columns=NESTED).rows == Rows(["x"], ["a"])


def test_a_field_of_that_very_name_is_meant_first(tmp_path: Path) -> None:
    part = write(
        tmp_path, "jsonl", '{"message": {"body": "x"}, "message.body": "y", "kind": "a"}\n'
    )
    assert read(part, columns=NESTED).rows == Rows(["y"], ["a"])


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ('{"message": null, "kind": "a"}', r"without text or label: .*row 2.*'message\.body'"),
        ('{"message": {}, "kind": "a"}', r"without text or label: .*row 2"),
        ('{"message": "x", "kind": "a"}', r"'body' is asked of what is no object: .*row 2"),
        ('{"message.body": "x", "kind": "a"}', r"a field of some rows and a path into others"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(second: str, said: str, tmp_path: Path) -> None:
    part = write(tmp_path, "jsonl", '{"message": {"body": "x"}, "kind": "a"}\n' + second)
    with pytest.raises(DataError, match=said):
        read(part, columns=NESTED)


def test_a_head_shows_columns_and_what_is_no_text(tmp_path: Path) -> None:
    part = write(tmp_path, "jsonl", '\n{"body": {"a": "x"}, "kind": "a"}\nno JSON at all')
    header = read_header(part, FORMATS["jsonl"], COLUMNS)
    assert header.names == ["body", "kind"]
    assert "line 2, column 'body': expected text, found an object" in header.faults["body"]
    header = read_header(part, FORMATS["jsonl"], Columns("body.a", "kind"))
    assert (header.names, header.faults) == (["body", "kind", "body.a"], {})


def test_fields_without_a_name_may_be_two(tmp_path: Path) -> None:
    part = write(tmp_path, "jsonl", '{"": 1, "body": "x", "": 2, "kind": "a"}\n')
    assert read(part, FORMATS["jsonl"]).rows == Rows(["x"], ["a"])
