"""JSON lines: one object per line; a column may be a path into objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TextIO

from tasks.kd.data.formats.cells import NoTextError, advise_path, show, spell
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


class _RepeatedKeyError(ValueError):
    """An object has a key twice; `names` are its keys in order."""

    def __init__(self, names: list[str]) -> None:
        super().__init__("a repeated key")
        self.names = names


def read_json_lines(part: Part, columns: Columns) -> Iterator[Record]:
    """Every object's two values; None where a line lacks the field.

    Raises DataError for a line that is no JSON object, and for a column that no line has.
    """
    names: dict[str, None] = {}
    paths = {column: _Path(column) for column in columns}
    with open_text(part, "jsonl") as file:
        for row, (line, record) in enumerate(_read_objects(part, file), 1):
            names |= dict.fromkeys(record)
            text, label = (paths[c].find_in(record, part, row, line) for c in columns)
            yield Record(row, line, text, label)
    if names:
        for path in paths.values():
            if path.is_top is None:
                raise no_column(part, path.column, list(names))


def read_json_header(part: Part, columns: Columns) -> Header:
    """The fields of the first object, and the faults of asked columns that can't be text."""
    with open_text(part, "jsonl") as file:
        line, record = next(_read_objects(part, file), (1, {}))
    faults = {}
    names = list(record)
    for column in dict.fromkeys(columns):
        path = _Path(column)
        value = path.find_in(record, part, 1, line)
        try:
            spell(value)
        except NoTextError as error:
            fault = f"{place(part, 1, line, column)}: expected text, found {error}"
            faults[column] = f"{fault}. {advise_path(column, value) or ''}".rstrip()
        if path.is_top is False:
            names.append(column)
    return Header(names, faults)


class _Path:
    """A column's place: a field with exactly that name, or a path into objects at its dots.

    One file uses one of the two.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self.is_top: bool | None = None  # unknown until an object has the column

    def find_in(self, record: Mapping[str, Any], part: Part, row: int, line: int) -> object:
        """The value or None. Raises DataError where the path leads through something else."""
        is_top = self.column in record
        value: object = record.get(self.column)
        if not is_top:
            value = record
            for name in self.column.split("."):
                if value is None:
                    return None
                if not isinstance(value, Mapping):
                    raise DataError(
                        f"{name!r} is asked of what is no object",
                        where=place(part, row, line, self.column),
                        found=show(value),
                    )
                if name not in value:
                    return None
                value = value[name]
        if self.is_top not in (None, is_top):
            raise DataError(
                f"{self.column!r} is a field of some rows and a path into others",
                where=place(part, row, line),
                expected="one of both in the whole file",
            )
        self.is_top = is_top
        return value


def _read_objects(part: Part, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object, with its line's number."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{part.name}:{number}"
        try:
            value = json.loads(line, object_pairs_hook=_once)
        except _RepeatedKeyError as error:
            refuse_repeated(part, error.names, where)
        except (ValueError, RecursionError) as error:
            _refuse_line(where, number, line, error)
        if not isinstance(value, dict):
            raise DataError(
                "not a JSON object",
                where=where,
                expected="an object in each line",
                found=show(line.strip()),
                mend=f"jq -c '.[]' {part.name}" if isinstance(value, list) else None,
            )
        yield number, value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs if name]  # no recipe can ask for an empty name
    if len(set(names)) < len(names):
        raise _RepeatedKeyError([name for name, _ in pairs])
    return dict(pairs)


def _refuse_line(where: str, number: int, line: str, error: Exception) -> NoReturn:
    advice = None
    if number == 1 and line.strip() in ("[", "{"):
        advice = (
            "It is one JSON value over several lines: jq -c '.[]' or jq -c . makes lines of it."
        )
    why = "objects in objects without end" if isinstance(error, RecursionError) else error
    raise DataError("not JSON", where=where, found=f"{why}, in {show(line)}", advice=advice)
