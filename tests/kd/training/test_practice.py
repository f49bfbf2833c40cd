"""Moving average, early stopping and refused updates: each as it says, each resumed exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tasks.kd.errors import NonFiniteLossError
from tasks.kd.recipe.training import Optimizer
from tasks.kd.training import dev
from tasks.kd.training import updates as updates_module
from tasks.kd.training.course import Parts
from tasks.kd.training.dev import Scored, measure
from tasks.kd.training.loop import train
from tasks.kd.training.optimizers import update_average
from tests.makers.training_setup import (
    PHASES,
    interrupt,
    make_habits,
    make_parts,
    make_settings,
    records_of,
    weights_of,
)
from tests.makers.troubles import Poisoned, blind_on

LAST = PHASES[1]


def last_weights(work: Path) -> dict[str, torch.Tensor]:
    """Weights of the newest checkpoint: those that are trained, whatever was exported."""
    *_, folder = sorted(work.glob("checkpoint-*"))
    return load_file(folder / "objective.safetensors")


def say_accuracies(patch: pytest.MonkeyPatch, accuracies: Iterable[float]) -> None:
    told = iter(accuracies)
    patch.setattr(dev, "measure", lambda *_: (next(told), 1.0))


# --- moving average ------------------------------------------------------------------------------


def test_the_average_is_what_is_evaluated_kept_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_parts()
    student = parts.objective.student
    expected = {name: p.detach().double() for name, p in student.named_parameters()}
    steps, step = iter([*range(6), *range(12)]), torch.optim.AdamW.step

    def step_and_average(optimizer: torch.optim.AdamW) -> None:
        number = next(steps)
        if number == 0:  # a phase begins with the weights as they are
            expected.update({n: p.detach().double() for n, p in student.named_parameters()})
        step(optimizer)
        stays = min(0.7, (2 + number) / (11 + number))
        for name, weight in student.named_parameters():
            expected[name] = stays * expected[name] + (1 - stays) * weight.detach().double()

    updates: list[int] = []

    def update(average: dict[str, torch.Tensor], *arguments: Any) -> None:
        update_average(average, *arguments)
        updates.append(1)
        for name, value in average.items():
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-5)

    seen: list[dict[str, torch.Tensor]] = []

    def look(model: torch.nn.Module, *_: object, **__: object) -> Scored:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        for name, value in seen[-1].items():
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-5)
        return Scored(10, 1.0, [])

    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_average)
    monkeypatch.setattr(updates_module, "update_average", update)
    monkeypatch.setattr(dev, "score", look)
    train(make_settings(ema_decay=0.7), parts, make_habits(tmp_path))
    assert (len(updates), len(seen)) == (18, 3)
    trained = last_weights(tmp_path)
    for name, weight in student.named_parameters():
        assert torch.equal(weight, seen[-1][name])
    assert not torch.equal(student.classifier.weight, trained["student.classifier.weight"])  # type: ignore[union-attr, arg-type]


def test_the_average_does_not_touch_the_training(tmp_path: Path) -> None:
    for name, decay in (("with", 0.9), ("without", None)):
        train(make_settings(ema_decay=decay), make_parts(), make_habits(tmp_path / name))
    expected = last_weights(tmp_path / "without")
    for name, value in last_weights(tmp_path / "with").items():
        assert torch.equal(value, expected[name])


def test_a_training_with_all_practices_is_resumed_bit_identical(tmp_path: Path) -> None:
    settings = make_settings(ema_decay=0.8, stop_after_epochs=2, max_non_finite=3)

    def parts() -> Parts:
        made = make_parts()
        return replace(made, targets=Poisoned(made, [5]))

    whole = parts()
    expected = train(settings, whole, make_habits(tmp_path / "whole"))
    assert expected.refused_updates == 3
    for stop_at in (4, 6, 9, 13):
        work = tmp_path / str(stop_at)
        interrupt(stop_at, settings, parts(), work)
        resumed = parts()
        report = train(settings, resumed, make_habits(work))
        assert replace(report, seconds=0.0) == replace(expected, seconds=0.0)
        for name, value in weights_of(whole.objective).items():
            assert torch.equal(weights_of(resumed.objective)[name], value), (stop_at, name)


# --- early stopping ------------------------------------------------------------------------------


def long(settings: Optimizer, work: Path, accuracies: Iterable[float], epochs: int = 8) -> Any:
    """A training whose last phase may have that many epochs, with these dev accuracies."""
    parts = make_parts((PHASES[0], LAST.model_copy(update={"epochs": epochs})))
    with pytest.MonkeyPatch.context() as patch:
        say_accuracies(patch, accuracies)
        return train(settings, parts, make_habits(work))


def test_it_stops_after_so_many_epochs_without_a_gain(tmp_path: Path) -> None:
    settings = make_settings(stop_after_epochs=2)
    report = long(settings, tmp_path, [0.9, 0.5, 0.6, 0.6, 0.4])  # 0.9 is of the first phase
    assert (report.steps, report.best_epoch, report.dev_accuracy) == (5 * 6, 4, 0.6)


def test_a_gain_begins_the_count_anew_and_null_never_stops(tmp_path: Path) -> None:
    accuracies = [0.1, 0.5, 0.4, 0.6, 0.5, 0.7, 0.1, 0.1]
    stopped = long(make_settings(stop_after_epochs=2), tmp_path / "a", accuracies)
    assert (stopped.steps, stopped.best_epoch) == (8 * 6, 6)
    whole = long(make_settings(), tmp_path / "b", [*accuracies, 0.2])
    assert whole.steps == 9 * 6


def test_a_training_that_had_stopped_does_not_go_on(tmp_path: Path) -> None:
    settings = make_settings(stop_after_epochs=1)
    before = long(settings, tmp_path, [0.1, 0.5, 0.4])
    assert long(settings, tmp_path, []) == before


# --- updates that are refused --------------------------------------------------------------------


def test_a_refused_update_is_left_out_counted_and_told(tmp_path: Path) -> None:
    parts = make_parts()
    row = 7
    report = train(
        make_settings(max_non_finite=2),
        replace(parts, targets=Poisoned(parts, [row])),
        make_habits(tmp_path),
    )
    assert report.refused_updates == 3  # once in each epoch
    assert report.steps == 18
    assert all(bool(p.isfinite().all()) for p in parts.objective.parameters())
    told = records_of(tmp_path, "refused")
    assert [record["in_a_row"] for record in told] == [1, 1, 1]
    assert all(parts.train.example_ids[row] in record["examples"] for record in told)
    assert "hidden.mse nan" in told[0]["message"]
    steps = [record["step"] for record in records_of(tmp_path, "train", "refused")]
    assert steps == list(range(1, 19))


def test_a_refused_update_changes_no_weight(tmp_path: Path) -> None:
    parts = make_parts()
    bad = replace(parts, targets=Poisoned(parts, range(len(parts.train))))
    before = weights_of(parts.objective)
    with pytest.raises(NonFiniteLossError):
        train(make_settings(max_non_finite=6), bad, make_habits(tmp_path))
    assert len(records_of(tmp_path, "refused")) == 5
    for name, value in weights_of(parts.objective).items():
        assert torch.equal(value, before[name])


def test_the_count_of_refusals_goes_on_after_a_restart_and_the_checkpoint_stays(
    tmp_path: Path,
) -> None:
    settings = make_settings(max_non_finite=3)

    def bad() -> Parts:
        parts = make_parts()
        return replace(parts, targets=Poisoned(parts, range(len(parts.train))))

    interrupt(2, settings, bad(), tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-00000001", "checkpoint-00000002"]
    with pytest.raises(NonFiniteLossError, match="examples 1-"):
        train(settings, bad(), make_habits(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == kept


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is(
    tmp_path: Path,
) -> None:
    parts = make_parts((LAST.model_copy(update={"epochs": 1}),))
    weight = parts.objective.student.classifier.weight  # type: ignore[union-attr]
    calls = iter(range(100))

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if next(calls) == 2 else gradient

    weight.register_hook(spoil)  # type: ignore[operator]
    report = train(make_settings(max_non_finite=2), parts, make_habits(tmp_path))
    assert report.refused_updates == 1
    (told,) = records_of(tmp_path, "refused")
    assert told["step"] == 3
    assert "gradient norm" in told["message"]
    assert np.isfinite([r["loss"] for r in records_of(tmp_path, "train")]).all()


# --- a dev split that can't be scored ------------------------------------------------------------


def test_dev_examples_without_a_finite_answer_end_the_training_and_are_named(
    tmp_path: Path,
) -> None:
    parts = blind_on(make_parts(), [11, 4])
    interrupt(3, make_settings(), parts, tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    with pytest.raises(
        NonFiniteLossError,
        match=r"logits are not finite: examples 2-4, 2-11\..*found NaN .* 2 of 20",
    ):
        train(make_settings(), parts, make_habits(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == kept
    assert not records_of(tmp_path, "dev")


def test_of_many_examples_without_a_finite_answer_the_first_are_named() -> None:
    parts = blind_on(make_parts(), range(20))
    with pytest.raises(NonFiniteLossError, match=r"examples 2-0, .*2-7 \.\.\.\..* 20 of 20"):
        measure(parts, 60)
    few = blind_on(make_parts(), [3])
    accuracy, loss = measure(replace(few, dev=few.dev.take(np.arange(3))), 60)
    assert 0 <= accuracy <= 1
    assert np.isfinite(loss)
