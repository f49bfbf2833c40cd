"""Confidence bounds of what two models do on the same examples; standard library only.

What they hold, and why these were taken, is in `gate/decision.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

_BISECTIONS = 80


@dataclass(frozen=True)
class Pairs:
    """How often both of two models, only one, or neither is right on the same examples."""

    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def total(self) -> int:
        """All examples."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def first(self) -> int:
        """Examples on which the first model is right."""
        return self.both + self.first_only

    @property
    def second(self) -> int:
        """Examples on which the second model is right."""
        return self.both + self.second_only


def count_pairs(labels: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Pairs:
    """Count how two models' predictions agree with the labels, example by example."""
    rows = zip(labels, first, second, strict=True)
    seen = Counter((label == one, label == other) for label, one, other in rows)
    cells = ((True, True), (True, False), (False, True), (False, False))
    return Pairs(*(seen[cell] for cell in cells))


def best_constant(labels: Sequence[str]) -> str:
    """The label that is right most often if it is always given; the first of several such."""
    return Counter(labels).most_common(1)[0][0]


def lead_of(pairs: Pairs) -> float:
    """1 - errors(first) / errors(second): of the second's errors the share that the first removes.

    0 is no better than the second, 1 is perfect. The second must be wrong at least once.

    >>> lead_of(Pairs(both=60, first_only=30, second_only=0, neither=10))  # 10 errors for 40
    0.75
    """
    return 1 - (pairs.total - pairs.first) / (pairs.total - pairs.second)


def bound_lead(pairs: Pairs, confidence: float) -> float:
    """Lower one-sided confidence bound of `lead_of`, paired.

    Inverts the score test of `bound_ratio` with errors for right answers. The second model, the
    best constant answer, is chosen on the same examples: that favours it, never the first.
    """
    errors = Pairs(pairs.neither, pairs.second_only, pairs.first_only, pairs.both)
    lowest = 1 - errors.total / errors.second  # of a model that is always wrong

    def score(lead: float) -> float:
        return -score_ratio(errors, 1 - lead)

    return _invert(score, lowest, lead_of(pairs), confidence)


def bound_share(right: int, total: int, confidence: float) -> float:
    """Lower one-sided confidence bound of a share (Clopper & Pearson 1934, exact).

    The share at which so many right answers, or more, have the probability 1 - confidence.

    >>> round(bound_share(right=90, total=100, confidence=0.95), 3)
    0.836
    """
    if right == 0:
        return 0.0
    counts = range(total - right + 1)  # of wrong answers
    ways = [
        math.lgamma(total + 1) - math.lgamma(wrong + 1) - math.lgamma(total - wrong + 1)
        for wrong in counts
    ]

    def is_below(share: float) -> bool:
        hit, miss = math.log(share), math.log1p(-share)
        tail = math.fsum(
            math.exp(way + (total - wrong) * hit + wrong * miss)
            for wrong, way in zip(counts, ways, strict=True)
        )
        return tail < 1 - confidence

    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS // 2):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low


def bound_difference(pairs: Pairs, confidence: float) -> float:
    """Lower one-sided confidence bound of accuracy(first) - accuracy(second), paired.

    Inverts the score test of Tango (1998), Statistics in Medicine 17:891-908, equations 5 to 8.
    """
    estimate = (pairs.first - pairs.second) / pairs.total
    return _invert(lambda value: score_difference(pairs, value), -1.0, estimate, confidence)


def bound_ratio(pairs: Pairs, confidence: float) -> float:
    """Lower one-sided confidence bound of accuracy(first) / accuracy(second), paired.

    Inverts the score test of Nam & Blackwelder (2002), Statistics in Medicine 21:689-699 (the
    interval of Tang, Tang & Chan 2003). The second model must be right at least once.
    """
    estimate = pairs.first / pairs.second
    return _invert(lambda value: score_ratio(pairs, value), 0.0, estimate, confidence)


def _invert(
    score: Callable[[float], float], low: float, estimate: float, confidence: float
) -> float:
    """The smallest value that the one-sided score test does not reject, by bisection."""
    critical, high = NormalDist().inv_cdf(confidence), estimate
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if score(middle) > critical:
            low = middle
        else:
            high = middle
    return low


def score_difference(pairs: Pairs, value: float) -> float:
    """Standardised distance of the difference of accuracies from `value` (Tango's z)."""
    total, one, other = pairs.total, pairs.first_only, pairs.second_only
    linear = -one - other + (2 * total - one + other) * value
    constant = -other * value * (1 - value)
    # The probability that only the second is right, most likely under the hypothesis.
    root = math.sqrt(max(linear**2 - 8 * total * constant, 0.0))
    only_second = (root - linear) / (4 * total)
    variance = total * (2 * only_second + value * (1 - value))
    return _standardise(one - other - total * value, variance)


def score_ratio(pairs: Pairs, value: float) -> float:
    """Standardised distance of the ratio of accuracies from `value` (Nam & Blackwelder's z)."""
    if value <= 0:
        return math.inf
    total = pairs.total
    first, second = pairs.first / total, pairs.second / total
    one, other = pairs.first_only / total, pairs.second_only / total
    # The probabilities that only one is right, most likely under the hypothesis.
    root = math.sqrt(max((first - value**2 * second) ** 2 + 4 * value**2 * one * other, 0.0))
    only_second = (-first + value**2 * (second + 2 * one) + root) / (2 * value * (value + 1))
    only_first = value * only_second - (value - 1) * (1 - pairs.neither / total)
    variance = value * (only_first + only_second) / total
    return _standardise(first - value * second, variance)


def _standardise(distance: float, variance: float) -> float:
    if variance > 1e-15:
        return distance / math.sqrt(variance)
    return 0.0 if abs(distance) < 1e-12 else math.copysign(math.inf, distance)
