"""Parquet: typed columns, paths into structs, and the class names that `datasets` writes there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.kd.data.formats.cells import list_names
from tasks.kd.data.formats.records import (
    Columns,
    Header,
    Part,
    Record,
    no_column,
    place,
    refuse_repeated,
)
from tasks.kd.errors import DataError
from tasks.kd.file_contents import refuse_pointer

_BATCH_ROWS = 4096
_NO_CLASS = -1  # a missing label, as `datasets` numbers it


def read_parquet(part: Part, columns: Columns) -> Iterator[Record]:
    """Every row's two cells; numbers of classes become their names where the file has them.

    Raises DataError for a file that is not whole, and for a column that is missing or not text.
    """
    with _open(part) as file:
        schema = file.schema_arrow
        refuse_repeated(part, schema.names)
        paths = [_find(part, schema, column) for column in columns]
        for column, path in zip(columns, paths, strict=True):
            if (fault := _type_fault(schema, path)) is not None:
                raise DataError(
                    "a column that is no text, number or boolean",
                    where=place(part, 1, column=column),
                    found=fault,
                )
        classes = _class_names(schema, paths[1])
        before = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=sorted({p[0] for p in paths})):
            cells = zip(*(_cells(batch, path) for path in paths), strict=True)
            for row, (text, label) in enumerate(cells, before + 1):
                name = label if classes is None else _name(part, row, columns, label, classes)
                yield Record(row, None, text, name)
            before += batch.num_rows


def read_parquet_header(part: Part, columns: Columns) -> Header:
    """The columns of the schema, and the faults of asked columns that can't be text."""
    with _open(part) as file:
        schema = file.schema_arrow
    refuse_repeated(part, schema.names)
    names, faults = list(schema.names), {}
    for column in dict.fromkeys(columns):
        try:
            path = _find(part, schema, column)
        except DataError:
            continue
        if column not in names:
            names.append(column)
        if (fault := _type_fault(schema, path)) is not None:
            faults[column] = f"{part.name}, column {column!r}: expected text, found {fault}"
    return Header(names, faults)


@contextmanager
def _open(part: Part) -> Iterator[Any]:
    """The open file. Raises DataError for every error of its library."""
    import pyarrow
    import pyarrow.parquet

    try:
        with part.path.open("rb") as binary:
            refuse_pointer(binary.read(64), part.name)
        with pyarrow.parquet.ParquetFile(part.path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # names may not decode
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError("not a whole Parquet file", where=part.name, found=reason) from error


def _find(part: Part, schema: Any, column: str) -> list[str]:
    """The names from the top column down to the named one. Raises DataError if there is none."""
    if column in schema.names:
        return [column]
    path = column.split(".")
    if path[0] not in schema.names:
        raise no_column(part, column, schema.names)
    kind = schema.field(path[0]).type
    for name in path[1:]:
        if name not in _fields(kind):
            raise no_column(part, column, schema.names)
        kind = kind.field(name).type
    return path


def _fields(kind: Any) -> list[str]:
    import pyarrow

    return [field.name for field in kind] if pyarrow.types.is_struct(kind) else []


def _type_fault(schema: Any, path: list[str]) -> str | None:
    """Why a column's type can't be read as text; None if it can."""
    import pyarrow.types as kinds

    kind = schema.field(path[0]).type
    for name in path[1:]:
        kind = kind.field(name).type
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    readable = (
        *(kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null),
        *(kinds.is_binary, kinds.is_large_binary, kinds.is_fixed_size_binary),
        *(kinds.is_binary_view, kinds.is_boolean, kinds.is_integer, kinds.is_floating),
        kinds.is_decimal,
    )
    if any(holds(kind) for holds in readable):
        return None
    inner = _fields(kind)
    return f"an object with the fields {list_names(inner)}" if inner else f"type {str(kind)[:80]}"


def _cells(batch: Any, path: list[str]) -> list[Any]:
    """A column of a batch as Python values; text that is not UTF-8 stays bytes."""
    import pyarrow
    import pyarrow.compute

    array = batch.column(batch.schema.get_field_index(path[0]))
    if path[1:]:
        array = pyarrow.compute.struct_field(array, path[1:])
    if pyarrow.types.is_float16(array.type) or pyarrow.types.is_float32(array.type):
        # A short float keeps its own digits: 0.1, not 0.10000000149011612.
        kind = array.type.to_pandas_dtype()
        return [None if value is None else float(str(kind(value))) for value in array.to_pylist()]
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        if pyarrow.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        return list(array.cast(pyarrow.large_binary()).to_pylist())


def _class_names(schema: Any, path: list[str]) -> list[str] | None:
    """The class names that `datasets` noted for a column's numbers; None without a note."""
    import pyarrow

    noted = (schema.metadata or {}).get(b"huggingface")
    kind = schema.field(path[0]).type
    if noted is None or (not path[1:] and not pyarrow.types.is_integer(kind)):
        return None
    try:
        feature = json.loads(noted)["info"]["features"]
        for name in path:
            feature = feature[name]
        return _names_of(feature)
    except (ValueError, KeyError, TypeError):
        return None


def _names_of(feature: Any) -> list[str] | None:
    if feature.get("_type") != "ClassLabel":
        return None
    return [str(name) for name in feature["names"]]


def _name(part: Part, row: int, columns: Columns, label: Any, classes: list[str]) -> str | None:
    if label is None or label == _NO_CLASS:
        return None
    if not isinstance(label, int) or not 0 <= label < len(classes):
        raise DataError(
            "a label that the file has no class name for",
            where=place(part, row, column=columns.label),
            expected=f"0 to {len(classes) - 1}, of {list_names(classes)}",
            found=label,
        )
    return classes[label]
