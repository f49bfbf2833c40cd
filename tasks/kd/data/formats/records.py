"""The common reading of all forms of tables: records with their place, from named parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from tasks.kd.data.formats.cells import list_names
from tasks.kd.errors import DataError
from tasks.kd.file_contents import refuse_pointer

# First bytes of other files that people give as a text table.
_SIGNATURES = (
    (b"\x1f\x8b", "gzip", "Unpack it.", "gunzip -k"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "Save it as CSV in UTF-8.", None),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet", "Save it as CSV in UTF-8.", None),
    (b"BZh", "bzip2", "Unpack it.", "bunzip2 -k"),
    (b"\xfd7zXZ", "xz", "Unpack it.", "unxz -k"),
    (b"\x28\xb5\x2f\xfd", "zstandard", "Unpack it.", "unzstd"),
    (b"PAR1", "Parquet", "Set format.kind to parquet.", None),
    (b"\xff\xfe", "UTF-16", "Convert it.", "iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", "Convert it.", "iconv -f UTF-16 -t UTF-8"),
)


@dataclass(frozen=True)
class Part:
    """One file of a table, and the user's name for it."""

    path: Path
    name: str


class Columns(NamedTuple):
    """Names of the two columns that are read."""

    text: str
    label: str


class Record(NamedTuple):
    """A row's two cells. `row` counts from 1 after the header; `line` is the line in the file."""

    row: int
    line: int | None
    text: object
    label: object
    is_blank: bool = False  # all cells are blank


@dataclass(frozen=True)
class Header:
    """A table's columns, and why some of them can't be read as text."""

    names: list[str]
    faults: dict[str, str]  # by asked column


def place(part: Part, row: int, line: int | None = None, column: str | None = None) -> str:
    """A place in a part, for a message."""
    text = f"{part.name}, row {row}"
    if line is not None:
        text += f", line {line}"
    return text if column is None else f"{text}, column {column!r}"


def no_column(part: Part, column: str, names: list[str]) -> DataError:
    """The error for a table without the column."""
    return DataError(f"no column {column!r}", where=part.name, found=f"columns {list_names(names)}")


def refuse_repeated(part: Part, names: list[str], where: str | None = None) -> None:
    """Raise DataError if two columns share a name. Columns without a name don't count."""
    seen = set[str]()
    for name in filter(None, names):
        if name in seen:
            raise DataError(
                f"two columns are named {name!r}",
                where=where or part.name,
                expected="one name for each",
                found=list_names(names),
                advice="Rename one of them.",
            )
        seen.add(name)


@contextmanager
def open_text(part: Part, kind: str) -> Iterator[TextIO]:
    """The open text file, UTF-8 with or without a byte order mark, line ends unchanged.

    Raises DataError for another kind of file, and with the line for bytes that are not UTF-8.
    """
    with part.path.open("rb") as binary:
        start = binary.read(32)
    refuse_pointer(start, part.name)
    for signature, what, advice, command in _SIGNATURES:
        if start.startswith(signature):
            raise DataError(
                f"not a {kind} table in UTF-8",
                where=part.name,
                found=what,
                advice=advice,
                mend=command and f"{command} {part.name}",
            )
    with part.path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError:
            raise _not_utf_8(part, kind) from None


def _not_utf_8(part: Part, kind: str) -> DataError:
    """The error that names the first byte that is not UTF-8, with its line."""
    with part.path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return DataError(
                    f"not a {kind} table in UTF-8",
                    where=f"{part.name}, line {number}",
                    found=f"byte 0x{line[error.start]:02x} at column {error.start + 1}",
                    advice="If it is Latin-1, convert it.",
                    mend=f"iconv -f WINDOWS-1252 -t UTF-8 {part.name}",
                )
    raise AssertionError("it was not UTF-8 a moment ago")
