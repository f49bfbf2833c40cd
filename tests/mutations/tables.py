"""Mutations of tables as wholes: files, headers, separators, encodings."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.mutations.cases import Case, Change, Expected, Mutation, either, fatal, harmless
from tests.mutations.files import REPLACED
from tests.mutations.task import Rows
from tests.mutations.written import (
    HEADER,
    write_lines,
    write_rows,
)

TEXTUAL = ("csv", "tsv", "jsonl")
LINED = ("csv", "tsv")


def mutations() -> Iterator[Mutation]:
    yield from _wholes()
    for name, (header, expected) in _HEADERS.items():
        yield Mutation("header", name, _with_header(header, expected))
    for name, (dialect, needs, expected) in _DIALECTS.items():
        yield Mutation("dialect", name, _with_dialect(dialect, expected)).of(*needs)
    for name, (change, right) in _ENCODINGS.items():
        yield Mutation("encoding of a table", name, _encoding(change, right)).of(*TEXTUAL)


def _wholes() -> Iterator[Mutation]:
    for split in ("train", "test"):
        yield Mutation("table file", f"{split} removed", _file(split, Path.unlink))
        yield Mutation("table file", f"{split} emptied", _file(split, lambda p: p.write_bytes(b"")))
        yield Mutation("table file", f"{split} is a folder", _file(split, _make_folder))
        for what, content in REPLACED.items():
            change = _writing(content)
            yield Mutation("table file", f"{split} replaced by {what}", _file(split, change))
        for share in (0.1, 0.5, 0.97):
            title = f"{split} cut at {share:.0%}"
            yield Mutation("table file", title, _cut(split, share)).of("parquet")
        for kind in ("csv", "tsv", "jsonl", "parquet"):
            title = f"{split} is {kind} by another name"
            yield Mutation("table file", title, _other_kind(split, kind))


def _writing(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def _file(split: str, change: Callable[[Path], Any]) -> Change:
    def apply(case: Case) -> Expected:
        change(case.split(split))
        return fatal(rf"{split}\.{case.format}")

    return apply


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _cut(split: str, share: float) -> Change:
    def change(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return _file(split, change)


def _other_kind(split: str, kind: str) -> Change:
    def apply(case: Case) -> Expected:
        if kind == case.format:
            return harmless()
        path = case.split(split).with_suffix(f".{kind}")
        write_rows(path, getattr(case.table, split))
        path.rename(case.split(split))
        return fatal(rf"{split}\.{case.format}", "column")

    return apply


# --- headers -------------------------------------------------------------------------------------

Header = Callable[[list[str]], tuple[list[str], list[list[str]]]]


def _columns(case: Case, split: str) -> list[list[str]]:
    rows: Rows = getattr(case.table, split)
    return [list(rows.texts), list(rows.labels)]


_HEADERS: dict[str, tuple[tuple[str, ...], Expected]] = {
    "other order": (("label", "text"), harmless()),
    "more columns": (("text", "label", "id", "when"), harmless()),
    "a column more before": (("id", "text", "label"), harmless()),
    "label twice": (("text", "label", "label*"), fatal("label")),
    "text twice": (("text", "text*", "label"), fatal("text")),
    "another name twice": (("text", "label", "id", "id"), either("id")),
    "in capitals": (("TEXT", "LABEL"), fatal("text_column", "label_column", "no column")),
    "one capital": (("Text", "label"), fatal("text_column", "no column")),
    "no text": (("body", "label"), fatal("text_column", "no column")),
    "no label": (("text", "topic"), fatal("label_column", "no column")),
    "blanks around": ((" text ", "label"), either("text_column", "no column")),
    "a name of nothing": (("text", "label", ""), either("column", "header")),
    "two names of nothing": (("text", "label", "", ""), either("column", "header")),
    "quotes in a name": (("text", "label", 'a"b'), harmless()),
    "a name of a path": (("text", "label", "text.body"), harmless()),
    "names of numbers": (("0", "1"), fatal("column")),
}


def _with_header(header: tuple[str, ...], expected: Expected) -> Change:
    def apply(case: Case) -> Expected:
        split = case.one_of(["train", "test"])
        texts, labels = _columns(case, split)
        other = {"label*": ["other"] * len(texts), "text*": ["other words"] * len(texts)}
        found = {"text": texts, "TEXT": texts, "Text": texts, "body": texts, " text ": texts}
        found |= {"0": texts, "label": labels, "LABEL": labels, "topic": labels, "1": labels}
        filler = [str(i) for i in range(len(texts))]
        columns = [found.get(name, other.get(name, filler)) for name in header]
        names = [name.removesuffix("*") for name in header]
        _write_columns(case.split(split), names, columns)
        return expected

    return apply


def _write_columns(path: Path, names: list[str], columns: list[list[str]]) -> None:
    kind, rows = path.suffix[1:], list(zip(*columns, strict=True))
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        arrays = [pa.array(column) for column in columns]
        pyarrow.parquet.write_table(pa.Table.from_arrays(arrays, names=names), path)
    elif kind == "jsonl":
        quoted = [[json.dumps(name) for name in names], *rows]
        lines = [
            ", ".join(
                f"{n}: {json.dumps(v, ensure_ascii=False)}"
                for n, v in zip(quoted[0], row, strict=True)
            )
            for row in rows
        ]
        path.write_text("".join(f"{{{line}}}\n" for line in lines), encoding="utf-8")
    else:
        write_lines(path, [names, *rows], "\t" if kind == "tsv" else ",")


# --- dialects ------------------------------------------------------------------------------------

_DIALECTS: dict[str, tuple[dict[str, Any], tuple[str, ...], Expected]] = {
    "semicolons": ({"separator": ";"}, LINED, either("column", "separator")),
    "bars": ({"separator": "|"}, LINED, either("column", "separator")),
    "tabs in csv": ({"separator": "\t"}, ("csv",), either("column", "separator")),
    "commas in tsv": ({"separator": ","}, ("tsv",), either("column", "separator")),
    "all quoted": ({"quoting": csv.QUOTE_ALL}, ("csv",), harmless()),
    "all quoted in tsv": ({"quoting": csv.QUOTE_ALL}, ("tsv",), either("column", "quot")),
    "single quotes": (
        {"quoting": csv.QUOTE_ALL, "quotechar": "'"},
        ("csv",),
        either("column", "quot"),
    ),
    "CRLF": ({"lineterminator": "\r\n", "quoting": csv.QUOTE_MINIMAL}, LINED, harmless()),
    "CR": (
        {"lineterminator": "\r", "quoting": csv.QUOTE_MINIMAL},
        LINED,
        either("csv|tsv|column|row"),
    ),
    "a blank behind separators": (
        {"separator": ",", "blank": True},
        ("csv",),
        either("column", "row"),
    ),
}


def _with_dialect(dialect: dict[str, Any], expected: Expected) -> Change:
    def apply(case: Case) -> Expected:
        given = dict(dialect)
        separator = given.pop("separator", "\t" if case.format == "tsv" else ",")
        blank = given.pop("blank", False)
        given.setdefault("quoting", csv.QUOTE_MINIMAL)
        for split in ("train", "test"):
            rows = [HEADER, *getattr(case.table, split).pairs()]
            if blank:
                rows = [(first, f" {second}") for first, second in rows]
            lines = {"lineterminator": given.get("lineterminator", "\n")}
            _write_dialect(case.split(split), rows, separator, {**given, **lines})
        return expected

    return apply


def _write_dialect(path: Path, rows: Any, separator: str, dialect: dict[str, Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator, **dialect).writerows(rows)


# --- encodings -----------------------------------------------------------------------------------

_ENCODINGS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "a byte-order mark": (lambda text: text.encode("utf-8-sig"), "either"),
    "UTF-16": (lambda text: text.encode("utf-16"), "fatal"),
    "UTF-16 without a mark": (lambda text: text.encode("utf-16-le"), "fatal"),
    "UTF-32": (lambda text: text.encode("utf-32"), "fatal"),
    "Latin-1": (lambda text: text.encode("latin-1"), "fatal"),
    "Windows-1252": (lambda text: text.replace("'", "’").encode("cp1252"), "fatal"),
    "gzip": (lambda text: gzip.compress(text.encode(), mtime=0), "fatal"),
    "one byte that is none": (
        lambda text: text.encode().replace(b"window", b"win\xffow", 1),
        "fatal",
    ),
    "CESU surrogates": (lambda text: text.encode().replace(b"window", b"\xed\xa0\xbd", 1), "fatal"),
    "no last newline": (lambda text: text.rstrip("\n").encode(), "harmless"),
    "blank lines at the end": (lambda text: f"{text}\n\n".encode(), "harmless"),
    "blank lines between": (lambda text: text.replace("\n", "\n\n").encode(), "harmless"),
    "CRLF in places": (lambda text: text.replace("\n", "\r\n", 40).encode(), "harmless"),
    "a NUL at the end": (lambda text: text.encode() + b"\0", "either"),
    "control-Z at the end": (lambda text: text.encode() + b"\x1a", "either"),
}


def _encoding(change: Callable[[str], bytes], verdict: str) -> Change:
    def apply(case: Case) -> Expected:
        split = case.one_of(["train", "test"])
        path = case.split(split)
        content = change(path.read_text(encoding="utf-8"))
        path.write_bytes(content)
        says = (rf"{split}\.{case.format}",)
        return {"fatal": fatal, "either": either, "harmless": harmless}[verdict](*says)

    return apply
