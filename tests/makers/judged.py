"""Test results of candidates and champions, as the gate judges them."""

from __future__ import annotations

from typing import Any

from tasks.kd.gate.decision import Decision, Rule
from tasks.kd.gate.evidence import Candidate, Champion
from tasks.kd.recipe.sections import Gate

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
