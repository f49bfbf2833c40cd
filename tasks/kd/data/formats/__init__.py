"""Forms of tables (csv, tsv, jsonl, parquet): their headers, and their rows one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.kd.data.formats.cells import list_names
from tasks.kd.data.formats.json_lines import read_json_header, read_json_lines
from tasks.kd.data.formats.parquet import read_parquet, read_parquet_header
from tasks.kd.data.formats.records import Columns, Header, Part, Record
from tasks.kd.data.formats.separated import read_separated, read_separated_header
from tasks.kd.errors import DataError
from tasks.kd.recipe.sources import CsvFormat, FileFormat, JsonLinesFormat, TsvFormat

__all__ = [
    "Columns",
    "Header",
    "Part",
    "Record",
    "read_header",
    "read_records",
    "require_same_columns",
]


def read_header(part: Part, layout: FileFormat, columns: Columns) -> Header:
    """A part's columns, from its header line, its schema or, in jsonl, its first object.

    Raises DataError for a file of another form, and for two columns with one name.
    """
    if isinstance(layout, CsvFormat | TsvFormat):
        return read_separated_header(part, layout)
    if isinstance(layout, JsonLinesFormat):
        return read_json_header(part, columns)
    return read_parquet_header(part, columns)


def read_records(part: Part, layout: FileFormat, columns: Columns) -> Iterator[Record]:
    """The two named cells of every row of a part, in file order.

    Raises DataError, with row and line, for a row that is not of the form.
    """
    if isinstance(layout, CsvFormat | TsvFormat):
        return read_separated(part, layout, columns)
    if isinstance(layout, JsonLinesFormat):
        return read_json_lines(part, columns)
    return read_parquet(part, columns)


def require_same_columns(parts: Sequence[Part], layout: FileFormat, columns: Columns) -> None:
    """Raise DataError if a part has other columns than the first part.

    JSON lines are exempt: objects may leave fields out, and each one is checked as it is read.
    """
    if len(parts) < 2 or isinstance(layout, JsonLinesFormat):
        return
    first = set(read_header(parts[0], layout, columns).names)
    for part in parts[1:]:
        names = read_header(part, layout, columns).names
        if set(names) != first:
            raise DataError(
                "a part has other columns than the first one",
                where=part.name,
                expected=f"those of {parts[0].name}: {list_names(sorted(first))}",
                found=list_names(names),
            )
