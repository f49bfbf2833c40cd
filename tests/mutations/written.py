"""Good tables, as the tools of their format write them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.mutations.task import Rows, Table

HEADER = ("text", "label")


def write_table(folder: Path, kind: str, table: Table) -> None:
    """Both splits, as train.<kind> and test.<kind>."""
    for name in ("train", "test"):
        write_rows(folder / f"{name}.{kind}", getattr(table, name))


def write_rows(path: Path, rows: Rows) -> None:
    """One split in the format that the name ends in."""
    kind = path.suffix[1:]
    if kind == "parquet":
        write_parquet(path, {"text": list(rows.texts), "label": list(rows.labels)})
    elif kind == "jsonl":
        write_jsonl(path, [{"text": text, "label": label} for text, label in rows.pairs()])
    else:
        write_lines(path, [HEADER, *rows.pairs()], "\t" if kind == "tsv" else ",")


def write_lines(path: Path, rows: Any, separator: str, **dialect: Any) -> None:
    """A table of cells with a separator."""
    if separator == "\t" and not dialect:
        dialect = {"quoting": csv.QUOTE_NONE, "quotechar": None}
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator, lineterminator="\n", **dialect).writerows(rows)


def write_jsonl(path: Path, records: list[Any]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text(
        "".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogatepass"
    )


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    pyarrow.parquet.write_table(pa.table(columns), path)
