"""Mutations of single rows and of cells' types."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.mutations.cases import Case, Expected, Mutation, Verdict, either, fatal, harmless
from tests.mutations.task import LABELS, Rows, Table
from tests.mutations.written import HEADER, write_jsonl, write_rows

Change = Callable[[Case], Expected]
SPLITS = ("train", "test")


def mutations() -> Iterator[Mutation]:
    for name, (line, verdict) in _LINES.items():
        for split in SPLITS:
            title = f"{name} in {split}"
            yield Mutation("row broken", title, _broken(line, split, verdict)).of("csv", "tsv")
    for name, (text, verdict) in _TEXTS.items():
        for split in SPLITS:
            yield Mutation("text of a cell", f"{name} in {split}", _text(text, split, verdict))
    for column in HEADER:
        for name, value in _VALUES.items():
            title = f"{column} is {name}"
            yield Mutation("cell of another type", title, _value(column, value)).of("jsonl")
            if name in _WHOLE:
                title = f"every {column} is {name}"
                yield Mutation("column of another type", title, _values(column, value)).of("jsonl")
        for name, (change, verdict) in _TYPES.items():
            title = f"{column} is {name}"
            yield Mutation("type of a Parquet column", title, _typed(column, change, verdict)).of(
                "parquet"
            )
    for name, (change, verdict) in _NUMBERS.items():
        yield Mutation("label numbers", name, _numbers(change, verdict)).of("jsonl", "parquet")
    for mode in ("refuse", "replace", "drop"):
        yield Mutation("half of a pair", mode, _surrogate(mode)).of("jsonl")


# --- rows of csv and tsv -------------------------------------------------------------------------

_LINES: dict[str, tuple[Callable[[str, str], str], Verdict]] = {
    "a cell less": (lambda line, sep: line.split(sep)[0], "fatal"),
    "a cell more": (lambda line, sep: f"{line}{sep}more", "fatal"),
    "an empty cell more": (lambda line, sep: f"{line}{sep}", "fatal"),
    "no text": (lambda line, sep: f"{sep}{line.split(sep)[1]}", "fatal"),
    "no label": (lambda line, sep: f"{line.split(sep)[0]}{sep}", "fatal"),
    "a blank text": (lambda line, sep: f"   {sep}{line.split(sep)[1]}", "fatal"),
    "a lone quote before": (lambda line, sep: f'"{line}', "either"),
    "a lone quote within": (lambda line, sep: line.replace(" ", ' "', 1), "either"),
    "a quote behind the text": (lambda line, sep: line.replace(sep, f'"{sep}', 1), "either"),
    "an escaped quote": (
        lambda line, sep: f'"{line.split(sep)[0]} \\"x\\""{sep}{line.split(sep)[1]}',
        "either",
    ),
    "the header again": (lambda line, sep: sep.join(HEADER), "fatal"),
    "separators alone": (lambda line, sep: sep, "fatal"),
    "another separator": (lambda line, sep: line.replace(sep, ";"), "fatal"),
    "a comment": (lambda line, sep: f"# {line.split(sep)[0]}", "fatal"),
    "an unknown label": (lambda line, sep: f"{line.split(sep)[0]}{sep}misc", "fatal"),
    "a label of the word nan": (lambda line, sep: f"{line.split(sep)[0]}{sep}nan", "fatal"),
    "a NUL in the text": (lambda line, sep: f"\0{line}", "either"),
}
PLACE = 16  # the row that is changed, from zero


def _broken(change: Callable[[str, str], str], split: str, verdict: Verdict) -> Change:
    """`either` is checked by whoever reads csv by its own rules: rows must be as Python reads them."""

    def apply(case: Case) -> Expected:
        path, separator = case.split(split), "\t" if case.format == "tsv" else ","
        lines = path.read_text(encoding="utf-8").split("\n")
        lines[PLACE + 1] = change(lines[PLACE + 1], separator)
        path.write_text("\n".join(lines), encoding="utf-8")
        says = (rf"{split}\.{case.format}", "label")
        if verdict == "fatal":
            return fatal(*says)
        return either(*says, table=_read_again(case, split))

    return apply


def _read_again(case: Case, split: str) -> Table:
    """The table as its format says: tsv is never quoted, csv by RFC 4180, loosely."""
    import csv

    with case.split(split).open(encoding="utf-8", newline="") as file:
        tsv = case.format == "tsv"
        reader = (
            csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tsv else csv.reader(file)
        )
        rows = [row for row in reader if row][1:]
    texts, labels = (tuple(row[i].strip() for row in rows if len(row) == 2) for i in (0, 1))
    changed = Rows(texts, labels)
    return Table(changed, case.table.test) if split == "train" else Table(case.table.train, changed)


# --- texts ---------------------------------------------------------------------------------------

_TEXTS: dict[str, tuple[str, Verdict]] = {
    "an emoji": ("refund please \U0001f600", "harmless"),
    "a family of emoji": ("refund \U0001f468\u200d\U0001f469\u200d\U0001f467 please", "harmless"),
    "a newline": ("refund please\nmy order", "harmless"),
    "two lines of CRLF": ("refund please\r\nmy order", "harmless"),
    "a lone CR": ("refund please\rmy order", "harmless"),
    "a form feed": ("refund\fplease", "harmless"),
    "a line separator": ("refund\u2028please", "harmless"),
    "a next-line mark": ("refund\u0085please", "harmless"),
    "a NUL": ("refund\0please", "either"),
    "control characters": ("refund\x01\x02please", "harmless"),
    "a tab": ("refund\tplease", "harmless"),
    "quotes": ('the "refund" please', "harmless"),
    "quotes all over": ('""refund"", please"', "harmless"),
    "backslashes": ("refund \\n \\\\ please\\", "harmless"),
    "a comma": ("refund, please, my order", "harmless"),
    "a right-to-left mark": ("refund \u202eplease", "harmless"),
    "combining letters": (
        "refund re\u0301initialiser".replace("re\u0301initialiser", "cafe\u0301"),
        "harmless",
    ),
    "Chinese": ("refund 我的订单 please", "harmless"),
    "full-width letters": ("ｒｅｆｕｎｄ refund", "harmless"),
    "a byte-order mark": ("\ufeffrefund please", "harmless"),
    "a private character": ("refund \ue000 please", "harmless"),
    "the last code point": ("refund \U0010ffff please", "harmless"),
    "a special piece as words": ("refund [SEP] please </s>", "harmless"),
    "a mask as words": ("refund [MASK] <mask> please", "harmless"),
    "a very long word": ("refund " + "a" * 5000, "harmless"),
    "a very long text": ("refund " + "the order " * 5000, "harmless"),
    "the word null": ("null", "harmless"),
    "the word NaN": ("NaN", "harmless"),
    "the word NA": ("NA", "harmless"),
    "a number": ("12", "harmless"),
    "a date": ("2024-01-01", "harmless"),
    "a formula": ("=1+1 refund", "harmless"),
    "markup": ("<b>refund</b> &amp; please", "harmless"),
    "nothing": ("", "fatal"),
    "blanks": ("   ", "fatal"),
    "a hard blank": ("\u00a0", "either"),
    "a zero-width blank": ("\u200b", "either"),
    "blanks around": ("  refund please the  ", "harmless"),
}


def _with_row(rows: Rows, text: str) -> Rows:
    texts = [*rows.texts]
    texts[PLACE] = text
    labels = [*rows.labels]
    labels[PLACE] = "billing"
    return Rows(tuple(texts), tuple(labels))


def _text(text: str, split: str, verdict: Verdict) -> Change:
    def apply(case: Case) -> Expected:
        if case.format == "tsv" and any(x in text for x in "\t\n\r"):
            return harmless()  # cells of a tsv have none of these
        written = _with_row(getattr(case.table, split), text)
        write_rows(case.split(split), written)
        read = _with_row(written, text.strip())
        table = Table(read, case.table.test) if split == "train" else Table(case.table.train, read)
        says = (rf"{split}\.{case.format}",)
        if verdict == "fatal":
            return fatal(*says)
        return Expected(verdict, says, table=table)

    return apply


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
        read = _with_row(rows, "refund please \ufffd")
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
    "bytes of a fixed size": (
        lambda cells: pa.array([b"refundpl"] * len(cells), pa.binary(8)),
        "either",
    ),
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
        if verdict == "either" and column == "text" and len(set(columns[column].to_pylist())) > 1:
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
