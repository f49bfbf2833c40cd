"""Reading a raw table's text and labels, and dividing examples into splits."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.kd.errors import DataError

csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Rows:
    """Texts and label names of one raw split, in its order."""

    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def keep(self, rows: Sequence[int]) -> Rows:
        """The given rows, in that order."""
        return Rows([self.texts[i] for i in rows], [self.labels[i] for i in rows])


def read_rows(path: Path, *, text: str, label: str, skip_lines: int) -> Rows:
    """Text and label of every row of a csv, tsv, jsonl or parquet file.

    Raises DataError for a missing column, an empty file, or a row without text or label.
    """
    columns = _read_columns(path, skip_lines)
    for name in (text, label):
        if name not in columns:
            raise DataError(
                f"no column {name!r}", where=path, found=f"columns {', '.join(columns) or 'none'}"
            )
    rows = Rows([_cell(v) for v in columns[text]], [_cell(v) for v in columns[label]])
    if not len(rows):
        raise DataError("an empty split", where=path, expected="at least one row", found="none")
    blank = [
        i for i, (t, k) in enumerate(zip(rows.texts, rows.labels, strict=True)) if not (t and k)
    ]
    if blank:
        shown = ", ".join(str(i + 1) for i in blank[:5])
        raise DataError(f"{len(blank)} rows without text or label", where=f"{path}, rows {shown}")
    return rows


def read_column_names(path: Path, kind: str) -> list[str]:
    """The columns of a table by its header, its schema or, of jsonl, its first record.

    Raises DataError for what is no such table.
    """
    if kind == "parquet":
        return _read_parquet_names(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            if kind == "jsonl":
                return list(dict(json.loads(next(filter(str.strip, file), "{}"))))
            return next(_reader(file, kind), [])
        except (ValueError, TypeError, csv.Error) as error:  # also what is not UTF-8
            raise DataError(f"not a {kind} table in UTF-8", where=path, found=error) from error


def drop_repeats(train: Rows, test: Rows, *, on_overlap: str) -> tuple[Rows, dict[str, int]]:
    """The training rows without repeats, contradictions and what is also in the test split.

    A repeated text is kept once; texts with several labels are dropped. Raises DataError for an
    overlap with the test split if `on_overlap` is refuse.
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
    """Rows of a seeded stratified sample of `count`, and the rows that are left, both in order.

    Each label gets its share, rounded by largest remainder, but at least one row of each label is
    left, even if the sample is then smaller.
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


def _read_columns(path: Path, skip_lines: int) -> dict[str, list[object]]:
    kind = path.suffix.removeprefix(".")
    if kind == "parquet":
        return _read_parquet(path)
    if kind == "jsonl":
        return _read_jsonl(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = _reader(file, kind)
        try:
            header = next(reader, [])
            for _ in range(skip_lines):
                next(reader, None)
            rows = [row for row in reader if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"not a {kind} table in UTF-8", where=path, found=error) from error
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if wrong is not None:
        raise DataError(
            "a row with the wrong number of columns",
            where=f"{path}, row {wrong + 1}",
            expected=len(header),
            found=len(rows[wrong]),
        )
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _reader(file: Iterable[str], kind: str) -> Iterator[list[str]]:
    if kind == "tsv":
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(file, strict=True)


def _read_parquet_names(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except pyarrow.ArrowException as error:
        raise DataError("not a Parquet file", where=path, found=error) from error


def _read_parquet(path: Path) -> dict[str, list[object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return dict(pyarrow.parquet.read_table(path).to_pydict())
    except pyarrow.ArrowException as error:
        raise DataError("not a Parquet file", where=path, found=error) from error


def _read_jsonl(path: Path) -> dict[str, list[object]]:
    """One object per line; a field that a line lacks is None there."""
    objects: list[dict[str, object]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError("not JSON", where=f"{path}:{number}", found=error) from error
        if not isinstance(value, dict):
            raise DataError("not a JSON object", where=f"{path}:{number}", found=line[:60].decode())
        objects.append(value)
    names = dict.fromkeys(name for value in objects for name in value)
    return {name: [value.get(name) for value in objects] for name in names}


def _cell(value: object) -> str:
    """A cell's text; what stands for nothing (None, NaN) is empty."""
    absent = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if absent else str(value).strip()
