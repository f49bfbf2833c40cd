"""CSV and TSV: dialects, and what a broken one is refused with."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.data.formats.separated import read_with
from tasks.kd.data.tables import Rows
from tasks.kd.errors import DataError
from tests.makers.small_tables import CSV, layout_of, read, write


def test_rows_after_the_header_can_be_left_out(tmp_path: Path) -> None:
    part = write(tmp_path, "tsv", "body\tkind\nstring\td\nclass\t\nhello\ta\n")
    assert read(part, layout_of("tsv", skip_lines=2)).rows == Rows(["hello"], ["a"])


@pytest.mark.parametrize("content", ["\ufeffbody,kind\nx,a\n", "\n\nbody , kind,,\r\nx,a,,\r\n"])
def test_a_mark_in_front_blanks_and_columns_without_a_name_do_no_harm(
    content: str, tmp_path: Path
) -> None:
    assert read(write(tmp_path, "csv", content)).rows == Rows(["x"], ["a"])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_any_system_ends_them(end: str, tmp_path: Path) -> None:
    part = write(tmp_path, "csv", end.join(["body,kind", "x,a", '"y, and', 'more",b', ""]))
    assert read(part).rows == Rows(["x", f"y, and{end}more"], ["a", "b"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("body,sort\nx,a\n", r"no column 'kind': train.csv. Found columns body, sort"),
        ("body,kind\n", r"an empty split: train.csv"),
        ("", r"an empty file: train.csv. Expected a header line"),
        ("body,kind\nx,a\n,b\n", r"1 rows without text or label: train.csv, row 2, line 3.*'body'"),
        ("body,kind\nx,\n", r"without text or label: train.csv, row 1, line 2, column 'kind'"),
        (
            'body,kind\n"x\ny",a\nx,a,b\n',
            r"number of columns: train.csv, row 2, line 4. .*2, found 3",
        ),
        ('body,kind\nx,"a\n', r"not a csv table.*train.csv, row 1, line 2.*unexpected end of data"),
        ('body,kind\nx,a\n\n"y,b\n"z,b\n', r"not a csv table.*train.csv, row 2, line 4"),
        ('"body,kind\nx,a\n', r"not a csv table.*train.csv, header, line 1"),
        ('body,kind\n"x \\"y\\"",a\n', r"not a csv table.*row 1, line 2. Expected .*escape null"),
        ("body,kind,kind\nx,a,b\n", r"two columns are named 'kind': train.csv"),
        ("body,kind, kind\nx,a,b\n", r"two columns are named 'kind': train.csv"),
        ("body,kind\nx,a\ny\0,b\n", r"a NUL byte.*train.csv, line 3"),
        ("body,kind\nx,a\n".encode("utf-16"), r"not a csv table in UTF-8: train.csv. Found UTF-16"),
        ("body,kind\nx,a\n".encode("utf-16-le"), r"a NUL byte.*line 1. If it is UTF-16"),
        ("body,kind\nx,a\nné,b\n".encode("latin-1"), r"train.csv, line 3. Found byte 0xe9"),
        (gzip.compress(b"body,kind\nx,a\n", mtime=0), r"train.csv. Found gzip. Unpack it"),
        (b"PK\x03\x04 and so on", r"train.csv. Found a zip archive or a spreadsheet"),
        (b"PAR1 and so on", r"train.csv. Found Parquet"),
        (
            "version https://git-lfs.github.com/spec/v1\n",
            r"pointer in the place of the file: train.csv",
        ),
    ],
)
def test_a_table_that_is_not_as_declared_is_refused_with_its_place(
    content: str | bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        read(write(tmp_path, "csv", content))


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ('body,kind\nx,a\ny,b\n"z,b\nw,a\nv",b\n', "row 3, line 4"),
        ('body,kind\nx,a\ny,b\n"z,b\nw",b\n', "row 3, line 4"),
        ('kind,body\na,x\nb,"y\nb,z\na,w"\n', "row 2, line 3"),
    ],
)
def test_a_quote_that_swallows_rows_is_refused_where_it_opened(
    content: str, row: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"holds what look like rows: train.csv, {row}"):
        read(write(tmp_path, "csv", content))


def test_a_text_of_several_lines_is_no_such_quote(tmp_path: Path) -> None:
    part = write(tmp_path, "csv", 'body,kind\nx,a\n"y, and\nmore, so\nto say",b\n')
    assert read(part).rows.texts == ["x", "y, and\nmore, so\nto say"]


def test_a_backslash_before_a_quote_can_make_it_a_letter(tmp_path: Path) -> None:
    part = write(tmp_path, "csv", 'body,kind\n"say \\"hi\\", C:\\new\\\\x",a\n"so ""too""",b\n')
    rows = read(part, layout_of("csv", escape="\\")).rows
    assert rows.texts == ['say "hi", C:\\new\\x', 'so "too"']


def test_text_behind_a_closing_quote_is_refused_with_an_escape_too(tmp_path: Path) -> None:
    part = write(tmp_path, "csv", 'body,kind\n"say" hi,a\n')
    with pytest.raises(DataError, match="row 1, line 2"):
        read(part, layout_of("csv", escape="\\"))


def test_without_quotes_an_escape_is_before_a_separator(tmp_path: Path) -> None:
    part = write(tmp_path, "csv", 'body,kind\nsay\\, "hi" \\n,a\n')
    rows = read(part, layout_of("csv", quote=None, escape="\\")).rows
    assert rows.texts == ['say, "hi" \\n']


def test_quotes_that_a_format_leaves_in_the_text_are_told(tmp_path: Path) -> None:
    part = write(tmp_path, "tsv", 'body\tkind\n"say ""hi"""\ta\nso "they" say\tb\n')
    table = read(part)
    assert table.rows.texts == ['"say ""hi"""', 'so "they" say']
    assert table.warnings[0].startswith("1 texts of train.tsv stand in quotes with doubled")
    table = read(part, layout_of("tsv", quote='"'))
    assert (table.rows.texts, table.warnings) == (['say "hi"', 'so "they" say'], [])


# What a cell may hold: all that dialects are about, and no other line ends than csv has.
CELLS = st.lists(
    st.lists(st.text('ab ",;|\t\\\n', max_size=8), min_size=2, max_size=2), min_size=1, max_size=5
)


@given(CELLS, st.sampled_from(",;|\t"), st.booleans())
def test_what_a_dialect_writes_is_read_again(
    rows: list[list[str]], separator: str, escaped: bool
) -> None:
    file = io.StringIO(newline="")
    escape = "\\" if escaped else None
    csv.writer(
        file, delimiter=separator, escapechar=escape, doublequote=not escaped, quoting=csv.QUOTE_ALL
    ).writerows(rows)
    layout = CSV.model_copy(update={"separator": separator, "escape": escape})
    lines = list(io.StringIO(file.getvalue(), newline=""))
    assert list(read_with(lines, layout)) == rows
