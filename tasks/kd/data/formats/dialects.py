"""The dialect of a text table, separators and quotes, guessed from its first lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from tasks.kd.data.formats.cells import ABSENT_SPELLINGS, list_names
from tasks.kd.data.formats.records import Columns, Part, open_text
from tasks.kd.data.formats.separated import read_with
from tasks.kd.recipe.sources import CsvFormat, TsvFormat

SAMPLE_LETTERS = 1 << 18
_LONGEST_ROW = 100  # lines; a quote that stays open longer was no opening quote
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_QUOTED: tuple[tuple[str | None, str | None], ...] = (('"', None), ('"', "\\"))
_UNQUOTED: tuple[tuple[str | None, str | None], ...] = ((None, None), (None, "\\"))


class _Sample(NamedTuple):
    lines: list[str]
    is_cut: bool  # the file goes on


@dataclass(frozen=True)
class _Trial:
    """The samples as one dialect reads them."""

    layout: CsvFormat | TsvFormat
    tables: list[list[list[str]]]  # each begins with its header, names without blanks around them
    is_whole: bool  # every sample could be read to its end
    even: float  # share of rows with as many cells as the header

    def worth(self, columns: Columns) -> tuple[bool, bool, bool, bool, float, bool]:
        """The criteria between dialects, the weightiest first; larger is better."""
        headers = [table[0] if table else [] for table in self.tables]
        return (
            all(set(columns) <= set(header) for header in headers),
            all(len(header) > 1 for header in headers),
            self.layout.kind == "tsv" or not self.leaves_quotes,
            self.is_whole,
            self.even,
            not self._leaves_escapes,
        )

    @property
    def leaves_quotes(self) -> bool:
        """Whether a quoted cell keeps its quotes; in a tsv, only if doubled quotes stand inside."""
        return self.layout.quote is None and any(
            len(cell) > 1 and cell[0] == cell[-1] == '"' and self._is_sure(cell[1:-1])
            for table in self.tables
            for row in table
            for cell in row
        )

    @property
    def _leaves_escapes(self) -> bool:
        """Whether a backslash before a quote is left in a cell."""
        return self.layout.escape is None and any(
            '\\"' in cell for table in self.tables for row in table for cell in row
        )

    def _is_sure(self, inside: str) -> bool:
        return self.layout.kind == "csv" or '""' in inside


def propose_layout(
    kind: Literal["csv", "tsv"], parts: Sequence[Part], columns: Columns
) -> tuple[CsvFormat | TsvFormat, str]:
    """The dialect that reads the parts' first lines as tables with these columns; and its wording.

    Every separator is tried with every manner of quoting. The best dialect has the columns, reads
    to the end and gives every row as many cells as the header. The kind's own and plainest dialect
    wins a tie, and is the result without parts. Raises DataError for a file that is not UTF-8.
    """
    samples = [_read_sample(part, kind) for part in parts]
    trials = [_try(layout, samples) for layout in _list_layouts(kind)]
    best = max(trials, key=lambda trial: trial.worth(columns))  # the first of equals
    quoted = [t for t in trials if t.layout.quote and t.worth(columns) >= best.worth(columns)]
    if best.leaves_quotes and quoted:
        best = quoted[0]
    layout = best.layout.model_copy(update={"missing": _spelled_absent(best, columns)})
    return layout, _describe(layout, best.tables)


def _list_layouts(kind: Literal["csv", "tsv"]) -> Iterator[CsvFormat | TsvFormat]:
    """Every dialect, the kind's own first: csv is quoted, tsv is not."""
    if kind == "tsv":
        for quote, escape in (*_UNQUOTED, *_QUOTED):
            yield TsvFormat(kind="tsv", quote=quote, escape=escape, missing=(), skip_lines=0)
        return
    for (quote, escape), separator in product((*_QUOTED, *_UNQUOTED), _SEPARATORS):
        yield CsvFormat(
            kind="csv", separator=separator, quote=quote, escape=escape, missing=(), skip_lines=0
        )


def _read_sample(part: Part, kind: str) -> _Sample:
    """The first lines of a part, without a last line that is cut."""
    with open_text(part, kind) as file:
        text, is_cut = file.read(SAMPLE_LETTERS), bool(file.read(1))
    lines = list(io.StringIO(text, newline=""))
    return _Sample(lines[:-1] if is_cut and len(lines) > 1 else lines, is_cut)


def _try(layout: CsvFormat | TsvFormat, samples: Sequence[_Sample]) -> _Trial:
    tables, is_whole, good, all_rows = [], True, 0, 0
    for sample in samples:
        table, ended_well = _parse(layout, sample)
        header = [name.strip() for name in table[0]] if table else []
        tables.append([header, *table[1:]])
        is_whole &= ended_well
        good += sum(len(row) == len(header) for row in table[1:])
        all_rows += len(table[1:]) if ended_well else len(sample.lines)
    return _Trial(layout, tables, is_whole, good / all_rows if all_rows else 1.0)


def _parse(layout: CsvFormat | TsvFormat, sample: _Sample) -> tuple[list[list[str]], bool]:
    """Rows, and whether they ended well: after the last line, or in a row that the sample cut."""
    reader, rows, before = read_with(sample.lines, layout), [], 0
    try:
        for row in reader:
            before = reader.line_num
            if any(cell.strip() for cell in row):
                rows.append(row)
    except csv.Error:
        left = len(sample.lines) - before
        is_end = reader.line_num >= len(sample.lines)
        return rows, sample.is_cut and is_end and left <= _LONGEST_ROW
    return rows, True


def _spelled_absent(trial: _Trial, columns: Columns) -> tuple[str, ...]:
    """Spellings of a missing value in the two columns, sorted."""
    cells = set[str]()
    for header, *rows in trial.tables:
        for at in (header.index(column) for column in columns if column in header):
            cells |= {row[at].strip() for row in rows if len(row) == len(header)}
    return tuple(sorted(cells & ABSENT_SPELLINGS))


def _describe(layout: CsvFormat | TsvFormat, tables: Sequence[list[list[str]]]) -> str:
    quoting = "no quotes"
    if layout.quote is not None:
        manner = "doubled" if layout.escape is None else f"behind {layout.escape}"
        quoting = f"quotes {layout.quote}, inside a cell {manner}"
    told = f"{_SEPARATORS[layout.separator]} between cells, {quoting}"
    if layout.missing:
        told += f", no value spelled {list_names(list(layout.missing))}"
    return told + (f"; columns {list_names(tables[0][0])}" if tables else "")
