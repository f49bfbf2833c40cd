"""Mutations of single rows: broken lines, and texts that are odd but valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.mutations.cases import Case, Change, Expected, Mutation, Verdict, either, fatal, harmless
from tests.mutations.task import Rows, Table
from tests.mutations.written import HEADER, write_rows

SPLITS = ("train", "test")


def mutations() -> Iterator[Mutation]:
    for name, (line, verdict) in _LINES.items():
        for split in SPLITS:
            title = f"{name} in {split}"
            yield Mutation("row broken", title, _broken(line, split, verdict)).of("csv", "tsv")
    for name, (text, verdict) in _TEXTS.items():
        for split in SPLITS:
            yield Mutation("text of a cell", f"{name} in {split}", _text(text, split, verdict))


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
    "separators alone": (lambda line, sep: sep, "either"),
    "another separator": (lambda line, sep: line.replace(sep, ";"), "fatal"),
    "a comment": (lambda line, sep: f"# {line.split(sep)[0]}", "fatal"),
    "an unknown label": (lambda line, sep: f"{line.split(sep)[0]}{sep}misc", "fatal"),
    "a label of the word nan": (lambda line, sep: f"{line.split(sep)[0]}{sep}nan", "fatal"),
    "a NUL in the text": (lambda line, sep: f"\0{line}", "either"),
}
PLACE = 16  # the row that is changed, from zero


def _broken(change: Callable[[str, str], str], split: str, verdict: Verdict) -> Change:
    """Of `either` the rows must be as Python reads them by the format's own rules."""

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
        rows = [row for row in reader if any(cell.strip() for cell in row)][1:]
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
    "full-width letters": ("\uff52\uff45\uff46 refund", "harmless"),
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


def with_row(rows: Rows, text: str) -> Rows:
    texts = [*rows.texts]
    texts[PLACE] = text
    labels = [*rows.labels]
    labels[PLACE] = "billing"
    return Rows(tuple(texts), tuple(labels))


def _text(text: str, split: str, verdict: Verdict) -> Change:
    def apply(case: Case) -> Expected:
        if case.format == "tsv" and any(x in text for x in "\t\n\r"):
            return harmless()  # cells of a tsv have none of these
        written = with_row(getattr(case.table, split), text)
        write_rows(case.split(split), written)
        read = with_row(written, text.strip())
        table = Table(read, case.table.test) if split == "train" else Table(case.table.train, read)
        says = (rf"{split}\.{case.format}",)
        if verdict == "fatal":
            return fatal(*says)
        return Expected(verdict, says, table=table)

    return apply
