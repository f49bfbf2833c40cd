"""CSV and TSV: rows of separated cells, in the dialect that a recipe names."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tasks.kd.data.formats.cells import show
from tasks.kd.data.formats.records import (
    Columns,
    Header,
    Part,
    Record,
    no_column,
    open_text,
    place,
    refuse_repeated,
)
from tasks.kd.errors import DataError
from tasks.kd.recipe.sources import CsvFormat, TsvFormat

Separated = CsvFormat | TsvFormat

csv.field_size_limit(2**31 - 1)

_LINE_END = re.compile(r"\r\n|\r|\n")


def read_separated(part: Part, layout: Separated, columns: Columns) -> Iterator[Record]:
    """Every row's two cells. Raises DataError, with row and line, for a row of another dialect."""
    row = 0
    with open_text(part, layout.kind) as file:
        try:
            for record in _read_records(part, _read_rows(part, file, layout), layout, columns):
                row = record.row
                yield record
        except _BrokenRowError as error:
            raise _broken(part, layout, row + 1, error) from None


def read_separated_header(part: Part, layout: Separated) -> Header:
    """The columns that the header line names."""
    with open_text(part, layout.kind) as file:
        return Header(_read_names(part, _read_rows(part, file, layout), layout), {})


def _read_records(
    part: Part, rows: Iterator[tuple[int, bool, list[str]]], layout: Separated, columns: Columns
) -> Iterator[Record]:
    names = _read_names(part, rows, layout)
    text, label = (_find(part, column, names) for column in columns)
    for _ in range(layout.skip_lines):
        next(rows, None)
    swallowed = _Swallowed(layout, len(names), label)
    filled = (found for found in rows if found[2])  # without empty lines
    for row, (line, is_long, cells) in enumerate(filled, 1):
        if not any(cell.strip() for cell in cells):
            yield Record(row, line, None, None, is_blank=True)
            continue
        if len(cells) != len(names):
            raise DataError(
                "a row with the wrong number of columns",
                where=place(part, row, line),
                expected=len(names),
                found=f"{len(cells)}, {show(cells)}",
            )
        swallowed.look_at(row, line, cells, is_long=is_long)
        yield Record(row, line, _value(cells[text], layout), _value(cells[label], layout))
    swallowed.refuse(part)


def read_with(lines: Iterable[str], layout: Separated) -> Any:
    """Python's csv reader for lines of the dialect.

    Python's reader takes the escape character as an escape before any letter. It is meant only
    before a quote, before itself and, where nothing is quoted, before the separator (there pandas
    writes it before `"` too). Every other one is doubled here, so that it is read as a letter.

    >>> layout = CsvFormat(
    ...     kind="csv", separator=";", quote='"', escape=None, missing=(), skip_lines=0
    ... )
    >>> list(read_with(['"good; really";pos'], layout))
    [['good; really', 'pos']]
    """
    if layout.escape is not None:
        meant = layout.escape + (layout.quote or f'"{layout.separator}')
        escape = re.escape(layout.escape)
        lone = re.compile(rf"{escape}(?:([{re.escape(meant)}])|)")
        twice = layout.escape * 2
        lines = (lone.sub(lambda m: m[0] if m[1] else twice, line) for line in lines)
    return csv.reader(
        lines,
        delimiter=layout.separator,
        quotechar=layout.quote,
        quoting=csv.QUOTE_NONE if layout.quote is None else csv.QUOTE_MINIMAL,
        escapechar=layout.escape,
        doublequote=True,  # else text after a closing quote passes, `strict` or not
        strict=True,
    )


class _BrokenRowError(Exception):
    """Python's reader gave up: the reason, the row's first line and the line where it stopped."""

    def __init__(self, why: csv.Error, first: int, last: int) -> None:
        super().__init__(why)
        self.first, self.last = first, last


def _read_rows(
    part: Part, file: Iterable[str], layout: Separated
) -> Iterator[tuple[int, bool, list[str]]]:
    """Each row, the header included: its first line, whether it spans several lines, its cells."""
    reader = read_with(_refuse_nul(part, file), layout)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _BrokenRowError(error, line, reader.line_num) from None
        yield line, reader.line_num > line, cells


def _broken(part: Part, layout: Separated, row: int, error: _BrokenRowError) -> DataError:
    where = place(part, row, error.first) if row else f"{part.name}, header, line {error.first}"
    signs = {"separator": layout.separator, "quote": layout.quote, "escape": layout.escape}
    dialect = ", ".join(f"{k} {'null' if v is None else repr(v)}" for k, v in signs.items())
    return DataError(
        f"not a {layout.kind} table as fetch_sources.data.format describes it",
        where=where,
        expected=dialect,
        found=f"{error}, in line {error.last}",
        advice="Mend the row, where a quote may have been opened, or the format.",
    )


def _refuse_nul(part: Part, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise DataError(
                "a NUL byte, which no table of text holds",
                where=f"{part.name}, line {number}",
                advice="If it is UTF-16, convert it.",
                mend=f"iconv -f UTF-16LE -t UTF-8 {part.name}",
            )
        yield line


def _read_names(
    part: Part, rows: Iterator[tuple[int, bool, list[str]]], layout: Separated
) -> list[str]:
    try:
        cells = next((cells for _, _, cells in rows if any(cell.strip() for cell in cells)), None)
    except _BrokenRowError as error:
        raise _broken(part, layout, 0, error) from None
    if cells is None:
        raise DataError("an empty file", where=part.name, expected="a header line")
    names = [name.strip() for name in cells]
    refuse_repeated(part, names)
    return names


def _find(part: Part, column: str, names: list[str]) -> int:
    if column not in names:
        raise no_column(part, column, names)
    return names.index(column)


def _value(cell: str, layout: Separated) -> str | None:
    return None if cell.strip() in layout.missing else cell


class _Suspect(NamedTuple):
    row: int
    line: int
    labels: list[str]


class _Swallowed:
    """Quoted cells that swallowed rows, since a quote that was meant as a letter opened them.

    The next such quote closes the cell: the table stays well formed, and rows are gone. Each line
    of the cell then looks like a row, with a label that other rows have.
    """

    def __init__(self, layout: Separated, width: int, label: int) -> None:
        self._layout, self._width, self._label = layout, width, label
        self._labels = set[str]()
        self._suspects: list[_Suspect] = []

    def look_at(self, row: int, line: int, cells: list[str], *, is_long: bool) -> None:
        """Note a row's label, and its cells of several lines."""
        self._labels.add(cells[self._label].strip())
        if not is_long:
            return
        for column, cell in enumerate(cells):
            if "\n" in cell or "\r" in cell:
                labels = self._labels_within(column, _LINE_END.split(cell))
                if labels:
                    self._suspects.append(_Suspect(row, line, labels))

    def refuse(self, part: Part) -> None:
        """Raise DataError for the first cell that holds rows."""
        for row, line, labels in self._suspects:
            if self._labels.issuperset(labels):
                raise DataError(
                    "a quoted cell holds what look like rows",
                    where=place(part, row, line),
                    found=f"{len(labels)} lines in it with a label, {show(labels[0])} the first",
                    advice="A quote that is a letter opened it: double it, or set format.quote.",
                )

    def _labels_within(self, column: int, lines: list[str]) -> list[str]:
        """The labels in a cell's lines, read as rows; an empty list if one line can't be a row."""
        label, width = self._label, self._width
        # (line, number of columns it must have, its label's column)
        looked_at = [(line, width, label) for line in lines[1:-1]]
        if label > column:
            looked_at.append((lines[0], width - column, label - column))
        if label < column:
            looked_at.append((lines[-1], column + 1, label))
        labels = []
        for line, columns, at in looked_at:
            cells = line.split(self._layout.separator)
            if len(cells) != columns:
                return []
            labels.append(cells[at].strip().strip('"'))
        return labels
