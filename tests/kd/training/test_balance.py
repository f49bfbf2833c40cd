"""Levels that are balanced: factors that make gradients of equal weight equally long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.data.examples.batching import epoch_batches
from tasks.kd.recipe.phases import Phase
from tasks.kd.recipe.schedules import WeightSchedule
from tasks.kd.training import loop as training
from tasks.kd.training import precision
from tasks.kd.training.checkpoint import State
from tasks.kd.training.course import Parts
from tasks.kd.training.gradients import Losses, balance
from tasks.kd.training.loop import train
from tasks.kd.training.updates import level_record
from tests.makers.phases import one_phase
from tests.makers.training_setup import (
    ATTENTION,
    HIDDEN,
    KL,
    LABELS,
    RELATION,
    interrupt,
    last_checkpoint,
    make_habits,
    make_parts,
    make_settings,
    records_of,
    require_equal,
    without_dropout,
)
from tests.makers.troubles import Poisoned, with_memory_for

LAST = HIDDEN.model_copy(update={"layer_map": "last", "standardise": False, "weight": 0.2})
LEVELS = (LABELS, KL, HIDDEN, LAST)
NORMS = st.dictionaries(
    st.sampled_from("abcd"), st.one_of(st.just(0.0), st.floats(1e-30, 1e30)), min_size=1
)


# --- the factors themselves ----------------------------------------------------------------------


def test_the_first_factors_make_all_norms_their_mean() -> None:
    norms = {"a": 1.0, "b": 3.0, "c": 8.0}
    found = balance({}, norms)
    assert {name: found[name] * norm for name, norm in norms.items()} == pytest.approx(
        dict.fromkeys(norms, 4.0)
    )


def test_later_factors_go_half_of_the_way_in_logarithms() -> None:
    assert balance({"a": 8.0, "b": 0.5}, {"a": 1.0, "b": 3.0}) == pytest.approx(
        {"a": math.sqrt(8.0 * 2), "b": math.sqrt(0.5 * 2 / 3)}
    )


def test_a_norm_of_zero_leaves_the_factor_and_does_not_count() -> None:
    factors = {"a": 0.3, "b": 2.0, "c": 2.0}
    found = balance(factors, {"a": 0.0, "b": 5.0, "c": 5.0})
    assert found == {"a": 0.3, "b": pytest.approx(math.sqrt(2)), "c": pytest.approx(math.sqrt(2))}
    assert balance({}, {"a": 0.0, "b": 5.0}) == {"a": 1.0, "b": 1.0}
    assert balance({}, {"a": 0.0}) == {}


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_leaves_all_factors(bad: float) -> None:
    factors = {"a": 0.3, "b": 2.0}
    assert balance(factors, {"a": bad, "b": 5.0}) == factors
    assert balance({}, {"a": bad, "b": 5.0}) == {}


@given(norms=NORMS, factors=st.dictionaries(st.sampled_from("abcd"), st.floats(1e-3, 1e3)))
def test_factors_are_bounded_whatever_is_measured(
    norms: dict[str, float], factors: dict[str, float]
) -> None:
    for found in balance(factors, norms).values():
        assert 0.999e-3 <= found <= 1.001e3


# --- in a training -------------------------------------------------------------------------------


def phase_of(every: int | None, epochs: int = 1, **changes: Any) -> Phase:
    changes = {"learning_rate": 2e-3, **changes}
    return one_phase(changes.pop("levels", LEVELS), epochs=epochs, balance_every=every, **changes)


def factors_of(work: Path) -> list[Mapping[str, float]]:
    """Of each step, by level."""
    return [
        {name: level["factor"] for name, level in record["levels"].items()}
        for record in records_of(work, "train")
    ]


def test_after_a_measurement_levels_pull_as_hard_as_their_weights_say(tmp_path: Path) -> None:
    parts = make_parts((phase_of(100),))
    train(make_settings(), parts, make_habits(tmp_path))
    first, second = records_of(tmp_path, "train")[:2]
    pulls = [level["grad_norm"] for level in first["levels"].values()]
    weights = [0.5, 0.5, 0.3, 0.2]
    assert weights == [level.weight for level in LEVELS]
    assert pulls == pytest.approx([pulls[0] * weight / 0.5 for weight in weights], rel=1e-5)
    factors = factors_of(tmp_path)
    assert max(factors[0].values()) > 3 * min(factors[0].values()), "they were not equal before"
    assert all(each == factors[0] for each in factors)  # until they are measured again
    assert "grad_norm" not in second["levels"]["prediction.kl"]
    for (name, level), weight in zip(second["levels"].items(), weights, strict=True):
        assert level["weight"] == weight * factors[0][name]
        assert level["weighted"] == level["weight"] * level["raw"]
    assert second["loss"] == pytest.approx(
        sum(level["weighted"] for level in second["levels"].values())
    )


def test_a_level_that_hardly_pulls_is_raised_a_thousandfold_at_most(tmp_path: Path) -> None:
    """Attention averaged over the heads of random weights is even, whoever computes it."""
    levels = (LABELS, ATTENTION)
    parts = without_dropout(make_parts((phase_of(100, levels=levels),)))
    train(make_settings(), parts, make_habits(tmp_path))
    assert factors_of(tmp_path)[0]["attention.kl"] == 1000
    pulls = [level["grad_norm"] for level in records_of(tmp_path)[0]["levels"].values()]
    assert pulls[0] > pulls[1] > 0


def test_a_balanced_step_s_gradients_are_those_of_a_recipe_with_these_weights(
    tmp_path: Path,
) -> None:
    settings = make_settings(max_grad_norm=1e9, micro_batch_tokens=60)
    parts = without_dropout(make_parts((phase_of(100),)))
    found = first_gradients(parts, tmp_path / "balanced", **vars(settings))
    weights = [
        level["weight"]
        for level in records_of(tmp_path / "balanced", "train")[0]["levels"].values()
    ]
    levels = tuple(
        level.model_copy(update={"weight": weight})
        for level, weight in zip(LEVELS, weights, strict=True)
    )
    fixed = without_dropout(make_parts((phase_of(None, levels=levels),)))
    expected = first_gradients(fixed, tmp_path / "fixed", **vars(settings))
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def first_gradients(parts: Parts, work: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Those that reach the optimizer at the first step."""
    steps: list[dict[str, torch.Tensor]] = []

    def note(*_: object) -> None:
        named = parts.objective.named_parameters()
        steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", note)
        train(make_settings(**settings), parts, make_habits(work))
    return steps[0]


def test_factors_are_measured_at_their_interval_and_smoothed(tmp_path: Path) -> None:
    phases = (phase_of(4, 2), phase_of(5, name="later"))
    train(make_settings(), make_parts(phases), make_habits(tmp_path, grad_norm_every=1))
    records, factors = records_of(tmp_path, "train"), factors_of(tmp_path)
    changed = [i for i in range(1, 18) if factors[i] != factors[i - 1]]
    assert changed == [4, 8, 12, 17]  # 0-based; the second phase begins at 12
    for step in changed:
        levels = records[step]["levels"]
        norms = {name: level["grad_norm"] / level["weight"] for name, level in levels.items()}
        mean = sum(norms.values()) / len(norms)
        for name, norm in norms.items():
            wanted = min(mean / norm, 1000.0)
            expected = wanted if step == 12 else math.sqrt(factors[step - 1][name] * wanted)
            assert factors[step][name] == pytest.approx(expected, rel=1e-4)


def test_a_scheduled_weight_is_balanced_too_and_one_of_zero_is_no_matter(tmp_path: Path) -> None:
    rising = WeightSchedule(schedule="linear", start=0.0, end=1.0)
    levels = (LABELS, HIDDEN.model_copy(update={"weight": rising}))
    train(make_settings(), make_parts((phase_of(3, levels=levels),)), make_habits(tmp_path))
    for step, record in enumerate(records_of(tmp_path, "train")):
        level = record["levels"]["hidden.mse"]
        assert level["weight"] == pytest.approx(step / 6 * level["factor"])
        assert level["factor"] != 1
    assert records_of(tmp_path, "train")[0]["levels"]["hidden.mse"]["grad_norm"] == 0


def every_practice() -> Parts:
    made = make_parts(
        (
            phase_of(2, levels=(HIDDEN, RELATION), name="inner", trained_layers=(0, 1)),
            phase_of(5, 2, optimizer="continued"),
        )
    )
    return replace(made, targets=Poisoned(made, [5]))


@pytest.mark.parametrize("stop_at", [1, 3, 6, 8, 11])
def test_factors_are_resumed_exactly(stop_at: int, tmp_path: Path) -> None:
    settings = make_settings(ema_decay=0.8, max_non_finite=3)
    train(settings, every_practice(), make_habits(tmp_path / "whole"))
    work = tmp_path / "stopped"
    interrupt(stop_at, settings, every_practice(), work)
    train(settings, every_practice(), make_habits(work))
    assert factors_of(work) == factors_of(tmp_path / "whole")
    expected, found = last_checkpoint(tmp_path / "whole"), last_checkpoint(work)
    require_equal(found.weights, expected.weights)
    require_equal(found.optimizer, expected.optimizer)
    assert found.state.factors == expected.state.factors != {}


@pytest.mark.parametrize(
    "compute", [{"gradient_checkpointing": True}, {"mixed_precision": "bf16"}], ids=str
)
def test_layers_may_be_recomputed_and_passes_be_in_bf16(
    compute: dict[str, Any], tmp_path: Path
) -> None:
    for name, chosen in (("plain", {}), ("other", compute)):
        parts = without_dropout(make_parts((phase_of(2),)))
        train(make_settings(), parts, make_habits(tmp_path / name, **chosen))
    for one, other in zip(
        factors_of(tmp_path / "plain"), factors_of(tmp_path / "other"), strict=True
    ):
        assert other == pytest.approx(one, rel=0.05)


def test_neither_micro_batches_nor_a_lack_of_memory_change_the_factors(tmp_path: Path) -> None:
    settings = {"whole": 10_000, "pieces": 25, "short": 10_000}
    for name, tokens in settings.items():
        parts = without_dropout(make_parts((phase_of(2),)))
        if name == "short":
            parts = with_memory_for(60, parts, backwards=True)
        train(make_settings(micro_batch_tokens=tokens), parts, make_habits(tmp_path / name))
    assert records_of(tmp_path / "short", "notice")
    expected = factors_of(tmp_path / "whole")
    for name in ("pieces", "short"):
        for one, other in zip(expected, factors_of(tmp_path / name), strict=True):
            assert other == pytest.approx(one, rel=1e-3)


def test_a_refused_step_leaves_the_factors_and_the_first_ones_come_a_step_later(
    tmp_path: Path,
) -> None:
    made = make_parts((phase_of(100),))
    rows = first_rows(made)
    parts = replace(made, targets=Poisoned(made, rows))
    train(make_settings(max_non_finite=2), parts, make_habits(tmp_path))
    assert [record["step"] for record in records_of(tmp_path, "refused")] == [1]
    first = records_of(tmp_path, "train")[0]
    assert first["step"] == 2
    assert all("grad_norm" in level for level in first["levels"].values())
    assert len({tuple(each.values()) for each in factors_of(tmp_path)}) == 1


def first_rows(parts: Parts) -> list[int]:
    """One example of the first step."""
    settings = make_settings()
    batches = epoch_batches(
        parts.train.lengths, batch_examples=settings.batch_examples, seed=settings.seed, epoch=0
    )
    return [int(batches[0][0])]


def test_an_overflow_of_fp16_measures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "require_means", lambda *_: None)
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**40)
    habits = make_habits(tmp_path, mixed_precision="fp16")
    train(make_settings(), make_parts((phase_of(100, 8),)), habits)
    refused, steps = records_of(tmp_path, "refused"), records_of(tmp_path, "train")
    assert refused
    overflowed = steps[0]["step"] - 1
    assert [record["step"] for record in refused][:overflowed] == list(range(1, overflowed + 1))
    assert all("grad_norm" in level for level in steps[0]["levels"].values())
    assert all(
        0 < norm < 1e3 for norm in (level["grad_norm"] for level in steps[0]["levels"].values())
    )


def test_a_norm_that_is_not_finite_is_recorded_as_null() -> None:
    losses = Losses({"a": 2.0}, {"a": 0.5}, {"a": math.inf}, None)
    record = level_record("a", losses, State(factors={"a": 0.25}))
    assert record.as_json() == {
        "raw": 2.0, "weight": 0.5, "weighted": 1.0, "factor": 0.25, "grad_norm": None
    }  # fmt: skip
