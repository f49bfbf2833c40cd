"""The gate: may this candidate become champion? Numbers in, a decision out. It loads no torch.

The start value is "refuse": a decision to promote exists only if every rule has passed. Two rules
are absolute, whatever teacher and champion do: the student's own accuracy, by the exact bound of
Clopper & Pearson, and its *lead*, the share of errors that it removes of those that the best
constant answer makes. Lead, retention and the champion's rule are *score* bounds for paired data
(both models answer the same examples). The simpler adjusted-Wald bound (Agresti & Min 2005) and
hybrid Wilson bound (Bonett & Price 2006) were tried and left: when a student's errors contain all
of its teacher's, which distillation tends to produce, their one-sided 95 % bounds held in 86 % of
simulated runs of 100 examples, and the score bounds in no less than 94 % of any
(tests/kd/gate/test_paired.py repeats the simulation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tasks.kd.gate.evidence import Candidate, Champion, align, require_whole
from tasks.kd.gate.paired import (
    best_constant,
    bound_difference,
    bound_lead,
    bound_ratio,
    bound_share,
    count_pairs,
    lead_of,
)

if TYPE_CHECKING:
    from tasks.kd.documents.decision import DecisionRecord
    from tasks.kd.recipe.sections import Gate

Verdict = Literal["promote", "refuse"]
RuleResult = Literal["passed", "worse", "undecided", "not applied"]

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Rule:
    """One rule's result. `measured` is what was held against `limit`; None where there is none."""

    name: str
    passed: bool
    measured: float | None
    limit: float | None
    explanation: str
    outcome: RuleResult


@dataclass(frozen=True)
class Decision:
    """The verdict, every rule with its numbers, and the champion that was compared with, if any."""

    verdict: Verdict
    rules: tuple[Rule, ...]
    against: str | None

    @property
    def refused_by(self) -> tuple[Rule, ...]:
        """The rules that did not pass."""
        return tuple(rule for rule in self.rules if not rule.passed)

    @property
    def record(self) -> DecisionRecord:
        """The decision as a document; `Decision.from_record` is the way back."""
        from tasks.kd.documents.decision import DecisionRecord, RuleRecord

        rules = tuple(RuleRecord(**vars(rule)) for rule in self.rules)
        return DecisionRecord(verdict=self.verdict, against=self.against, rules=rules)

    @classmethod
    def from_record(cls, record: DecisionRecord) -> Decision:
        """The decision of a record; one to promote only if each of its rules passed."""
        rules = tuple(Rule(**rule.given) for rule in record.rules)
        promote = record.verdict == "promote" and bool(rules) and all(r.passed for r in rules)
        return cls("promote" if promote else "refuse", rules, record.against)

    def as_markdown(self) -> str:
        """One sentence and a table."""
        names = ", ".join(rule.name for rule in self.refused_by)
        if self.verdict == "promote":
            head = "**Promote**: every rule passed."
        else:
            head = f"**Refuse**: {names or 'no rule was checked'}."
        rows = [
            f"| {rule.name} | {_RESULT[rule.outcome]} | {rule.explanation.replace('|', '¦')} |"
            for rule in self.rules
        ]
        return "\n".join([head, "", "| rule | result | why |", "|---|---|---|", *rows, ""])


_RESULT: dict[RuleResult, str] = {
    "passed": "passed",
    "worse": "**refused**",
    "undecided": "**refused** (not enough examples to tell)",
    "not applied": "not applied",
}


def decide(
    candidate: Candidate,
    champion: Champion | None,
    gate: Gate,
    *,
    no_champion: str = "there is no champion yet",
    measure_again: str = "Measure again if the machine was busy.",
) -> Decision:
    """Hold a candidate against each rule of its recipe.

    Without a champion its rule is not applied, and `no_champion` says why. `measure_again` is said
    of a latency that is refused: it is the one figure that depends on the hour. Raises
    `DataError` for results that can't be judged: none at all, duplicate or differing example ids,
    empty labels, sizes or latencies that are no positive numbers.
    """
    require_whole(candidate)
    rules = (
        _check_examples(candidate, gate),
        _check_accuracy(candidate, gate),
        _check_lead(candidate, gate),
        _check_retention(candidate, gate),
        _check_champion(candidate, champion, gate, no_champion),
        _check_budget("size", candidate.size_bytes / _MIB, gate.max_size_mib, "MiB"),
        _check_latency(candidate, gate, measure_again),
    )
    verdict: Verdict = "refuse"
    if all(rule.passed for rule in rules):
        verdict = "promote"
    return Decision(verdict, rules, champion.name if champion else None)


# --- the rules -----------------------------------------------------------------------------------


def _check_examples(candidate: Candidate, gate: Gate) -> Rule:
    count = len(candidate.example_ids)
    passed = count >= gate.min_examples
    explanation = f"{count} test examples; at least {gate.min_examples} are asked for."
    outcome: RuleResult = "passed" if passed else "undecided"
    return Rule("examples", passed, float(count), float(gate.min_examples), explanation, outcome)


def _check_accuracy(candidate: Candidate, gate: Gate) -> Rule:
    total, limit = len(candidate.labels), gate.min_accuracy
    right = sum(map(str.__eq__, candidate.labels, candidate.student))
    estimate, bound = right / total, bound_share(right, total, gate.confidence)
    outcome, why = _weigh(estimate, bound, limit, total)
    explanation = (
        f"The student is right on {estimate:.2%} of {total} examples, with {gate.confidence:.0%} "
        f"confidence on at least {bound:.2%}; {limit:.2%} is asked for. {why}"
    ).strip()
    return Rule("accuracy", outcome == "passed", bound, limit, explanation, outcome)


def _check_lead(candidate: Candidate, gate: Gate) -> Rule:
    limit, constant = gate.min_lead, best_constant(candidate.labels)
    pairs = count_pairs(candidate.labels, candidate.student, [constant] * len(candidate.labels))
    if pairs.second == pairs.total:
        why = f"All test examples are {constant}: nothing is better than that answer alone."
        return Rule("lead", False, None, limit, why, "worse")
    estimate, bound = lead_of(pairs), bound_lead(pairs, gate.confidence)
    outcome, why = _weigh(estimate, bound, limit, pairs.total)
    if outcome == "passed" and bound <= 0:  # asked for no lead, a student must still have one
        outcome, why = "worse" if estimate <= 0 else "undecided", "It may be no better than that."
    explanation = (
        f"The student removes {estimate:.2%} of the errors of the best constant answer "
        f"({constant}, right on {pairs.second / pairs.total:.2%}), with {gate.confidence:.0%} "
        f"confidence at least {bound:.2%}; {limit:.2%} is asked for. {why}"
    ).strip()
    return Rule("lead", outcome == "passed", bound, limit, explanation, outcome)


def _check_retention(candidate: Candidate, gate: Gate) -> Rule:
    pairs = count_pairs(candidate.labels, candidate.student, candidate.teacher)
    limit = gate.min_retention
    if pairs.second == 0:
        why = "The teacher is right on no example: there is no accuracy to retain."
        return Rule("retention", False, None, limit, why, "worse")
    estimate, bound = pairs.first / pairs.second, bound_ratio(pairs, gate.confidence)
    kept = (
        f"The student keeps {estimate:.2%} of the teacher's accuracy "
        f"({pairs.first / pairs.total:.2%} of {pairs.second / pairs.total:.2%}, "
        f"{pairs.total} examples)"
    )
    sure = f"with {gate.confidence:.0%} confidence at least {bound:.2%}"
    outcome, why = _weigh(estimate, bound, limit, pairs.total)
    explanation = f"{kept}, {sure}; {limit:.2%} is asked for. {why}".strip()
    return Rule("retention", outcome == "passed", bound, limit, explanation, outcome)


def _check_champion(
    candidate: Candidate, champion: Champion | None, gate: Gate, no_champion: str
) -> Rule:
    limit = -gate.max_accuracy_drop
    if champion is None:
        why = f"Not applied: {no_champion}."
        return Rule("champion", True, None, limit, why, "not applied")
    if champion.unfit is not None:
        why = f"{champion.name} can't be compared: {champion.unfit}."
        return Rule("champion", False, None, limit, why, "worse")
    predictions = align(champion, candidate.example_ids)
    pairs = count_pairs(candidate.labels, candidate.student, predictions)
    estimate = (pairs.first - pairs.second) / pairs.total
    bound = bound_difference(pairs, gate.confidence)
    counts = (
        f"Right on {pairs.first_only} examples where {champion.name} is wrong, wrong on "
        f"{pairs.second_only} where it is right, of {pairs.total}: accuracy "
        f"{100 * estimate:+.2f} points"
    )
    sure = f"with {gate.confidence:.0%} confidence {100 * bound:+.2f} points or better"
    outcome, why = _weigh(estimate, bound, limit, pairs.total)
    explanation = f"{counts}, {sure}; {100 * limit:+.2f} is allowed. {why}".strip()
    return Rule("champion", outcome == "passed", bound, limit, explanation, outcome)


def _check_latency(candidate: Candidate, gate: Gate, measure_again: str) -> Rule:
    measured, limit = candidate.latency_p95_ms, gate.max_latency_p95_ms
    rule = _check_budget("latency", measured, limit, "ms (p95)")
    if rule.passed:
        return rule
    return replace(rule, explanation=f"{rule.explanation} {measure_again}")


def _check_budget(name: str, measured: float, limit: float, unit: str) -> Rule:
    passed = measured <= limit
    explanation = f"{measured:.2f} {unit}; at most {limit:g} is allowed."
    return Rule(name, passed, measured, limit, explanation, "passed" if passed else "worse")


def _weigh(estimate: float, bound: float, limit: float, examples: int) -> tuple[RuleResult, str]:
    """Tell what is worse from what so many examples can't show, and say how many could."""
    if bound >= limit:
        return "passed", ""
    if estimate <= limit:
        return "worse", "The value itself misses it."
    # The distance from estimate to bound shrinks with the square root of the examples.
    needed = math.ceil(examples * ((estimate - bound) / (estimate - limit)) ** 2)
    return "undecided", (
        f"The value itself meets it, but there are not enough examples to tell: about {needed} "
        "would do if the rates stay as they are."
    )
