"""The gate: every rule fires when it should and says why; its bounds hold as often as they say."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.kd.documents.decision import DecisionRecord
from tasks.kd.gate import decision as gate_module
from tasks.kd.gate import evidence as evidence_module
from tasks.kd.gate import paired as paired_module
from tasks.kd.gate.decision import Decision, decide
from tasks.kd.gate.paired import (
    Pairs,
    bound_difference,
)
from tests.makers.documents import make_decision_record
from tests.makers.judged import GATE, find_rule, make_candidate, make_champion, refused_names


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


@pytest.mark.parametrize(
    ("module", "ours"),
    [
        (gate_module, {"tasks.kd.gate.paired", "tasks.kd.gate.evidence"}),
        (evidence_module, {"tasks.kd.errors"}),
        (paired_module, set()),
    ],
)
def test_the_gate_needs_the_standard_library_only(module: Any, ours: set[str]) -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    wanted = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    roots = {module.split(".")[0] for module in wanted if module}
    assert roots <= set(sys.stdlib_module_names) | {"tasks"}
    assert {module for module in wanted if module and module.startswith("tasks")} == ours
