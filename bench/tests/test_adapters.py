"""What the part `adapters` says: small for the adapters as they are, large for broken ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bench import adapters
from bench.adapters import GOAL, KINDS, Difference, Found, compare
from tests.makers.caches import spread_teacher, texts_of


def found_of(model: Any) -> Found:
    found: Found = {kind: {} for kind in KINDS}
    for lengths in ([3, 9, 5], [17, 2]):
        compare(model, adapters._eager(model), texts_of(lengths), 0, found)
    return found


def worst(found: Found) -> dict[str, float]:
    return {kind: max(one.relative for one in layers.values()) for kind, layers in found.items()}


def test_the_adapters_agree_in_every_layer() -> None:
    found = found_of(spread_teacher())
    layers = {kind: set(of_layers) for kind, of_layers in found.items()}
    hidden, attention = {0, 1, 2, 3, 4}, {1, 2, 3, 4}
    assert layers == {
        "embed": {0},
        "run_layer": attention,
        "scores": attention,
        "captured states": hidden,
        "captured attention": attention,
        "padding": hidden,
    }
    assert all(value <= GOAL for value in worst(found).values())
    assert sum(one.absolute for one in found["captured states"].values()) > 0


@pytest.mark.parametrize(
    ("adapter", "kinds"),
    [
        ("scores", {"scores", "captured attention"}),
        ("project", {"scores"}),
        ("run_layer", {"run_layer"}),
        ("embed", {"embed"}),
    ],
)
def test_a_broken_adapter_passes_the_goal(
    adapter: str, kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(adapters, adapter)

    def broken(*given: Any) -> Any:
        value = real(*given)
        if isinstance(value, torch.Tensor):
            return value * 1.001
        return dataclasses.replace(value, queries_BTD=value.queries_BTD.roll(1, 0))

    monkeypatch.setattr(adapters, adapter, broken)
    found = worst(found_of(spread_teacher()))
    assert {kind for kind, value in found.items() if value > GOAL} == kinds


def test_a_model_that_sees_padding_passes_the_goal() -> None:
    model = spread_teacher()
    eager = adapters._eager(model)

    def blind(_: object, given: Any, named: Any) -> Any:
        return given, {**named, "attention_mask": torch.ones_like(named["attention_mask"])}

    model.register_forward_pre_hook(blind, with_kwargs=True)
    found: Found = {kind: {} for kind in KINDS}
    compare(model, eager, texts_of([3, 9, 5]), 0, found)
    assert worst(found)["padding"] > 0.01


def test_what_can_t_be_compared_is_no_difference_of_zero() -> None:
    for own in (torch.zeros(0), torch.tensor([float("nan")])):
        with pytest.raises(SystemExit, match="nothing to compare"):
            Difference().add(own, torch.zeros(len(own)))
