"""Memory that does not suffice: smaller micro-batches, the same step; one example is the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.kd.errors import ParamsError
from tasks.kd.training.checkpoint import Checkpoints
from tasks.kd.training.course import Parts
from tasks.kd.training.gradients import is_out_of_memory
from tasks.kd.training.loop import train
from tests.makers.training_setup import (
    interrupt,
    make_habits,
    make_parts,
    make_settings,
    records_of,
    weights_of,
    without_dropout,
)
from tests.makers.troubles import Raise, with_memory_for

ERRORS: dict[str, Raise] = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"),
    "not_enough": lambda: RuntimeError("not enough memory: you tried to allocate 8 bytes"),
    "python": MemoryError,
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_the_step_is_begun_again_with_smaller_micro_batches(
    error: Raise, backwards: bool, tmp_path: Path
) -> None:
    whole = without_dropout(make_parts())
    train(make_settings(), whole, make_habits(tmp_path / "whole"))
    limited = with_memory_for(60, without_dropout(make_parts()), error, backwards=backwards)
    report = train(make_settings(), limited, make_habits(tmp_path / "limited"))
    assert report.steps == 18
    expected = weights_of(whole.objective)
    for name, value in weights_of(limited.objective).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3)
    told = records_of(tmp_path / "limited", "notice")
    assert [record["step"] for record in told] == sorted({record["step"] for record in told})
    assert all("micro-batches hold at most" in record["message"] for record in told)
    bounds = [int(record["message"].split(" tokens")[0].split()[-1]) for record in told]
    assert bounds == sorted(bounds, reverse=True)
    assert 20 <= bounds[-1] <= 60
    steps = records_of(tmp_path / "limited", "train")
    assert len(steps) == 18


def test_the_step_is_repeated_with_its_seed_and_from_nothing(tmp_path: Path) -> None:
    """With dropout: after the fall-back all is as if the smaller bound had been the recipe's."""
    parts = make_parts()
    limited = with_memory_for(60, parts)
    train(make_settings(), limited, make_habits(tmp_path / "limited"))
    told = records_of(tmp_path / "limited", "notice")
    assert told[0]["step"] == 1  # before any update
    bound = int(told[-1]["message"].split(" tokens")[0].split()[-1])
    assert told[-1]["step"] == 1, "so that one bound holds for the whole training"
    smaller = make_parts()
    settings = make_settings(micro_batch_tokens=bound)
    train(settings, smaller, make_habits(tmp_path / "smaller"))
    for name, value in weights_of(smaller.objective).items():
        assert torch.equal(weights_of(limited.objective)[name], value)


def test_gradients_of_a_pass_that_failed_later_are_forgotten(tmp_path: Path) -> None:
    settings = make_settings(micro_batch_tokens=70)
    whole, parts = (without_dropout(make_parts()) for _ in range(2))
    forward, failed = parts.objective.forward, list[int]()
    weight = next(parts.objective.parameters())

    def failing_once(batch: Any, *arguments: Any) -> Any:
        is_begun = weight.grad is not None  # another micro-batch has left its gradients
        if is_begun and not failed and len(batch.labels_B) > 1:
            failed.append(1)
            raise MemoryError
        return forward(batch, *arguments)

    parts.objective.forward = failing_once  # type: ignore[assignment, method-assign]
    train(settings, whole, make_habits(tmp_path / "whole"))
    train(settings, parts, make_habits(tmp_path / "failed"))
    (told,) = records_of(tmp_path / "failed", "notice")
    expected, found = (
        next(r for r in records_of(tmp_path / name, "train") if r["step"] == told["step"])
        for name in ("whole", "failed")
    )
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_the_bound_is_kept_in_the_checkpoint(tmp_path: Path) -> None:
    def parts() -> Parts:
        return with_memory_for(60, make_parts())

    whole = parts()
    train(make_settings(), whole, make_habits(tmp_path / "whole"))
    work = tmp_path / "stopped"
    interrupt(9, make_settings(), parts(), work)
    kept = Checkpoints(work).load()
    assert kept is not None
    assert kept.state.micro_batch_tokens <= 60
    resumed = parts()
    train(make_settings(), resumed, make_habits(work))
    for name, value in weights_of(resumed.objective).items():
        assert torch.equal(value, weights_of(whole.objective)[name])


def test_one_example_too_large_is_an_error_that_names_it(tmp_path: Path) -> None:
    parts = with_memory_for(3, make_parts())
    before = weights_of(parts.objective)
    with pytest.raises(
        ParamsError, match=r"memory does not suffice for one example: example 1-\d+"
    ):
        train(make_settings(), parts, make_habits(tmp_path))
    for name, value in weights_of(parts.objective).items():
        assert torch.equal(value, before[name])


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    parts = with_memory_for(0, make_parts(), lambda: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(make_settings(), parts, make_habits(tmp_path))
    assert not is_out_of_memory(ValueError("not a matter of space"))


def test_an_example_longer_than_the_bound_does_not_keep_it_from_falling(tmp_path: Path) -> None:
    parts = without_dropout(make_parts(examples=8))
    longest = max(len(ids) for ids in parts.train.input_ids)
    settings = make_settings(micro_batch_tokens=longest - 1)
    with pytest.raises(ParamsError):
        train(settings, with_memory_for(0, parts), make_habits(tmp_path))
