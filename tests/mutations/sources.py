"""Tables that are told otherwise in the recipe: parts, paths into fields, dialects, class names."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.mutations.cases import Case, Change, Expected, Mutation, either, fatal, harmless
from tests.mutations.task import LABELS, Rows
from tests.mutations.written import HEADER, write_jsonl, write_rows

SPLITS = ("train", "test")


def mutations() -> Iterator[Mutation]:
    for parts in (1, 3):
        for way in ("a folder", "a pattern"):
            yield Mutation("parts", f"{parts} by {way}", _parts(parts, way))
    for what in _BROKEN_PARTS:
        yield Mutation("parts", what, _broken_parts(what))
    for name in ("text", "label", "both"):
        yield Mutation("path into fields", name, _nested(name)).of("jsonl", "parquet")
    yield Mutation("path into fields", "of a field that is not there", _no_field).of(
        "jsonl", "parquet"
    )
    for title, (dialect, fields) in _DIALECTS.items():
        yield Mutation("dialect told", title, _told(dialect, fields)).of("csv")
    for word in ("NA", "null", "-", "N/A"):
        yield Mutation("dialect told", f"missing spelt {word}", _missing(word)).of("csv", "tsv")
    for kept in (True, False):
        title = "with names" if kept else "with numbers alone"
        yield Mutation("class labels of datasets", title, _class_labels(kept)).of("parquet")


def _name(case: Case, split: str, path: str) -> None:
    case.recipe["fetch_sources"]["data"][split] = path


def _written_in_parts(case: Case, split: str, parts: int) -> list[Path]:
    rows: Rows = getattr(case.table, split)
    folder = case.root / "data" / split
    folder.mkdir()
    step = -(-len(rows) // parts)
    paths = []
    for i in range(parts):
        piece = slice(i * step, (i + 1) * step)
        paths.append(folder / f"part-{i:05}.{case.format}")
        write_rows(paths[-1], Rows(rows.texts[piece], rows.labels[piece]))
    case.split(split).unlink()
    return paths


def _parts(parts: int, way: str) -> Change:
    def apply(case: Case) -> Expected:
        for split in SPLITS:
            _written_in_parts(case, split, parts)
            pattern = f"/part-*.{case.format}" if way == "a pattern" else ""
            _name(case, split, f"data/{split}{pattern}")
        # Of a pattern DVC tracks the folder; a list of recipes that says otherwise is refused.
        return harmless() if way == "a folder" else either("pattern", "recipes", "train")

    return apply


_BROKEN_PARTS = ("one empty", "one of other columns", "one of another format", "none", "one broken")


def _broken_parts(what: str) -> Change:
    def apply(case: Case) -> Expected:
        for split in SPLITS:
            paths = _written_in_parts(case, split, 3)
            _name(case, split, f"data/{split}")
        last = paths[-1]
        if what == "one empty":
            last.write_bytes(b"")
        elif what == "one of other columns":
            other = last.with_suffix(".x")
            rows = [{"body": "refund", "topic": "billing"}]
            if case.format == "parquet":
                pyarrow.parquet.write_table(pa.Table.from_pylist(rows), other)
            elif case.format == "jsonl":
                write_jsonl(other, rows)
            else:
                other.write_text("body\ttopic\nrefund\tbilling\n".replace("\t", _separator(case)))
            other.rename(last)
        elif what == "one of another format":
            last.write_bytes(b"\x00\x01\x02 nothing\n")
        elif what == "none":
            for path in paths:
                path.unlink()
        else:
            last.write_bytes(last.read_bytes()[:-9])
        return either("test", "part") if what == "one empty" else fatal("test", "part", "label")

    return apply


def _separator(case: Case) -> str:
    return "\t" if case.format == "tsv" else ","


def _nested(which: str) -> Change:
    """A message's text, or its label, or both lie in an object of their own."""

    def apply(case: Case) -> Expected:
        for split in SPLITS:
            records: list[dict[str, Any]] = []
            for text, label in getattr(case.table, split).pairs():
                flat: dict[str, Any] = {"text": text, "label": label}
                moved = HEADER if which == "both" else (which,)
                inner = {name: flat.pop(name) for name in moved}
                records.append(flat | {"message": inner | {"by": "me"}})
            _write_records(case, split, records)
        for name in HEADER if which == "both" else (which,):
            case.recipe["prepare_data"][f"{name}_column"] = f"message.{name}"
        return harmless()

    return apply


def _write_records(case: Case, split: str, records: list[dict[str, Any]]) -> None:
    if case.format == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(records), case.split(split))
    else:
        write_jsonl(case.split(split), records)


def _no_field(case: Case) -> Expected:
    _nested("text")(case)
    case.recipe["prepare_data"]["text_column"] = "message.body"
    return fatal(r"message\.body", "text_column")


_DIALECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "semicolons": ({"delimiter": ";"}, {"separator": ";"}),
    "bars": ({"delimiter": "|"}, {"separator": "|"}),
    "single quotes": ({"quotechar": "'", "quoting": csv.QUOTE_ALL}, {"quote": "'"}),
    "no quotes": ({"quoting": csv.QUOTE_NONE, "quotechar": None}, {"quote": None}),
    "backslashes": (
        {"doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL},
        {"escape": "\\"},
    ),
}


def _told(dialect: dict[str, Any], fields: dict[str, Any]) -> Change:
    def apply(case: Case) -> Expected:
        for split in SPLITS:
            with case.split(split).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n", **dialect)
                writer.writerows([HEADER, *getattr(case.table, split).pairs()])
        case.recipe["fetch_sources"]["data"]["format"] |= fields
        return harmless()

    return apply


def _missing(word: str) -> Change:
    """A label that is spelt as nothing is a row without a label."""

    def apply(case: Case) -> Expected:
        path = case.split("train")
        lines = path.read_text(encoding="utf-8").split("\n")
        lines[9] = f"{lines[9].split(_separator(case))[0]}{_separator(case)}{word}"
        path.write_text("\n".join(lines), encoding="utf-8")
        case.recipe["fetch_sources"]["data"]["format"]["missing"] = [word]
        return fatal(rf"train\.{case.format}")

    return apply


def _class_labels(kept: bool) -> Change:
    """Numbers, with the names in the metadata of `datasets`, or without."""

    def apply(case: Case) -> Expected:
        features: dict[str, Any] = {
            "text": {"dtype": "string", "_type": "Value"},
            "label": {"names": list(LABELS), "_type": "ClassLabel"},
        }
        told = json.dumps({"info": {"features": features}}).encode()
        for split in SPLITS:
            rows: Rows = getattr(case.table, split)
            numbers = [LABELS.index(label) for label in rows.labels]
            table = pa.table({"text": list(rows.texts), "label": numbers})
            if kept:
                table = table.replace_schema_metadata({b"huggingface": told})
            pyarrow.parquet.write_table(table, case.split(split))
        return harmless() if kept else fatal("label")

    return apply
