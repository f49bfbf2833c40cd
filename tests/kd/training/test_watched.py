"""What a training tells, and that watching it closely changes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.kd.training.feeding import Feed
from tasks.kd.training.loop import train
from tasks.kd.training.sinks import Bar, JsonLines, Messages
from tests.makers.documents import (
    make_dev_record,
    make_notice_record,
    make_refused_record,
    make_train_record,
    write_history,
)
from tests.makers.training_setup import (
    PHASES,
    make_habits,
    make_parts,
    make_settings,
    records_of,
    weights_of,
    without_dropout,
)

PLACE = {"epoch": 0.5, "phase": "inner"}
SPEED = {"examples_per_s": 80.0, "tokens_per_s": 912.4, "waiting": 0.25}


class Shown:
    """A progress bar that remembers."""

    def __init__(self) -> None:
        self.steps, self.text, self.is_closed = 0, "", False

    def set_postfix_str(self, text: str, *, refresh: bool) -> None:
        self.text = text

    def update(self, steps: int) -> None:
        self.steps += steps

    def close(self) -> None:
        self.is_closed = True


def test_the_bar_shows_epoch_tokens_and_waiting_and_counts_steps() -> None:
    shown = Shown()
    bar = Bar(shown)
    bar.write(make_train_record(3, **PLACE, **SPEED, loss=0.51234))
    assert shown.text == "inner epoch 0.5 loss 0.5123 912 tok/s waiting 25 %"
    bar.write(make_dev_record(3, **PLACE, accuracy=0.9123))
    bar.write(make_notice_record(3, **PLACE))
    assert shown.steps == 1
    bar.write(make_refused_record(3, **PLACE, **SPEED))
    assert shown.steps == 2
    assert shown.text.endswith("loss 0.5123 912 tok/s waiting 25 % dev 91.2 %")
    bar.close()
    assert shown.is_closed


def test_what_is_said_in_words_is_passed_on() -> None:
    said: list[str] = []
    messages = Messages(said.append)
    messages.write(make_train_record(3))
    messages.write(make_notice_record(3, message="smaller micro-batches"))
    messages.close()
    assert said == ["step 3: smaller micro-batches"]


def test_each_step_says_its_speed_and_its_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0, 1e6, 0.25))  # each look at the clock is a quarter of a second later
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    parts = make_parts()
    train(make_settings(), parts, make_habits(tmp_path))
    steps = records_of(tmp_path, "train")
    assert len(steps) == 18
    for record in steps:
        ratio = record["tokens_per_s"] / record["examples_per_s"]
        assert 4 <= ratio <= 20  # tokens per example
        assert 0 < record["waiting"] < 1
    assert sum(r["tokens_per_s"] / r["examples_per_s"] * 8 for r in steps[:6]) == pytest.approx(
        parts.train.lengths.sum(), rel=0.2
    )


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 0), ("meta", 1)])
def test_a_step_on_a_cpu_is_assembled_when_it_is_due_and_else_one_ahead(
    device: str, ahead: int
) -> None:
    parts = make_parts()
    asked: list[int] = []
    threads: set[int] = set()

    class Watched:
        def fetch(self, input_ids: Any) -> dict[str, torch.Tensor]:
            asked.append(len(input_ids))
            threads.add(threading.get_ident())
            return {}

    todo = [np.arange(3), np.arange(3, 8), np.arange(8, 9)]
    with Feed(
        parts.train, Watched(), pad_id=0, device=torch.device(device), max_tokens=1000
    ) as feed:
        works: Iterator[Any] = feed.work(todo)
        first = next(works)
        assert [len(micro.rows) for micro in first.batches] == [3]
        assert feed.cut(first) is first
        feed.max_tokens = 2  # what is under way is assembled before anything else is
        cut = feed.cut(first)
        assert [len(micro.rows) for micro in cut.batches] == [1, 1, 1]
        assert asked[: 1 + ahead] == [3, 5][: 1 + ahead]
        feed.max_tokens = 1000
        assert [len(work.rows) for work in works] == [5, 1]
    assert asked == [3, *[5] * ahead, 1, 1, 1, *[5] * (1 - ahead), 1]
    assert (threads == {threading.get_ident()}) is not bool(ahead)
    assert len(threads) == 1


def test_once_the_bound_is_lowered_every_step_is_assembled_for_it() -> None:
    parts = make_parts()
    asked: list[int] = []

    class Watched:
        def fetch(self, input_ids: Any) -> dict[str, torch.Tensor]:
            asked.append(len(input_ids))
            return {}

    todo = [np.arange(3), np.arange(3, 5), np.arange(5, 9), np.arange(9, 11)]
    device = torch.device("meta")  # no CPU: steps are assembled ahead
    with Feed(parts.train, Watched(), pad_id=0, device=device, max_tokens=1000) as feed:
        works: Iterator[Any] = feed.work(todo)
        first = next(works)
        feed.max_tokens = 1
        cut = feed.cut(first)  # waits behind what is under way
        assert asked == [3, 2, 1, 1, 1]
        assert [len(micro.rows) for micro in cut.batches] == [1, 1, 1]
        assert feed.cut(cut) is cut
        asked.clear()
        for work in works:
            assert feed.cut(work) is work  # none is cut twice
            assert [len(micro.rows) for micro in work.batches] == [1] * len(work.rows)
    assert asked == [1] * 8


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a training that nobody looks at."""
    parts = make_parts()
    train(make_settings(), parts, make_habits(tmp_path_factory.mktemp("plain")))
    return weights_of(parts.objective)


@pytest.mark.parametrize(
    "compute",
    [{"profile_step": 8}, {"grad_norm_every": 3}, {"gradient_checkpointing": True}],
    ids=lambda compute: next(iter(compute)),
)
def test_it_changes_no_bit(
    compute: dict[str, Any], plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    parts = make_parts()
    train(make_settings(), parts, make_habits(tmp_path, **compute))
    for name, value in weights_of(parts.objective).items():
        assert torch.equal(value, plain[name])


def test_a_profile_is_a_table_and_a_trace(tmp_path: Path) -> None:
    train(make_settings(), make_parts(), make_habits(tmp_path, profile_step=2))
    files = sorted(path.name for path in (tmp_path / "profiles").iterdir())
    assert files == ["step-2.json", "step-2.txt"]
    assert "aten::" in (tmp_path / "profiles" / "step-2.txt").read_text()
    assert json.loads((tmp_path / "profiles" / "step-2.json").read_text())["traceEvents"]
    (told,) = records_of(tmp_path, "notice")
    assert told["step"] == 2
    assert str(tmp_path / "profiles") in told["message"]


@pytest.mark.parametrize("max_tokens", [1000, 40])
def test_a_level_s_gradient_norm_is_that_of_training_on_it_alone(
    max_tokens: int, tmp_path: Path
) -> None:
    settings = make_settings(micro_batch_tokens=max_tokens, max_grad_norm=1e9)
    phase = PHASES[1].model_copy(update={"epochs": 1})
    parts = without_dropout(make_parts((phase,)))
    train(settings, parts, make_habits(tmp_path / "all", grad_norm_every=1))
    measured = records_of(tmp_path / "all", "train")[0]["levels"]
    for name, level in zip(phase.level_names, phase.levels, strict=True):
        alone = without_dropout(make_parts((phase.model_copy(update={"levels": (level,)}),)))
        train(settings, alone, make_habits(tmp_path / name))
        expected = records_of(tmp_path / name, "train")[0]["grad_norm"]
        assert measured[name]["grad_norm"] == pytest.approx(expected, rel=1e-4)
        assert measured[name]["grad_norm"] > 0


def test_gradient_norms_come_at_their_interval(tmp_path: Path) -> None:
    train(make_settings(), make_parts(), make_habits(tmp_path, grad_norm_every=5))
    with_norms = [
        record["step"]
        for record in records_of(tmp_path, "train")
        if all("grad_norm" in level for level in record["levels"].values())
    ]
    assert with_norms == [5, 10, 15]


def test_records_after_the_checkpoint_are_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_history(tmp_path, [make_train_record(step) for step in (1, 2, 3)])
    path.write_text(path.read_text() + '{"step": 4, "sp')
    sink = JsonLines(path, resume_at=2)
    sink.write(make_notice_record(3, message="again"))
    sink.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert path.read_text().endswith('"message": "again"}\n')
