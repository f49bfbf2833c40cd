"""Results that can't be judged are refused, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tasks.kd.errors import DataError
from tasks.kd.gate.decision import decide
from tests.makers.judged import GATE, make_candidate, make_champion


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
