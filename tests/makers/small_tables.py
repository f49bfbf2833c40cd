"""Small tables for tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.kd.data.formats import Columns, Part
from tasks.kd.data.tables import Table, read_table
from tasks.kd.recipe.sources import (
    CsvFormat,
    FileFormat,
    JsonLinesFormat,
    ParquetFormat,
    TsvFormat,
)

COLUMNS = Columns("body", "kind")
CSV = CsvFormat(kind="csv", separator=",", quote='"', escape=None, missing=(), skip_lines=0)
TSV = TsvFormat(kind="tsv", quote=None, escape=None, missing=(), skip_lines=0)
FORMATS: dict[str, FileFormat] = {
    "csv": CSV,
    "tsv": TSV,
    "jsonl": JsonLinesFormat(kind="jsonl"),
    "parquet": ParquetFormat(kind="parquet"),
}


def layout_of(kind: str, **changes: Any) -> FileFormat:
    """The plain form of that kind, with some fields changed."""
    return FORMATS[kind].model_copy(update=changes)


def write(folder: Path, kind: str, content: str | bytes | Any) -> Part:
    """A file of text, of bytes, or of an Arrow table, known as train.<kind>."""
    path = folder / f"train.{kind}"
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(content, path)
    return Part(path, path.name)


def read(
    part: Part,
    layout: FileFormat | None = None,
    columns: Columns = COLUMNS,
    on_unreadable: str = "refuse",
) -> Table:
    """The table of one part."""
    found = layout or FORMATS[part.path.suffix.removeprefix(".")]
    return read_table([part], found, columns, on_unreadable=on_unreadable)
