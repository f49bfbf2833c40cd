"""Mutations of tables as wholes: headers, separators, encodings, forms, splits, labels' spelling."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.mutations.cases import Case, Expected, Mutation, either, fatal, harmless
from tests.mutations.files import REPLACED
from tests.mutations.labels import rename
from tests.mutations.task import LABELS, Rows, Table
from tests.mutations.written import (
    HEADER,
    write_jsonl,
    write_lines,
    write_parquet,
    write_rows,
    write_table,
)

Change = Callable[[Case], Expected]
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
    for name, spell in _SPELLINGS.items():
        for where in ("everywhere", "train", "test"):
            yield Mutation("label spelling", f"{name}, {where}", _spelling(spell, where))
    for name, split in _SPLITS.items():
        yield Mutation("splits", name, split)
    for name, form in _FORMS.items():
        yield Mutation("form of JSON lines", name, form).of("jsonl")


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


# --- labels --------------------------------------------------------------------------------------

_SPELLINGS: dict[str, Callable[[str], str]] = {
    "in capitals": str.upper,
    "a capital first": str.capitalize,
    "blanks around": lambda label: f"  {label} ",
    "a tab before": lambda label: f"\t{label}",
    "a hard blank behind": lambda label: f"{label}\u00a0",
    "a zero-width blank behind": lambda label: f"{label}\u200b",
    "quoted": lambda label: f'"{label}"',
    "in brackets": lambda label: f"['{label}']",
    "with its number": lambda label: f"{LABELS.index(label)}: {label}",
    "as numbers": lambda label: str(LABELS.index(label)),
    "as numbers with a point": lambda label: f"{LABELS.index(label)}.0",
    "as LABEL_": lambda label: f"LABEL_{LABELS.index(label)}",
    "another language": lambda label: {"billing": "Rechnung", "delivery": "Lieferung"}.get(
        label, "Zugang"
    ),
}


def _spelling(spell: Callable[[str], str], where: str) -> Change:
    def apply(case: Case) -> Expected:
        names = {label: spell(label) for label in LABELS}
        good = case.table
        spelt = rename(case, names)
        table = Table(
            good.train if where == "test" else spelt.train,
            good.test if where == "train" else spelt.test,
        )
        case.table = good
        if case.format == "tsv" and any("\t" in name for name in names.values()):
            return fatal("column", "row")  # cells of a tsv have no tabs
        write_table(case.root / "data", case.format, table)
        if all(name.strip() == label for label, name in names.items()):
            return harmless()
        return fatal("label")

    return apply


# --- splits --------------------------------------------------------------------------------------


def _swapped(case: Case) -> Expected:
    train, test = case.split("train"), case.split("test")
    other = train.with_name("other")
    train.rename(other)
    test.rename(train)
    other.rename(test)
    return harmless(table=Table(case.table.test, case.table.train))


def _equal(case: Case) -> Expected:
    shutil.copyfile(case.split("train"), case.split("test"))
    return fatal("on_overlap", "test split", "train", "min_train_examples")


def _rewritten(case: Case, table: Table, expected: Callable[..., Expected], *says: str) -> Expected:
    write_table(case.root / "data", case.format, table)
    return expected(*says, table=table)


def _keep(rows: Rows, wanted: Callable[[int, str, str], bool]) -> Rows:
    kept = [pair for i, pair in enumerate(rows.pairs()) if wanted(i, *pair)]
    return Rows(tuple(text for text, _ in kept), tuple(label for _, label in kept))


def _plus(rows: Rows, more: list[tuple[str, str]]) -> Rows:
    pairs = [*rows.pairs(), *more]
    return Rows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))


def _overlapping(mode: str) -> Change:
    def apply(case: Case) -> Expected:
        case.recipe["prepare_data"]["on_overlap"] = mode
        train = _plus(case.table.train, case.table.test.pairs()[:9])
        expected = fatal if mode == "refuse" else harmless
        return _rewritten(case, Table(train, case.table.test), expected, "on_overlap")

    return apply


def _few(count: int) -> Change:
    def apply(case: Case) -> Expected:
        train = _keep(case.table.train, lambda i, text, label: i < count)
        expected = fatal if count < 30 else harmless
        return _rewritten(case, Table(train, case.table.test), expected, "min_train_examples")

    return apply


def _without(split: str) -> Change:
    def apply(case: Case) -> Expected:
        label = case.one_of(LABELS)
        rows = _keep(getattr(case.table, split), lambda i, text, found: found != label)
        table = Table(rows, case.table.test) if split == "train" else Table(case.table.train, rows)
        if split == "test":
            return _rewritten(case, table, harmless)
        return _rewritten(case, table, either, "label")  # the test split has it still

    return apply


def _without_in_both(case: Case) -> Expected:
    """The teacher knows the class: kept, with a warning."""
    label = case.one_of(LABELS)
    rows = [
        _keep(x, lambda i, text, found: found != label) for x in (case.table.train, case.table.test)
    ]
    return _rewritten(case, Table(*rows), either, "label")


def _one_label(case: Case) -> Expected:
    rows = [
        _keep(x, lambda i, text, found: found == "login")
        for x in (case.table.train, case.table.test)
    ]
    return _rewritten(case, Table(*rows), either, "label")


def _more_label(split: str) -> Change:
    def apply(case: Case) -> Expected:
        rows = _plus(
            getattr(case.table, split), [(f"sudden desk {i}", "returns") for i in range(4)]
        )
        table = Table(rows, case.table.test) if split == "train" else Table(case.table.train, rows)
        return _rewritten(case, table, fatal, "label")

    return apply


def _repeated(case: Case) -> Expected:
    train = _plus(case.table.train, case.table.train.pairs()[:20])
    return _rewritten(case, Table(train, case.table.test), harmless)


def _contradicting(case: Case) -> Expected:
    more = [
        (text, "login" if label != "login" else "billing")
        for text, label in case.table.train.pairs()[:9]
    ]
    return _rewritten(case, Table(_plus(case.table.train, more), case.table.test), harmless)


def _linked_out(case: Case) -> Expected:
    path = case.split("train")
    outside = case.root.with_name(f"{case.root.name}-outside.{case.format}")
    path.rename(outside)
    path.symlink_to(outside)
    return fatal(r"train\.", "outside", "link")


_SPLITS: dict[str, Change] = {
    "exchanged": _swapped,
    "equal": _equal,
    "overlap, dropped": _overlapping("drop_from_train"),
    "overlap, refused": _overlapping("refuse"),
    "40 rows": _few(40),
    "12 rows": _few(12),
    "2 rows": _few(2),
    "a class without training rows": _without("train"),
    "a class without test rows": _without("test"),
    "a class without rows": _without_in_both,
    "one class": _one_label,
    "a class more in train": _more_label("train"),
    "a class more in test": _more_label("test"),
    "rows repeated": _repeated,
    "rows that contradict": _contradicting,
    "a link that leads out": _linked_out,
}

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

__all__ = ["mutations", "write_jsonl", "write_parquet"]
