"""Mutations of cells' and columns' types, in JSON lines and Parquet, and of JSON lines' form."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.mutations.cases import Case, Change, Expected, Mutation, Verdict, either, fatal, harmless
from tests.mutations.rows import PLACE, SPLITS, with_row
from tests.mutations.task import LABELS, Rows, Table
from tests.mutations.written import HEADER, write_jsonl


def mutations() -> Iterator[Mutation]:
    for column in HEADER:
        yield from _of_column(column)
    for name, (numbers, verdict) in _NUMBERS.items():
        yield Mutation("label numbers", name, _numbers(numbers, verdict)).of("jsonl", "parquet")
    for mode in ("refuse", "replace", "drop"):
        yield Mutation("half of a pair", mode, _surrogate(mode)).of("jsonl")
    for name, form in _FORMS.items():
        yield Mutation("form of JSON lines", name, form).of("jsonl")


def _of_column(column: str) -> Iterator[Mutation]:
    for name, value in _VALUES.items():
        title = f"{column} is {name}"
        yield Mutation("cell of another type", title, _value(column, value)).of("jsonl")
    for name in _WHOLE:
        change = _values(column, _VALUES[name])
        yield Mutation("column of another type", f"every {column} is {name}", change).of("jsonl")
    for name, (arrow, verdict) in _TYPES.items():
        change = _typed(column, arrow, verdict)
        yield Mutation("type of a Parquet column", f"{column} is {name}", change).of("parquet")


# --- cells of JSON -------------------------------------------------------------------------------

_VALUES: dict[str, Any] = {
    "null": None,
    "a number": 12,
    "a fraction": 1.5,
    "a whole fraction": 1.0,
    "a huge number": 10**30,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "true": True,
    "an object": {"body": "refund please"},
    "an empty object": {},
    "a list": ["refund", "please"],
    "an empty list": [],
    "a list of objects": [{"role": "user", "content": "refund"}],
    "an empty text": "",
    "missing": ...,
}
_WHOLE = ("null", "an object", "a list", "a list of objects", "an empty text", "missing")
_NUMBERS_AS_TEXT = (
    "a number",
    "a fraction",
    "true",
    "a whole fraction",
    "a huge number",
    "infinity",
)


def _records(case: Case, split: str) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in getattr(case.table, split).pairs()]


def _put(record: dict[str, Any], column: str, value: Any) -> None:
    if value is ...:
        del record[column]
    else:
        record[column] = value


def _value(column: str, value: Any) -> Change:
    """A number is its own spelling as text; of a label it is one that nobody knows."""

    def apply(case: Case) -> Expected:
        split = case.one_of(SPLITS)
        records = _records(case, split)
        _put(records[PLACE], column, value)
        write_jsonl(case.split(split), records)
        says = (rf"{split}\.jsonl", "label")
        plain = isinstance(value, int | float) and value == value  # noqa: PLR0124 - not NaN
        if column == "label" or not plain:
            return fatal(*says)
        spellings = (str(value), json.dumps(value).removesuffix(".0"))
        first, second = (_spelt(case, split, spelling) for spelling in spellings)
        return either(*says, table=first, or_else=second)

    return apply


def _spelt(case: Case, split: str, text: str) -> Table:
    """The table with that text in the row that was changed."""
    rows: Rows = getattr(case.table, split)
    texts = tuple(text if i == PLACE else old for i, old in enumerate(rows.texts))
    read = Rows(texts, rows.labels)
    return Table(read, case.table.test) if split == "train" else Table(case.table.train, read)


def _values(column: str, value: Any) -> Change:
    def apply(case: Case) -> Expected:
        split = case.one_of(SPLITS)
        records = _records(case, split)
        for record in records:
            _put(record, column, value)
        write_jsonl(case.split(split), records)
        return fatal(rf"{split}\.jsonl", f"{column}_column", "no column")

    return apply


def _surrogate(mode: str) -> Change:
    """JSON that is valid, of a text that UTF-8 can't hold."""

    def apply(case: Case) -> Expected:
        split = case.one_of(SPLITS)
        rows: Rows = getattr(case.table, split)
        records = _records(case, split)
        records[PLACE]["text"] = "refund please \ud83d"
        records[PLACE]["label"] = "billing"
        lines = [json.dumps(record) for record in records]
        case.split(split).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        case.recipe["prepare_data"]["on_unreadable"] = mode
        if mode == "refuse":
            return fatal(rf"{split}\.jsonl")
        read = with_row(rows, "refund please \ufffd")
        if mode == "drop":
            pairs = [pair for i, pair in enumerate(read.pairs()) if i != PLACE]
            read = Rows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))
        table = Table(read, case.table.test) if split == "train" else Table(case.table.train, read)
        return harmless(table=table)

    return apply


# --- Parquet -------------------------------------------------------------------------------------

_DAY = datetime.date(2024, 1, 1)
_TYPES: dict[str, tuple[Callable[[list[str]], Any], Verdict]] = {
    "large text": (lambda cells: pa.array(cells, pa.large_string()), "harmless"),
    "a view of text": (lambda cells: pa.array(cells, pa.string_view()), "either"),
    "a dictionary": (lambda cells: pa.array(cells).dictionary_encode(), "harmless"),
    "bytes of UTF-8": (
        lambda cells: pa.array([x.encode() for x in cells], pa.binary()),
        "harmless",
    ),
    "large bytes": (
        lambda cells: pa.array([x.encode() for x in cells], pa.large_binary()),
        "harmless",
    ),
    "bytes of no UTF-8": (lambda cells: pa.array([b"\xff" + x.encode() for x in cells]), "fatal"),
    "lists of text": (lambda cells: pa.array([[x] for x in cells]), "fatal"),
    "structs": (lambda cells: pa.array([{"body": x} for x in cells]), "fatal"),
    "maps": (
        lambda cells: pa.array([[("a", x)] for x in cells], pa.map_(pa.string(), pa.string())),
        "fatal",
    ),
    "nulls": (lambda cells: pa.nulls(len(cells)), "fatal"),
    "text with a null": (lambda cells: pa.array([None, *cells[1:]]), "fatal"),
    "dates": (lambda cells: pa.array([_DAY] * len(cells)), "fatal_or_text"),  # type: ignore[dict-item]
    "decimals": (lambda cells: pa.array([decimal.Decimal("1.50")] * len(cells)), "fatal_or_text"),  # type: ignore[dict-item]
    "durations": (lambda cells: pa.array([1] * len(cells), pa.duration("s")), "fatal_or_text"),  # type: ignore[dict-item]
}


def _typed(column: str, change: Callable[[list[str]], Any], verdict: Any) -> Change:
    def apply(case: Case) -> Expected:
        split = case.one_of(SPLITS)
        rows: Rows = getattr(case.table, split)
        columns: dict[str, Any] = {"text": list(rows.texts), "label": list(rows.labels)}
        columns[column] = change(columns[column])
        pyarrow.parquet.write_table(pa.table(columns), case.split(split))
        says = (rf"{split}\.parquet", "label", column)
        if verdict == "harmless":
            return harmless()
        if verdict == "either":
            return either(*says)
        return fatal(*says)

    return apply


Numbers = Callable[[list[int], str], list[Any]]
_NUMBERS: dict[str, tuple[Numbers, Verdict]] = {
    "whole numbers": (lambda found, split: found, "harmless"),
    "fractions in both": (lambda found, split: [float(i) for i in found], "either"),
    "fractions in test": (
        lambda found, split: [float(i) if split == "test" else i for i in found],
        "either",
    ),
    "text in test": (
        lambda found, split: [str(i) if split == "test" else i for i in found],
        "harmless",
    ),
    "text with a point in test": (
        lambda found, split: [f"{i}.0" if split == "test" else str(i) for i in found],
        "either",
    ),
}


def _numbers(change: Numbers, verdict: Verdict) -> Change:
    """Data and teacher call the labels 0, 1 and 2."""

    def apply(case: Case) -> Expected:
        names = ("0", "1", "2")
        case.change_json(
            "config.json", id2label=dict(zip(names, names, strict=True)), label2id=None
        )
        renamed = []
        for split in SPLITS:
            rows: Rows = getattr(case.table, split)
            numbers = change([LABELS.index(label) for label in rows.labels], split)
            if case.format == "parquet":
                columns = {"text": list(rows.texts), "label": numbers}
                pyarrow.parquet.write_table(pa.table(columns), case.split(split))
            else:
                pairs = zip(rows.texts, numbers, strict=True)
                write_jsonl(case.split(split), [{"text": x, "label": y} for x, y in pairs])
            renamed.append(Rows(rows.texts, tuple(str(LABELS.index(x)) for x in rows.labels)))
        return Expected(verdict, ("label",), names=names, table=Table(*renamed))

    return apply


# --- JSON lines ----------------------------------------------------------------------------------


def _as_json(change: Callable[[list[dict[str, str]]], str], expected: Expected) -> Change:
    def apply(case: Case) -> Expected:
        split = case.one_of(["train", "test"])
        rows = getattr(case.table, split).pairs()
        records = [{"text": text, "label": label} for text, label in rows]
        case.split(split).write_text(change(records), encoding="utf-8")
        return expected

    return apply


def _lines(records: list[dict[str, str]], **style: Any) -> list[str]:
    return [json.dumps(record, ensure_ascii=False, **style) for record in records]


_FORMS: dict[str, Change] = {
    "one list": _as_json(json.dumps, fatal("jsonl")),
    "one list, indented": _as_json(lambda r: json.dumps(r, indent=2), fatal("jsonl")),
    "objects, indented": _as_json(lambda r: "\n".join(_lines(r, indent=2)), fatal("jsonl")),
    "a comma after each": _as_json(lambda r: ",\n".join(_lines(r)), fatal("jsonl")),
    "lists": _as_json(lambda r: "\n".join(json.dumps(list(x.values())) for x in r), fatal("jsonl")),
    "two in a line": _as_json(lambda r: "".join(_lines(r)), fatal("jsonl")),
    "escapes": _as_json(lambda r: "\n".join(json.dumps(x) for x in r), harmless()),
    "other order of keys": _as_json(
        lambda r: "\n".join(_lines([dict(reversed(x.items())) for x in r])), harmless()
    ),
    "sparse keys": _as_json(
        lambda r: "\n".join(
            _lines([x | ({"note": "a"} if i % 7 == 0 else {}) for i, x in enumerate(r)])
        ),
        harmless(),
    ),
    "comments": _as_json(lambda r: "\n".join(["// rows", *_lines(r)]), fatal("jsonl")),
    "single quotes": _as_json(lambda r: "\n".join(str(x) for x in r), fatal("jsonl")),
    "a header line": _as_json(
        lambda r: "\n".join(['["text", "label"]', *_lines(r)]), fatal("jsonl")
    ),
}
