"""A raw split's texts and labels: read, cleaned of unusable rows, and divided."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from tasks.kd.data.formats import Columns, Part, Record, read_records, require_same_columns
from tasks.kd.data.formats.cells import (
    ABSENT_SPELLINGS,
    NoTextError,
    advise_path,
    is_unreadable,
    list_names,
    replace_unreadable,
    show,
    spell,
    spell_label,
)
from tasks.kd.data.formats.records import place
from tasks.kd.errors import DataError
from tasks.kd.recipe.sources import FileFormat, is_pattern

_SHOWN = 5


@dataclass(frozen=True)
class Rows:
    """Texts and label names of one raw split, in file order."""

    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def keep(self, rows: Sequence[int]) -> Rows:
        """The given rows, in that order."""
        return Rows([self.texts[i] for i in rows], [self.labels[i] for i in rows])

    def rename(self, names: Mapping[str, str]) -> Rows:
        """The same rows with their labels renamed; labels that `names` lacks stay."""
        return Rows(self.texts, [names.get(label, label) for label in self.labels])


@dataclass(frozen=True)
class Table:
    """A split as it was read: its rows, counts of rows left out or changed, and warnings."""

    rows: Rows
    dropped: dict[str, int]  # reason: number of rows
    replaced: int  # rows whose text held what no tokenizer can encode
    warnings: list[str]


def list_parts(folder: Path, split: str, name: str) -> list[Part]:
    """The files of a fetched split in order: one file, or a folder of parts.

    `name` is the user's name for it: a file, a folder or a pattern. Raises DataError if the folder
    holds no such split.
    """
    inside = folder / split
    if not inside.is_dir():
        files = sorted(folder.glob(f"{split}.*"))
        if len(files) != 1:
            raise DataError(f"fetch_sources left no {split} split", where=folder)
        return [Part(files[0], name)]
    above = PurePosixPath(name).parent if is_pattern(name) else PurePosixPath(name)
    return [Part(path, f"{above / path.name}") for path in sorted(inside.iterdir())]


def read_table(
    parts: Sequence[Part], layout: FileFormat, columns: Columns, *, on_unreadable: str
) -> Table:
    """Text and label of every row of a table's parts, each value in one spelling.

    Rows of blanks alone are left out. Raises DataError, with file, row, line and column, for a row
    without text or label, for a cell that is no text, number or boolean, and for a label that can't
    be written. `on_unreadable` says what happens to a text that no tokenizer can encode: refuse
    raises DataError, replace puts U+FFFD into it, drop leaves its row out.
    """
    require_same_columns(parts, layout, columns)
    reading = _Reading(columns, on_unreadable)
    for part in parts:
        for record in read_records(part, layout, columns):
            reading.add(part, record)
    return reading.finish(parts)


class _Reading:
    """One split in the course of reading."""

    def __init__(self, columns: Columns, on_unreadable: str) -> None:
        self._columns, self._on_unreadable = columns, on_unreadable
        self._texts: list[str] = []
        self._labels: list[str] = []
        self._dropped = Counter(unreadable=0, blank=0)
        self._replaced = 0
        self._empty = 0  # rows without text or label
        self._empty_places: list[str] = []
        self._odd = _OddCells()

    def add(self, part: Part, record: Record) -> None:
        """Take one row, leave it out, or raise DataError."""
        if record.is_blank:
            self._dropped["blank"] += 1
            return
        text = self._spell(part, record, self._columns.text, record.text)
        label = self._spell(part, record, self._columns.label, record.label)
        if not (text and label):
            self._empty += 1
            if self._empty <= _SHOWN:
                column = self._columns.label if text else self._columns.text
                self._empty_places.append(place(part, record.row, record.line, column))
            return
        if is_unreadable(text) or is_unreadable(label):
            if self._on_unreadable == "drop":
                self._dropped["unreadable"] += 1
                return
            text = self._mend(part, record, text, label)
        name = spell_label(label)
        self._odd.look_at(text, label, name)
        self._texts.append(text)
        self._labels.append(name)

    def finish(self, parts: Sequence[Part]) -> Table:
        """The table. Raises DataError if rows lack text or label, or if there is no row."""
        where = parts[0].name if len(parts) == 1 else f"{parts[0].name} to {parts[-1].name}"
        if self._empty:
            more = ", ..." if self._empty > _SHOWN else ""
            raise DataError(
                f"{self._empty} rows without text or label",
                where="; ".join(self._empty_places) + more,
                advice="Mend these rows, or take them out.",
            )
        if not self._texts:
            left_out = [f"{count} {reason}" for reason, count in self._dropped.items() if count]
            raise DataError(
                "an empty split",
                where=where,
                expected="at least one row",
                found=f"none but {', '.join(left_out)}" if left_out else "none",
            )
        rows = Rows(self._texts, self._labels)
        return Table(rows, dict(self._dropped), self._replaced, self._odd.describe(where))

    def _spell(self, part: Part, record: Record, column: str, value: object) -> str:
        try:
            return spell(value)
        except NoTextError as error:
            raise DataError(
                "a cell that is no text, number or boolean",
                where=place(part, record.row, record.line, column),
                found=error,
                advice=advise_path(column, value),
            ) from None

    def _mend(self, part: Part, record: Record, text: str, label: str) -> str:
        """The text with U+FFFD for each half of a surrogate pair. Raises DataError on refuse."""
        column = self._columns.label if is_unreadable(label) else self._columns.text
        if is_unreadable(label) or self._on_unreadable == "refuse":
            raise DataError(
                "half of a surrogate pair, which no tokenizer can encode",
                where=place(part, record.row, record.line, column),
                found=show(label if is_unreadable(label) else text),
                advice="Mend the row, or set prepare_data.on_unreadable to replace or drop.",
            )
        self._replaced += 1
        return replace_unreadable(text)


@dataclass
class _OddCells:
    """Counts of cells that are read but may not be meant."""

    absent: Counter[tuple[str, str]] = field(default_factory=Counter)
    quoted: int = 0
    spellings: dict[str, set[str]] = field(default_factory=dict)

    def look_at(self, text: str, label: str, name: str) -> None:
        if text in ABSENT_SPELLINGS:
            self.absent["text", text] += 1
        if label in ABSENT_SPELLINGS:
            self.absent["label", label] += 1
        if text[0] == text[-1] == '"' and '""' in text[1:-1]:
            self.quoted += 1
        if label not in (spelled := self.spellings.setdefault(name, {label})):
            spelled.add(label)

    def describe(self, where: str) -> list[str]:
        """A sentence for each kind of odd cell."""
        told = [
            f"{count} rows of {where} have the {what} {value!r}: if that means no value, say so "
            "in fetch_sources.data.format.missing, or mend the file"
            for (what, value), count in sorted(self.absent.items())
        ]
        if self.quoted:
            told.append(
                f"{self.quoted} texts of {where} stand in quotes with doubled quotes inside: if "
                "the file is quoted, set fetch_sources.data.format.quote"
            )
        for name, spelled in sorted(self.spellings.items()):
            if len(spelled) > 1:
                told.append(f"labels {list_names(sorted(spelled))} of {where} are read as {name}")
        return told


def find_similar_labels(labels: Iterable[str]) -> list[str]:
    """A sentence for each group of labels that differ only in case, blanks or Unicode's form."""
    groups: dict[str, set[str]] = {}
    for label in set(labels):
        key = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
        groups.setdefault(key, set()).add(label)
    return [
        f"labels {', '.join(show(label) for label in sorted(group))} are different classes, though "
        "they differ only in case, blanks or Unicode's form"
        for _, group in sorted(groups.items())
        if len(group) > 1
    ]


def drop_repeats(train: Rows, test: Rows, *, on_overlap: str) -> tuple[Rows, dict[str, int]]:
    """The usable training rows, and how many were dropped for each reason.

    A repeated text is kept once. Texts with several labels and texts of the test split are dropped.
    Raises DataError for an overlap with the test split if `on_overlap` is refuse.

    >>> train = Rows(["a", "a", "b", "b", "c"], ["x", "x", "x", "y", "y"])
    >>> drop_repeats(train, Rows(["c"], ["y"]), on_overlap="drop_from_train")
    (Rows(texts=['a'], labels=['x']), {'repeated': 1, 'contradictory': 2, 'in_test_split': 1})
    """
    labels_of: dict[str, set[str]] = {}
    for text, label in zip(train.texts, train.labels, strict=True):
        labels_of.setdefault(text, set()).add(label)
    in_test, seen, kept = set(test.texts), set[str](), []
    dropped: Counter[str] = Counter(repeated=0, contradictory=0, in_test_split=0)
    for row, text in enumerate(train.texts):
        if text in in_test:
            dropped["in_test_split"] += 1
        elif len(labels_of[text]) > 1:
            dropped["contradictory"] += 1
        elif text in seen:
            dropped["repeated"] += 1
        else:
            seen.add(text)
            kept.append(row)
    if dropped["in_test_split"] and on_overlap == "refuse":
        raise DataError(
            f"{dropped['in_test_split']} training texts are also in the test split",
            where="prepare_data.on_overlap",
            advice="Set it to drop_from_train, or mend the data.",
        )
    return train.keep(kept), dict(dropped)


def stratified(
    labels: Sequence[str], count: int, *, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of a seeded stratified sample of `count`, and the rows left over, both ascending int64.

    Each label gets its share, rounded by largest remainder. At least one row of each label is left
    over, even if the sample is then smaller.

    >>> labels = ["x"] * 6 + ["y"] * 2
    >>> sample, left = stratified(labels, 4, seed=0)
    >>> [labels[row] for row in sample], len(left)
    (['x', 'x', 'x', 'y'], 4)
    """
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    sizes = np.bincount(codes)
    share = sizes * count / len(labels)
    take = np.minimum(np.floor(share).astype(np.int64), np.maximum(sizes - 1, 0))
    for code in np.argsort(-(share - np.floor(share)), kind="stable"):
        if take.sum() < count and take[code] < sizes[code] - 1:
            take[code] += 1
    random = np.random.default_rng(seed)
    picked = [
        random.permutation(np.flatnonzero(codes == code))[: take[code]]
        for code in range(len(names))
    ]
    chosen = np.sort(np.concatenate(picked))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)
