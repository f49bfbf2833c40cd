"""What the gate judges: a candidate's test results and the champion's, refused if they can't be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.kd.errors import DataError


@dataclass(frozen=True)
class Candidate:
    """A student's test results.

    Per example its id and the names of its label, the teacher's and the served student's prediction
    (equal lengths); the served file's bytes; latency of one text in ms.
    """

    example_ids: tuple[str, ...]
    labels: tuple[str, ...]
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    size_bytes: int
    latency_p95_ms: float


@dataclass(frozen=True)
class Champion:
    """The present champion and what it says of the candidate's examples, by example id.

    `unfit` says why it can't be compared (the rule is then refused, never left out).
    """

    name: str
    predictions: Mapping[str, str]
    unfit: str | None = None


def require_whole(candidate: Candidate) -> None:
    """Raise DataError for results that can't be judged: none, double, blank, or no number."""
    count = len(candidate.example_ids)
    if count == 0:
        raise DataError("The candidate has no test results", expected="one row per test example")
    for name in ("labels", "teacher", "student"):
        column: tuple[str, ...] = getattr(candidate, name)
        if len(column) != count:
            raise DataError(
                f"The candidate's column {name} does not fit", expected=count, found=len(column)
            )
        _refuse_blanks(column, candidate.example_ids, f"The candidate's column {name}")
    _refuse_blanks(candidate.example_ids, range(count), "The candidate's example ids")
    seen = Counter(candidate.example_ids)
    if len(seen) != count:
        twice = [example for example, times in seen.items() if times > 1]
        raise DataError("Test examples appear more than once", found=_name_some(twice))
    for name in ("size_bytes", "latency_p95_ms"):
        number: float = getattr(candidate, name)
        if not (math.isfinite(number) and number > 0):
            raise DataError(f"The candidate's {name} is not a positive number", found=number)


def align(champion: Champion, example_ids: Sequence[str]) -> tuple[str, ...]:
    """The champion's predictions in the candidate's order, if they are of the same examples."""
    wanted, given = set(example_ids), set(champion.predictions)
    if wanted != given:
        raise DataError(
            f"{champion.name} was scored on other examples than the candidate",
            expected=f"{len(wanted)} shared example ids",
            found=f"{len(wanted - given)} without a prediction ({_name_some(wanted - given)}), "
            f"{len(given - wanted)} unknown ({_name_some(given - wanted)})",
        )
    predictions = tuple(champion.predictions[example] for example in example_ids)
    _refuse_blanks(predictions, example_ids, f"{champion.name}'s predictions")
    return predictions


def _refuse_blanks(values: Sequence[object], where: Iterable[object], what: str) -> None:
    """Refuse whatever is no label: None, NaN, a number, an empty text."""
    wrong = [
        place
        for place, value in zip(where, values, strict=True)
        if not isinstance(value, str) or value == ""
    ]
    if wrong:
        raise DataError(f"{what} has {len(wrong)} empty values", where=_name_some(wrong))


def _name_some(names: Iterable[object]) -> str:
    listed = sorted(str(name) for name in names)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "") if listed else "none"
