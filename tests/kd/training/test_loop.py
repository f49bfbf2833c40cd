from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.kd.digests import sha256_file
from tasks.kd.errors import NonFiniteLossError
from tasks.kd.recipe.phases import Phase
from tasks.kd.training import checkpoint, dev, gradients
from tasks.kd.training.checkpoint import Checkpoints, State
from tasks.kd.training.course import Parts, steps_per_epoch
from tasks.kd.training.dev import measure, predict
from tasks.kd.training.loop import train
from tasks.kd.training.optimizers import learning_rate, new_optimizer
from tests.makers.caches import make_job, make_params, open_written, write
from tests.makers.phases import one_phase
from tests.makers.training_setup import (
    HIDDEN,
    LABELS,
    PHASES,
    STREAMS,
    interrupt,
    make_habits,
    make_parts,
    make_settings,
    records_of,
    weights_of,
    without_dropout,
)


def first_gradients(work: Path, parts: Parts, **settings: int) -> dict[str, torch.Tensor]:
    """Gradients of the first update, as they reach the optimizer."""
    found: dict[str, torch.Tensor] = {}

    class Stop(Exception):
        pass

    def look(*_: object) -> None:
        for name, parameter in parts.objective.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()
        raise Stop

    without_dropout(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", look)
        with pytest.raises(Stop):
            train(make_settings(**settings), parts, make_habits(work))
    return found


@pytest.fixture(scope="module")
def every_level() -> tuple[Phase, ...]:
    """All levels in one phase."""
    levels = tuple(dict.fromkeys(level for phase in PHASES for level in phase.levels))
    return (PHASES[1].model_copy(update={"epochs": 1, "levels": levels}),)


def test_micro_batches_do_not_change_the_gradients(
    tmp_path: Path, every_level: tuple[Phase, ...]
) -> None:
    whole = first_gradients(tmp_path / "a", make_parts(every_level), micro_batch_tokens=10_000)
    pieces = first_gradients(tmp_path / "b", make_parts(every_level), micro_batch_tokens=20)
    assert set(whole) == set(pieces)
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=1e-6, rtol=1e-4)


def test_training_from_the_cache_is_training_from_the_teacher(
    tmp_path: Path, every_level: tuple[Phase, ...]
) -> None:
    live = make_parts(every_level)
    job = make_job(live.train, make_params(codec="float32", streams=STREAMS))
    manifest = write(job, tmp_path / "store")
    cached = replace(
        make_parts(every_level), targets=open_written(job, manifest, tmp_path / "store")
    )
    expected = first_gradients(tmp_path / "a", live)
    for name, gradient in first_gradients(tmp_path / "b", cached).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)


def test_it_learns_what_can_be_learned(tmp_path: Path) -> None:
    phase = one_phase((LABELS,), epochs=14, learning_rate=4e-3)
    parts = make_parts((phase,), examples=160)
    report = train(make_settings(), parts, make_habits(tmp_path))
    assert report.dev_accuracy > 0.9
    accuracy, _ = measure(parts, 500)
    assert accuracy == report.dev_accuracy


def test_a_hidden_phase_brings_the_hidden_states_nearer(tmp_path: Path) -> None:
    phase = one_phase((HIDDEN,), epochs=6, learning_rate=4e-3)
    train(make_settings(), make_parts((phase,)), make_habits(tmp_path))
    errors = [r["levels"]["hidden.mse"]["raw"] for r in records_of(tmp_path) if "levels" in r]
    assert errors[-1] < 0.8 * errors[0]


def test_records_say_phase_step_and_each_level_raw_and_weighted(tmp_path: Path) -> None:
    report = train(make_settings(), make_parts(), make_habits(tmp_path))
    records = records_of(tmp_path)
    steps = [r for r in records if r["split"] == "train"]
    assert [r["step"] for r in steps] == list(range(1, report.steps + 1))
    assert report.steps == 3 * steps_per_epoch(make_settings(), 44) == 18
    assert [r["phase"] for r in steps] == ["inner"] * 6 + ["prediction"] * 12
    last = steps[-1]["levels"]
    assert isinstance(last, dict)
    assert set(last) == {
        "prediction.labels",
        "prediction.kl",
        "hidden.mse",
        "attention.kl",
    }
    assert last["prediction.kl"]["weighted"] == 0.5 * last["prediction.kl"]["raw"]
    total = sum(level["weighted"] for level in last.values())
    assert steps[-1]["loss"] == pytest.approx(total)
    assert [r["epoch"] for r in records if r["split"] == "dev"] == [1.0, 2.0, 3.0]


def test_a_run_that_was_stopped_ends_bit_identical(tmp_path: Path) -> None:
    whole = make_parts()
    train(make_settings(), whole, make_habits(tmp_path / "whole"))
    expected = weights_of(whole.objective)
    for stop_at in (1, 6, 8, 17):
        work = tmp_path / f"stopped-{stop_at}"
        interrupt(stop_at, make_settings(), make_parts(), work)
        resumed = make_parts()
        report = train(make_settings(), resumed, make_habits(work))
        for name, value in weights_of(resumed.objective).items():
            assert torch.equal(value, expected[name]), (stop_at, name)
        assert report.steps == 18
        steps = [r["step"] for r in records_of(work) if r["split"] == "train"]
        assert steps == list(range(1, 19))


def test_the_best_epoch_is_the_later_of_equals_in_the_last_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([0.99, 0.5, 0.7, 0.7, 0.6])
    kept: list[dict[str, torch.Tensor]] = []
    parts = make_parts((PHASES[0], PHASES[1].model_copy(update={"epochs": 4})))

    def say(*_: object, **__: object) -> tuple[float, float]:
        kept.append(weights_of(parts.objective.student))
        return next(told), 1.0

    monkeypatch.setattr(dev, "measure", say)
    report = train(make_settings(), parts, make_habits(tmp_path))
    assert (report.dev_accuracy, report.best_epoch) == (0.7, 4)
    for name, value in weights_of(parts.objective.student).items():
        assert torch.equal(value, kept[3][name])


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    whole = make_parts()
    train(make_settings(), whole, make_habits(tmp_path / "whole"))
    work = tmp_path / "work"
    train(make_settings(), make_parts(), make_habits(work))
    for folder in work.glob("checkpoint-*"):
        damage(folder / "objective.safetensors")
    again = make_parts()
    train(make_settings(), again, make_habits(work))
    for name, value in weights_of(again.objective).items():
        assert torch.equal(value, weights_of(whole.objective)[name])


def damage(path: Path) -> None:
    """Turn one bit."""
    broken = bytearray(path.read_bytes())
    broken[-1] ^= 1
    path.write_bytes(bytes(broken))


@pytest.mark.parametrize("name", ["best", "average", "objective", "optimizer"])
def test_the_last_two_checkpoints_are_kept_and_the_older_serves_where_the_newer_is_damaged(
    name: str, tmp_path: Path
) -> None:
    train(make_settings(ema_decay=0.9), make_parts(), make_habits(tmp_path))
    older, newer = sorted(tmp_path.glob("checkpoint-*"))
    assert (older.name, newer.name) == ("checkpoint-00000012", "checkpoint-00000018")
    files = {path.name for path in newer.iterdir()}
    tensors = {f"{each}.safetensors" for each in ("best", "average", "objective", "optimizer")}
    assert files == {"state.json"} | tensors
    whole = Checkpoints(tmp_path).load()
    assert whole is not None
    assert whole.state.step == 18
    damage(newer / f"{name}.safetensors")
    before = Checkpoints(tmp_path).load()
    assert before is not None
    assert before.state.step == 12
    (older / f"{name}.safetensors").unlink()
    assert Checkpoints(tmp_path).load() is None


def steps_kept(work: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in work.glob("checkpoint-*"))


def test_a_damaged_checkpoint_is_none_of_the_two_that_are_kept(tmp_path: Path) -> None:
    objective = make_parts().objective
    optimizer = new_optimizer(objective, make_settings(), 1e-3)

    def save(checkpoints: Checkpoints, step: int) -> None:
        checkpoints.save(State(step=step), objective, optimizer)

    before = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        save(before, step)
    assert steps_kept(tmp_path) == [2, 3]
    damage(tmp_path / "checkpoint-00000003" / "objective.safetensors")  # the machine went down
    after = Checkpoints(tmp_path)
    found = after.load()
    assert found is not None
    assert found.state.step == 2
    save(after, 4)
    assert steps_kept(tmp_path) == [2, 3, 4]
    damage(tmp_path / "checkpoint-00000004" / "state.json")
    found = Checkpoints(tmp_path).load()
    assert found is not None
    assert found.state.step == 2, "the whole one was dropped for a damaged one"
    again = Checkpoints(tmp_path)
    save(again, 5)
    assert steps_kept(tmp_path) == [2, 3, 4, 5]
    save(again, 6)
    assert steps_kept(tmp_path) == [5, 6]


def test_what_this_process_wrote_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def noting(path: Path) -> str:
        read.append(path)
        return sha256_file(path)

    monkeypatch.setattr(checkpoint, "sha256_file", noting)
    train(make_settings(), make_parts(), make_habits(tmp_path))
    assert len(read) == 3 * 4  # three epochs, four files
    assert {path.parent.name for path in read} == {".checkpoint"}


def test_the_weights_of_a_checkpoint_are_let_go_once_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(8, make_settings(), make_parts(), tmp_path)
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    load, seed_step = Checkpoints.load, gradients.seed_step

    def noting(checkpoints: Checkpoints) -> object:
        found = load(checkpoints)
        assert found is not None
        held.extend(weakref.ref(value) for value in found.weights.values())
        return found

    def look(*arguments: int) -> None:
        alive.append(sum(each() is not None for each in held))
        seed_step(*arguments)

    monkeypatch.setattr(Checkpoints, "load", noting)
    monkeypatch.setattr(gradients, "seed_step", look)
    train(make_settings(), make_parts(), make_habits(tmp_path))
    assert len(held) > 30
    assert alive == [0] * 10


def test_a_checkpoint_travels_as_figures_and_tensors(tmp_path: Path) -> None:
    train(make_settings(ema_decay=0.9), make_parts(), make_habits(tmp_path))
    kept = Checkpoints(tmp_path).load()
    assert kept is not None
    figures, tensors = kept.flatten()
    again = checkpoint.unflatten(json.loads(json.dumps(figures)), tensors)
    assert again.state.figures == kept.state.figures
    assert again.state.figures["step"] == 18
    for own, theirs in (
        (again.weights, kept.weights),
        (again.optimizer, kept.optimizer),
        (again.state.best, kept.state.best),
        (again.state.average, kept.state.average),
    ):
        assert own
        assert set(own) == set(theirs)
        assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_a_loss_that_is_not_finite_refuses_the_update(tmp_path: Path) -> None:
    parts = make_parts()
    before = weights_of(parts.objective)

    class Poisoned:
        def fetch(self, input_ids: object) -> dict[str, torch.Tensor]:
            streams = parts.targets.fetch(input_ids)  # type: ignore[arg-type]
            return {name: value * float("nan") for name, value in streams.items()}

    with pytest.raises(NonFiniteLossError, match=r"examples 1-\d+.*hidden\.mse nan"):
        train(make_settings(), replace(parts, targets=Poisoned()), make_habits(tmp_path))
    for name, value in weights_of(parts.objective).items():
        assert torch.equal(value, before[name])


def test_predictions_come_in_the_split_s_order() -> None:
    parts = make_parts()
    student = parts.objective.student
    together = predict(student, parts.dev, pad_id=0, max_tokens=60)
    alone = [
        predict(student, parts.dev.take(np.asarray([i])), pad_id=0, max_tokens=60)
        for i in range(len(parts.dev))
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_biases_and_norms_are_not_decayed() -> None:
    objective = make_parts().objective
    optimizer = new_optimizer(objective, make_settings(weight_decay=0.1), 1e-3)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.dim() == 1 for parameter in plain["params"])
    assert all(parameter.dim() > 1 for parameter in decayed["params"])


def test_the_optimizer_is_fused_and_its_state_is_the_checkpoint_s(tmp_path: Path) -> None:
    parts = make_parts()
    fresh = new_optimizer(parts.objective, make_settings(), 1e-3)
    assert fresh.defaults["fused"]
    train(make_settings(), parts, make_habits(tmp_path))
    kept = Checkpoints(tmp_path).load()
    assert kept is not None
    checkpoint.restore_optimizer(fresh, kept.optimizer)
    parameters = [p for group in fresh.param_groups for p in group["params"]]
    for name, value in kept.optimizer.items():
        index, key = name.split(".")
        assert torch.equal(fresh.state[parameters[int(index)]][key], value)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_warms_up_and_comes_down(schedule: str) -> None:
    settings = make_settings(schedule=schedule)
    rates = [learning_rate(settings, 1.0, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[-1] == 1.0) == (schedule == "constant")
