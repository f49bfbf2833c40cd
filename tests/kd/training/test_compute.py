"""The `compute` section says only what can be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.makers.training_setup import make_compute, make_settings

TWO = {"machines": 2, "machine_rank": 1, "rendezvous": "node-0.cluster:29500"}


def test_several_machines_with_a_place_to_meet_are_taken() -> None:
    compute = make_compute(**TWO)
    assert (compute.machines, compute.machine_rank) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine_rank": 0}, "must be null where machines is 1"),
        ({"rendezvous": "a:1"}, "must be null where machines is 1"),
        ({**TWO, "machine_rank": None}, "needs machine_rank and rendezvous"),
        ({**TWO, "rendezvous": None}, "needs machine_rank and rendezvous"),
        ({**TWO, "machine_rank": 2}, "machine_rank 2 is not below machines 2"),
        ({**TWO, "rendezvous": "no port"}, "rendezvous"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
        ({"peer_timeout_s": 0.0}, "peer_timeout_s"),
        ({"profile_step": 0}, "profile_step"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make_compute(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"ema_decay": 1.0}, {"ema_decay": 0.0}, {"stop_after_epochs": 0}, {"max_non_finite": 0}],
    ids=str,
)
def test_a_practice_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        make_settings(**changes)
