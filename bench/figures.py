"""What is measured: figures with their goals, and rounds in which the ways of doing it take turns.

A ratio is taken within a round, so that a machine which is slow for a while is slow for both
sides of it. Medians count; minimum and maximum show the noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Way = Callable[[int], float]


@dataclass(frozen=True)
class Figure:
    """One measured quantity: a value per round, and what it should be at most or at least."""

    name: str
    values: tuple[float, ...]
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least

    def as_json(self) -> dict[str, Any]:
        """All that there is to say of it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "rounds": list(self.values),
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "at_most": self.at_most,
            "at_least": self.at_least,
            "met": self.met,
        }


@dataclass(frozen=True)
class Findings:
    """What a part found, what it was measured on, and how to read it."""

    figures: tuple[Figure, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def take_turns(
    ways: Mapping[str, Way], rounds: int, *, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """What each way returned in each of the rounds 1 to `rounds`, after a round 0 that warms up.

    Every round begins with another way: what one leaves behind (warm memory, a busy disk) falls
    on all of them alike. `advance` is called after each.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = ways[name](number)
            if number:
                found[name].append(value)
            advance()
    return found


def turns(ways: Mapping[str, Way], rounds: int) -> int:
    """How often `take_turns` will call `advance`."""
    return len(ways) * (rounds + 1)


def ratio(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Figure:
    """The quotient in each round."""
    values = tuple(a / b for a, b in zip(above, below, strict=True))
    return Figure(name, values, at_most=at_most, at_least=at_least)


def paragraphs(text: str, **values: object) -> tuple[str, ...]:
    """Notes as they stand in the results: parted at blank lines, `{name}` filled in."""
    return tuple(" ".join(part.split()) for part in text.format(**values).strip().split("\n\n"))
