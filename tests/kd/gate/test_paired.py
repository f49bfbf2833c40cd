"""Bounds of paired results: against published intervals, by simulation, by their laws."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.kd.gate.paired import (
    Pairs,
    best_constant,
    bound_difference,
    bound_lead,
    bound_ratio,
    bound_share,
    count_pairs,
    lead_of,
    score_difference,
    score_ratio,
)


def test_bounds_equal_the_published_intervals() -> None:
    """Airway hyper-responsiveness (1, 1, 7, 12): the worked example of Fagerland, Lydersen & Laake
    (2014), Statistics in Medicine 33:2850-2875: Tango -0.517, Tang et al. 0.065, two-sided 95 %."""
    pairs = Pairs(1, 1, 7, 12)
    assert bound_difference(pairs, 0.975) == pytest.approx(-0.517, abs=5e-4)
    assert bound_ratio(pairs, 0.975) == pytest.approx(0.065, abs=5e-4)


@pytest.mark.parametrize("examples", [100, 500, 2000])
@pytest.mark.parametrize(
    ("teacher", "only_student", "ratio"),
    [(0.95, 0.02, 0.98), (0.90, 0.10, 0.95), (0.80, 0.15, 0.90), (0.99, 0.0, 0.98)],
)
def test_both_bounds_hold_as_often_as_they_say(
    examples: int, teacher: float, only_student: float, ratio: float
) -> None:
    """At the hardest truth, the limit itself, a bound may lie above the truth 5 % of the time."""
    student = teacher * ratio
    drop = teacher - student
    cells = [student - only_student, only_student, only_student + drop]
    rng = np.random.default_rng(7)
    draws = rng.multinomial(examples, [*cells, 1 - sum(cells)], size=20_000)
    tables, times = np.unique(draws, axis=0, return_counts=True)
    held = {"difference": 0, "ratio": 0}
    for table, count in zip(tables.tolist(), times.tolist(), strict=True):
        pairs = Pairs(*table)
        # The bound is below the truth exactly if the score test does not reject the truth.
        held["difference"] += count * (score_difference(pairs, -drop) <= 1.6448536)
        held["ratio"] += count * (score_ratio(pairs, ratio) <= 1.6448536)
    assert all(value / 20_000 > 0.944 for value in held.values()), held


@pytest.mark.parametrize("examples", [100, 500, 2000])
@pytest.mark.parametrize(
    ("constant", "accuracy", "shared"),
    # `shared`: of the constant's right answers those that the student has right too.
    [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.55, 0.6), (0.9, 0.91, 1.0), (0.5, 0.9, 0.95), (0.9, 0.95, 1.0)],
)
def test_the_bound_of_a_lead_holds_as_often_as_it_says(
    examples: int, constant: float, accuracy: float, shared: float
) -> None:
    """With the constant that is best of all texts, known beforehand."""
    both = constant * shared
    cells = [both, accuracy - both, constant - both]
    truth = 1 - (1 - accuracy) / (1 - constant)
    rng = np.random.default_rng(7)
    draws = rng.multinomial(examples, [*cells, 1 - sum(cells)], size=20_000)
    tables, times = np.unique(draws, axis=0, return_counts=True)
    held = 0
    for table, count in zip(tables.tolist(), times.tolist(), strict=True):
        one, only, other, neither = table
        errors = Pairs(neither, other, only, one)
        held += count * (-score_ratio(errors, 1 - truth) <= 1.6448536)
    assert held / 20_000 > 0.94, held


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_a_student_at_chance_seldom_has_a_lead(classes: int) -> None:
    """The constant is chosen on the same examples, as the gate does: that makes it rarer still."""
    random = np.random.default_rng(5)
    passed = 0
    for _ in range(1000):
        labels, said = random.integers(0, classes, size=(2, 300)).astype(str).tolist()
        pairs = count_pairs(labels, said, [best_constant(labels)] * 300)
        passed += bound_lead(pairs, 0.95) > 0
    assert passed <= 50


@pytest.mark.parametrize(("right", "total", "expected"), [(9, 10, 0.6058), (10, 10, 0.7411)])
def test_the_bound_of_a_share_is_the_exact_one(right: int, total: int, expected: float) -> None:
    """Clopper & Pearson: 10 of 10 gives 0.05 ** (1 / 10); 9 of 10 is in their charts, 0.606."""
    assert bound_share(right, total, 0.95) == pytest.approx(expected, abs=5e-5)
    assert bound_share(0, total, 0.95) == 0


@pytest.mark.parametrize("examples", [100, 500])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_the_bound_of_a_share_holds_at_least_as_often_as_it_says(
    examples: int, share: float
) -> None:
    draws = np.random.default_rng(7).binomial(examples, share, size=20_000)
    counts, times = np.unique(draws, return_counts=True)
    held = sum(
        int(count) * (bound_share(int(right), examples, 0.95) <= share)
        for right, count in zip(counts, times, strict=True)
    )
    assert held / 20_000 >= 0.948


def test_a_lead_is_what_is_removed_of_the_constant_answer_s_errors() -> None:
    pairs = Pairs(40, 50, 10, 0)  # 90 right, the constant 50
    assert lead_of(pairs) == pytest.approx(0.8)
    assert 0.64 < bound_lead(pairs, 0.95) < 0.8
    assert lead_of(Pairs(50, 50, 0, 0)) == 1
    assert 0.9 < bound_lead(Pairs(50, 50, 0, 0), 0.95) < 1
    assert bound_lead(Pairs(0, 0, 60, 40), 0.95) == pytest.approx(-1.5)


def test_the_bound_is_where_the_score_test_stops_rejecting() -> None:
    pairs = Pairs(1800, 30, 45, 125)
    below, above = bound_difference(pairs, 0.95) - 1e-6, bound_difference(pairs, 0.95) + 1e-6
    assert score_difference(pairs, below) > 1.6448
    assert score_difference(pairs, above) < 1.6449
    below, above = bound_ratio(pairs, 0.95) - 1e-6, bound_ratio(pairs, 0.95) + 1e-6
    assert score_ratio(pairs, below) > 1.6448
    assert score_ratio(pairs, above) < 1.6449


@pytest.mark.parametrize(
    "pairs", [Pairs(10, 0, 0, 0), Pairs(0, 0, 10, 0), Pairs(0, 5, 5, 0), Pairs(1, 0, 0, 9)]
)
def test_extreme_tables_give_finite_bounds_below_the_estimate(pairs: Pairs) -> None:
    difference, ratio = bound_difference(pairs, 0.95), bound_ratio(pairs, 0.95)
    if pairs.second < pairs.total:
        assert bound_lead(pairs, 0.95) <= lead_of(pairs)
    assert -1 <= difference <= (pairs.first - pairs.second) / pairs.total
    assert 0 <= ratio <= pairs.first / pairs.second


def test_more_confidence_and_fewer_examples_both_lower_the_bound() -> None:
    few, many = Pairs(180, 5, 8, 7), Pairs(1800, 50, 80, 70)
    for bound in (bound_difference, bound_ratio):
        assert bound(few, 0.99) < bound(few, 0.95) < bound(many, 0.95)


def test_pairs_are_counted_by_example() -> None:
    assert count_pairs("aabb", "aaba", "abaa") == Pairs(1, 2, 0, 1)
    with pytest.raises(ValueError, match="shorter"):
        count_pairs("aabb", "aab", "abaa")
