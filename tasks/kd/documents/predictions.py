"""What teacher and student said of each test example: rows of predictions.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tasks.kd.digests import write_bytes
from tasks.kd.documents.document import find_remake, read_bytes
from tasks.kd.errors import DataError

PREDICTIONS = "predictions.csv"

_TITLE = "the predictions"


class Prediction(NamedTuple):
    """A test example: its id, and the names of its label and of both models' answers."""

    example_id: str
    label: str
    teacher: str
    student: str


def write_predictions(folder: Path, rows: Iterable[Prediction]) -> None:
    """Write the rows under a header of their fields."""
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(Prediction._fields)
    for row in rows:  # a carriage return ends a row unless it is quoted, which `plain` leaves out
        (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
    write_bytes(folder / PREDICTIONS, text.getvalue().encode())


def read_predictions(folder: Path) -> list[Prediction]:
    """The rows of a stage's out, or of a run's copy of it.

    Raises DataError for a table of another form, and for one that is cut short.
    """
    path = folder / PREDICTIONS
    try:
        text = read_bytes(path, _TITLE).decode()
        header, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refuse("are no table", path, "comma-separated text in UTF-8", error) from None
    if tuple(header) != Prediction._fields:
        raise _refuse(
            "have another header",
            path,
            ",".join(Prediction._fields),
            ",".join(header) or "an empty file",
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(Prediction._fields):
            raise _refuse(
                f"have a broken row {number}",
                path,
                f"{len(Prediction._fields)} fields",
                len(row),
            )
    if not text.endswith("\n"):
        raise _refuse("are cut short", path, "an end of line", "none")
    return [Prediction(*row) for row in rows]


def _refuse(what: str, path: Path, expected: object, found: object) -> DataError:
    return DataError(
        f"{_TITLE} {what}", where=path, expected=expected, found=found, mend=find_remake(path)
    )
