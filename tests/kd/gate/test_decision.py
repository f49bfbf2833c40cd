"""The gate: every rule fires when it should and says why; its bounds hold as often as they say."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.kd.documents.decision import DecisionRecord
from tasks.kd.errors import DataError
from tasks.kd.gate import decision as gate_module
from tasks.kd.gate import paired as paired_module
from tasks.kd.gate.decision import Candidate, Champion, Decision, Rule, decide
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
from tasks.kd.recipe.sections import Gate
from tests.makers.documents import make_decision_record

GATE = Gate(
    min_accuracy=0.9,
    min_lead=0.5,
    min_retention=0.98,
    max_accuracy_drop=0.01,
    confidence=0.95,
    min_examples=500,
    max_size_mib=50.0,
    max_latency_p95_ms=20.0,
)


def make_candidate(
    examples: int = 2000, teacher_wrong: int = 60, student_wrong: int = 70, **changes: Any
) -> Candidate:
    """Two labels; the teacher is wrong on the first examples, the student on the first ones too."""
    labels = tuple("ab"[index % 2] for index in range(examples))
    fields: dict[str, Any] = {
        "example_ids": tuple(f"e{index:05d}" for index in range(examples)),
        "labels": labels,
        "teacher": miss(labels, range(teacher_wrong)),
        "student": miss(labels, range(student_wrong)),
        "size_bytes": 20 * 1024 * 1024,
        "latency_p95_ms": 8.0,
    }
    return Candidate(**(fields | changes))


def miss(labels: tuple[str, ...], wrong: range) -> tuple[str, ...]:
    return tuple(
        ("b" if label == "a" else "a") if index in wrong else label
        for index, label in enumerate(labels)
    )


def make_champion(candidate: Candidate, wrong: range, **changes: Any) -> Champion:
    said = miss(candidate.labels, wrong)
    fields: dict[str, Any] = {
        "name": "models:/triage/1",
        "predictions": dict(zip(candidate.example_ids, said, strict=True)),
    }
    return Champion(**(fields | changes))


def find_rule(decision: Decision, name: str) -> Rule:
    return next(rule for rule in decision.rules if rule.name == name)


def refused_names(decision: Decision) -> list[str]:
    return [rule.name for rule in decision.refused_by]


# --- verdicts ------------------------------------------------------------------------------------


def test_a_good_candidate_with_no_champion_is_promoted_and_the_missing_rule_is_said() -> None:
    decision = decide(make_candidate(), None, GATE)
    assert decision.verdict == "promote"
    rule = find_rule(decision, "champion")
    assert rule.outcome == "not applied"
    assert "there is no champion yet" in rule.explanation
    assert decision.against is None


def test_a_candidate_as_good_as_the_champion_is_promoted() -> None:
    candidate = make_candidate()
    decision = decide(candidate, make_champion(candidate, range(70)), GATE)
    assert decision.verdict == "promote"
    assert decision.against == "models:/triage/1"
    assert [rule.name for rule in decision.rules] == [
        "examples", "accuracy", "lead", "retention", "champion", "size", "latency",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"examples": 499, "teacher_wrong": 0, "student_wrong": 0}, "examples"),
        ({"student_wrong": 120}, "retention"),
        ({"teacher_wrong": 200, "student_wrong": 200}, "accuracy"),
        ({"size_bytes": 50 * 1024 * 1024 + 1}, "size"),
        ({"latency_p95_ms": 20.001}, "latency"),
    ],
)
def test_each_rule_alone_refuses(changes: dict[str, Any], rule: str) -> None:
    decision = decide(make_candidate(**changes), None, GATE)
    assert decision.verdict == "refuse"
    assert refused_names(decision) == [rule]


def test_a_refused_latency_and_nothing_else_says_how_to_measure_again() -> None:
    again = "Measure again: like this."
    slow = decide(make_candidate(latency_p95_ms=20.001), None, GATE, measure_again=again)
    assert [rule.name for rule in slow.rules if again in rule.explanation] == ["latency"]
    large = decide(make_candidate(size_bytes=10**9), None, GATE, measure_again=again)
    assert not any(again in rule.explanation for rule in large.rules)


@pytest.mark.parametrize(
    "changes", [{"size_bytes": 50 * 1024 * 1024}, {"latency_p95_ms": 20.0}, {"examples": 500}]
)
def test_the_limit_itself_is_allowed(changes: dict[str, Any]) -> None:
    wrong = {"teacher_wrong": 0, "student_wrong": 0}
    assert decide(make_candidate(**(wrong | changes)), None, GATE).verdict == "promote"


def test_a_candidate_worse_than_the_champion_is_refused_as_worse() -> None:
    candidate = make_candidate(teacher_wrong=200, student_wrong=200)
    lower = GATE.model_copy(update={"min_accuracy": 0.85})
    decision = decide(candidate, make_champion(candidate, range(100)), lower)
    assert refused_names(decision) == ["champion"]
    rule = find_rule(decision, "champion")
    assert rule.outcome == "worse"
    assert "-5.00 points" in rule.explanation
    assert "wrong on 100 where it is right" in rule.explanation


def test_too_few_examples_to_tell_is_not_called_worse() -> None:
    # Same accuracy, but the two disagree on 40 of 600 examples: the bound is far below the value.
    candidate = make_candidate(examples=600, teacher_wrong=20, student_wrong=20)
    decision = decide(candidate, make_champion(candidate, range(20, 40)), GATE)
    rule = find_rule(decision, "champion")
    assert rule.outcome == "undecided"
    assert "+0.00 points" in rule.explanation
    assert "not enough examples to tell" in rule.explanation
    assert "not enough examples to tell" in decision.as_markdown()


def test_the_number_of_examples_that_would_do_is_about_right() -> None:
    candidate = make_candidate(examples=600, teacher_wrong=20, student_wrong=20)
    rule = find_rule(decide(candidate, make_champion(candidate, range(20, 40)), GATE), "champion")
    words = rule.explanation.split()
    needed = int(words[words.index("about") + 1])
    more = needed // 600 + 1
    pairs = Pairs(560 * more, 20 * more, 20 * more, 0)
    assert bound_difference(pairs, 0.95) >= -0.01
    assert bound_difference(Pairs(560, 20, 20, 0), 0.95) < -0.01


def test_a_champion_that_cannot_be_compared_refuses_rather_than_passes() -> None:
    candidate = make_candidate()
    champion = make_champion(candidate, range(0), unfit="it knows other labels", predictions={})
    decision = decide(candidate, champion, GATE)
    assert refused_names(decision) == ["champion"]
    assert "it knows other labels" in find_rule(decision, "champion").explanation


def test_a_student_that_guesses_as_its_teacher_does_is_refused() -> None:
    """Three classes, teacher 32.33 %, student 33.17 %: retention 102.6 %, and both at chance."""
    labels = tuple("abc"[index % 3] for index in range(600))
    random = np.random.default_rng(3)
    teacher, student = (
        tuple(
            label if index in right else "abc"[("abc".index(label) + 1) % 3]
            for index, label in enumerate(labels)
        )
        for right in (set(random.permutation(600)[:count].tolist()) for count in (194, 199))
    )
    candidate = make_candidate(examples=600, labels=labels, teacher=teacher, student=student)
    loose = {"min_retention": 0.5, "min_accuracy": 0.0, "min_lead": 0.0}
    decision = decide(candidate, None, GATE.model_copy(update=loose))
    assert refused_names(decision) == ["lead"]
    assert find_rule(decision, "retention").passed
    rule = find_rule(decision, "lead")
    assert "-0.25%" in rule.explanation
    assert rule.outcome == "worse"


def test_a_student_that_always_gives_one_answer_has_no_lead() -> None:
    labels = ("a",) * 1900 + ("b",) * 100
    said = ("a",) * 2000
    loose = GATE.model_copy(update={"min_lead": 0.0})
    decision = decide(make_candidate(labels=labels, teacher=said, student=said), None, loose)
    assert refused_names(decision) == ["lead"]
    rule = find_rule(decision, "lead")
    assert "removes 0.00% of the errors of the best constant answer (a, right on 95.00%)" in (
        rule.explanation
    )


def test_a_lead_that_may_be_chance_is_undecided_even_where_none_is_asked_for() -> None:
    """254 of 500 are right by more than the constant's 250: that may be luck."""
    loose = GATE.model_copy(update={"min_lead": 0.0, "min_accuracy": 0.0, "min_retention": 0.1})
    wrong = {"teacher_wrong": 246, "student_wrong": 246}
    decision = decide(make_candidate(examples=500, **wrong), None, loose)
    assert refused_names(decision) == ["lead"]
    assert find_rule(decision, "lead").outcome == "undecided"


def test_a_test_split_of_one_class_shows_no_lead() -> None:
    same = ("a",) * 2000
    decision = decide(make_candidate(labels=same, teacher=same, student=same), None, GATE)
    assert refused_names(decision) == ["lead"]
    assert "All test examples are a" in find_rule(decision, "lead").explanation


def test_a_teacher_that_is_never_right_refuses() -> None:
    decision = decide(make_candidate(teacher_wrong=2000, student_wrong=0), None, GATE)
    assert refused_names(decision) == ["retention"]


# --- nothing is judged on broken input -----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": 0}, "no test results"),
        ({"labels": ("a",)}, "column labels does not fit"),
        ({"student": ()}, "column student does not fit"),
        ({"example_ids": ("e1",) * 2000}, "appear more than once"),
        ({"size_bytes": 0}, "size_bytes is not a positive number"),
        ({"latency_p95_ms": float("nan")}, "latency_p95_ms is not a positive number"),
        ({"latency_p95_ms": float("inf")}, "latency_p95_ms is not a positive number"),
        ({"student": ("",) * 2000}, "column student has 2000 empty values"),
        ({"teacher": (float("nan"),) * 2000}, "column teacher has 2000 empty values"),
        ({"labels": (None,) * 2000}, "column labels has 2000 empty values"),
    ],
)
def test_broken_results_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decide(make_candidate(**changes), None, GATE)


def test_champion_results_on_other_examples_are_refused() -> None:
    candidate = make_candidate()
    champion = make_champion(candidate, range(0))
    fewer = dict(list(champion.predictions.items())[1:])
    with pytest.raises(DataError, match=r"scored on other examples.*1 without a prediction"):
        decide(candidate, dataclasses.replace(champion, predictions=fewer), GATE)
    other = dict(champion.predictions) | {"stranger": "a"}
    with pytest.raises(DataError, match=r"1 unknown \(stranger"):
        decide(candidate, dataclasses.replace(champion, predictions=other), GATE)


def test_an_empty_champion_prediction_is_refused() -> None:
    candidate = make_candidate()
    champion = make_champion(candidate, range(0))
    broken = dict(champion.predictions) | {"e00003": ""}
    with pytest.raises(DataError, match="e00003"):
        decide(candidate, dataclasses.replace(champion, predictions=broken), GATE)


# --- records -------------------------------------------------------------------------------------


def test_a_decision_survives_json() -> None:
    candidate = make_candidate()
    decision = decide(candidate, make_champion(candidate, range(70)), GATE)
    text = json.dumps(decision.record.as_json())
    assert Decision.from_record(DecisionRecord.parse(text, "here")) == decision


def test_a_record_that_says_promote_against_its_own_rules_reads_as_a_refusal() -> None:
    record = decide(make_candidate(student_wrong=400), None, GATE).record
    record = DecisionRecord(**{**record.given, "verdict": "promote"})
    assert Decision.from_record(record).verdict == "refuse"
    nothing = make_decision_record(rules=())
    assert Decision.from_record(nothing) == Decision("refuse", (), None)


def test_the_markdown_names_each_rule_and_its_numbers() -> None:
    text = decide(make_candidate(student_wrong=400), None, GATE).as_markdown()
    assert text.startswith("**Refuse**: accuracy, retention.")
    for name in ("examples", "accuracy", "lead", "retention", "champion", "size", "latency"):
        assert f"| {name} |" in text
    assert "82.47%" in text
    assert "98.00%" in text


# --- the statistics ------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("module", "ours"),
    [(gate_module, {"tasks.kd.gate.paired", "tasks.kd.errors"}), (paired_module, set())],
)
def test_the_gate_needs_the_standard_library_only(module: Any, ours: set[str]) -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    wanted = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    roots = {module.split(".")[0] for module in wanted if module}
    assert roots <= set(sys.stdlib_module_names) | {"tasks"}
    assert {module for module in wanted if module and module.startswith("tasks")} == ours
