"""What the parts about training say is what was measured, and what they refuse to measure."""

from __future__ import annotations

import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bench import bare_loop, rivals, start, textbrewer_loop
from bench.__main__ import CACHE, PARTS, TRAINING
from bench.agreement import Moved, Streams, compare, noisy
from bench.figures import Figure as BenchFigure
from bench.figures import Findings
from bench.loops import WARM_UP_STEPS, Speeds, train_on, whole_batches
from bench.results import TRAINING as TRAINING_PAGE
from bench.results import machine, write_part, write_table
from bench.scaling import speed_of
from bench.students import Stepping, distilled
from tasks.kd.cache.format.codec import Codec
from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.digests import sha256_file
from tasks.kd.documents.history import TrainRecord
from tasks.kd.levels.objective import Objective
from tests.kd.conftest import make_split, make_teacher
from tests.makers.documents import (
    make_dev_record,
    make_refused_record,
    make_train_record,
    write_history,
)
from tests.makers.phases import one_phase
from tests.makers.training_setup import (
    HIDDEN,
    KL,
    LABELS,
    make_compute,
    make_parts,
    make_settings,
    objective_of,
)

# --- speeds --------------------------------------------------------------------------------------


def record(examples_per_s: float, waiting: float = 0.0) -> TrainRecord:
    return make_train_record(examples_per_s=examples_per_s, waiting=waiting)


def test_the_speed_is_examples_over_seconds_without_the_warm_up() -> None:
    speeds = Speeds(8)
    for one in [record(0.1, 1.0)] * WARM_UP_STEPS:
        speeds.write(one)
    speeds.write(make_dev_record())
    for one in (record(8.0), record(2.0, 0.5)):  # 1 s and 4 s, of which 2 s were waiting
        speeds.write(one)
    assert speeds.speed.examples_per_s == pytest.approx(16 / 5)
    assert speeds.speed.waiting == pytest.approx(2 / 5)


def test_a_training_that_ends_in_the_warm_up_has_no_speed() -> None:
    speeds = Speeds(8)
    for one in [record(1.0)] * WARM_UP_STEPS:
        speeds.write(one)
    with pytest.raises(SystemExit, match="none after the warm-up"):
        _ = speeds.speed


def test_a_refused_update_is_no_speed() -> None:
    with pytest.raises(SystemExit, match=r"refused: the loss is not finite"):
        Speeds(8).write(make_refused_record(message="the loss is not finite"))


def test_a_plain_step_is_an_update_by_all_levels() -> None:
    parts = make_parts((one_phase((LABELS, KL, HIDDEN)),))
    before = {name: value.clone() for name, value in parts.objective.state_dict().items()}
    rows = np.arange(8)
    streams = parts.targets.fetch([parts.train.input_ids[row] for row in rows])
    stepping = Stepping(parts.objective, parts.train, make_settings(), parts.pad_id)
    stepping.step(rows, streams)
    moved = {n for n, v in parts.objective.state_dict().items() if not torch.equal(v, before[n])}
    assert any(name.startswith("student.") for name in moved)
    assert any(name.startswith("projections.") for name in moved)


def test_the_loop_itself_is_timed_and_batches_are_full_ones(tmp_path: Path) -> None:
    parts = make_parts((one_phase((LABELS, KL, HIDDEN)),))
    settings, speeds = make_settings(batch_examples=8), Speeds(8)
    with pytest.raises(AssertionError, match="last batch"):
        train_on(parts, speeds, settings, make_compute(), tmp_path)
    whole = whole_batches(parts.train, 8, 10**9)
    assert len(whole) == 40
    full = type(parts)(parts.objective, parts.targets, whole, parts.dev, parts.pad_id)
    train_on(full, speeds, settings, make_compute(), tmp_path)
    assert len(speeds.seconds) == 5
    assert speeds.speed.examples_per_s > 0
    assert list(tmp_path.iterdir()) == []


def test_whole_batches_are_as_many_as_asked_for_or_as_there_are() -> None:
    split = make_split(20, seed=1)
    assert len(whole_batches(split, 8, 10**9)) == 16
    assert len(whole_batches(split, 8, 1)) == 8


def test_the_speed_of_a_program_is_that_of_its_records(tmp_path: Path) -> None:
    lines = [record(1.0)] * WARM_UP_STEPS + [record(4.0), record(4.0)]
    write_history(tmp_path, lines)
    assert speed_of(tmp_path, 8) == pytest.approx(4.0)


# --- the bare loop -------------------------------------------------------------------------------


def padded(count: int) -> list[bare_loop.Padded]:
    split = make_split(4 * count, seed=1)
    return [
        (*pad(split.input_ids[i : i + 4], 0), torch.from_numpy(split.labels[i : i + 4]))
        for i in range(0, 4 * count, 4)
    ]


def test_the_bare_loop_trains_all_weights_that_the_batches_reach() -> None:
    model = make_teacher().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert bare_loop.bare_speed(model, padded(WARM_UP_STEPS + 2)) > 0
    moved = [n for n, value in model.named_parameters() if not torch.equal(value, before[n])]
    assert len(moved) == len(list(model.parameters()))


def test_the_bare_loop_needs_steps_after_the_warm_up() -> None:
    with pytest.raises(SystemExit, match="none after the warm-up"):
        bare_loop.bare_speed(make_teacher(), padded(WARM_UP_STEPS))


# --- TextBrewer ----------------------------------------------------------------------------------


def test_an_archive_that_is_not_the_pinned_one_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text("raise SystemExit\n")
    archive = tmp_path / "textbrewer-0.2.1.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "setup.py", arcname="textbrewer-0.2.1/src/setup.py")
    with pytest.raises(SystemExit, match="not the one that is pinned"):
        textbrewer_loop.unpack(archive, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_the_pinned_archive_is_unpacked_to_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "textbrewer-0.2.1"
    home.mkdir()
    (tmp_path / "losses.py").write_text("x = 1\n")
    archive = home / "textbrewer-0.2.1.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "losses.py", arcname="textbrewer-0.2.1/src/textbrewer/losses.py")
    monkeypatch.setattr(textbrewer_loop, "SHA256", sha256_file(archive))
    sources = textbrewer_loop.fetch(tmp_path)
    assert (sources / "textbrewer" / "losses.py").read_text() == "x = 1\n"


def test_their_batches_hold_the_same_ids_labels_and_mask() -> None:
    split = make_split(4, seed=1)
    texts = textbrewer_loop.Texts(split)
    batch = textbrewer_loop.collate([texts[i] for i in range(len(texts))], 0)
    ids_BT, mask_BT = pad(split.input_ids, 0)
    assert torch.equal(batch["input_ids"], ids_BT)
    assert torch.equal(batch["attention_mask"], mask_BT.long())
    assert batch["labels"].tolist() == split.labels.tolist()


def test_their_matches_are_our_pairs_projected_where_widths_differ() -> None:
    pairs = textbrewer_loop.pairs_of(distilled(), 3, 6)
    assert pairs == ((0, 0), (1, 2), (2, 4), (3, 6))
    equal = textbrewer_loop.matches_of(pairs, 384, 384)
    assert [(match["layer_S"], match["layer_T"]) for match in equal] == list(pairs)
    assert not any("proj" in match for match in equal)
    assert [match["proj"] for match in textbrewer_loop.matches_of(pairs, 192, 384)] == [
        ["linear", 192, 384]
    ] * 4


def test_their_lists_of_projections_are_their_own() -> None:
    """TextBrewer appends to the list that it is given."""
    first, second = textbrewer_loop.matches_of(((0, 0), (1, 2)), 192, 384)
    first["proj"].append({})
    assert len(second["proj"]) == 3


def test_their_adaptor_gives_the_losses_their_parts() -> None:
    model = make_teacher()
    batch = textbrewer_loop.collate([textbrewer_loop.Texts(make_split(3, seed=1))[0]] * 2, 0)
    adapted = textbrewer_loop.adapt(batch, model(**batch, output_hidden_states=True))
    assert len(adapted["hidden"]) == 5
    assert adapted["logits"].shape[0] == 2
    assert float(adapted["losses"].detach()) > 0
    assert adapted["inputs_mask"] is batch["attention_mask"]


def test_their_clock_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 100.0, 200.0, 202.0, 204.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    clock = textbrewer_loop.Clock()
    for _ in range(5):
        clock({})
    assert clock.examples_per_s(32) == pytest.approx(32 / 2)


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    spec = textbrewer_loop.Spec("nothing", 1, False, {}, ((0, 0),), 1.0, 1)
    with textbrewer_loop.Rival(spec, tmp_path) as rival, pytest.raises(SystemExit) as caught:
        rival.examples_per_s(1, 0)
    assert "No module named 'textbrewer'" in str(caught.value)


def test_the_total_counts_the_cache_once_and_each_epoch() -> None:
    case = rivals.CASES[0]
    assert case.total_at_most == 0.42
    found = {rivals.OURS: [30.0], rivals.THEIRS: [10.0], rivals.WRITING: [20.0]}
    speed, total, writing, *_ = rivals.figures_of(case, found, 300)
    assert speed.values == (3.0,)
    assert total.median == pytest.approx((20 + 8 * 10) / (8 * 30))
    assert "8 epochs" in total.name
    assert writing.values == (20.0,)


def test_a_case_without_that_goal_has_no_total() -> None:
    found = {rivals.OURS: [30.0], rivals.THEIRS: [10.0]}
    names = [figure.name for figure in rivals.figures_of(rivals.CASES[1], found, 300)]
    assert not [name for name in names if "epochs" in name]


# --- the start -----------------------------------------------------------------------------------

_WRITER = """
import pathlib, sys, time
work = pathlib.Path(".work/train_student-x-1")
work.mkdir(parents=True)
with (work / "metrics.jsonl").open("w") as file:
    file.write("{")
    file.flush()
    time.sleep(0.2)
    file.write("}" + sys.argv[1])
    file.flush()
    time.sleep(float(sys.argv[2]))
"""


def test_the_start_ends_at_the_first_whole_record(tmp_path: Path) -> None:
    program = [sys.executable, "-c", _WRITER, "\n", "600"]
    left = tmp_path / ".work" / "train_student-x-1"
    left.mkdir(parents=True)
    (left / "metrics.jsonl").write_text("{}\n")  # of an earlier run: not what is waited for
    began = time.monotonic()
    seconds = start.seconds_to_record(program, tmp_path, "train_student-x-*", {})
    assert 0.2 <= seconds <= time.monotonic() - began
    assert (left / "metrics.jsonl").read_text() == "{}\n"


def test_a_stage_that_ends_without_a_record_is_a_fault(tmp_path: Path) -> None:
    program = [sys.executable, "-c", _WRITER, "", "0"]
    with pytest.raises(SystemExit, match="no step after"):
        start.seconds_to_record(program, tmp_path, "train_student-x-*", {})


def test_a_command_that_fails_has_no_time() -> None:
    with pytest.raises(SystemExit, match="No such command"):
        start.seconds_of_command(["nothing"])


# --- agreement -----------------------------------------------------------------------------------


def objective_and_batch() -> tuple[Objective, Any, dict[str, torch.Tensor]]:
    parts = make_parts((one_phase((LABELS, KL, HIDDEN)),))
    texts = parts.train.input_ids[:6]
    batch = Batch(*pad(texts, 0), torch.from_numpy(parts.train.labels[:6]))
    return objective_of(parts).train(), batch, parts.targets.fetch(texts)


def compared(stored: Streams, error: float) -> Mapping[tuple[Codec, str], Moved]:
    objective, batch, live = objective_and_batch()
    bounds = dict.fromkeys(live, error)
    return compare(objective, batch, live, {"float16": (stored, bounds)}, seed=1)


def test_the_same_streams_give_the_same_losses_and_gradients_under_dropout() -> None:
    _, _, live = objective_and_batch()
    found = compared(live, 1e-3)
    assert {name for _, name in found} == {"prediction.labels", "prediction.kl", "hidden.mse"}
    assert set(found.values()) == {Moved()}


def test_what_the_tolerance_explains_is_allowed_and_what_it_does_not_is_not() -> None:
    _, _, live = objective_and_batch()
    moved = noisy(live, dict.fromkeys(live, 1e-2), seed=5)
    for name in ("prediction.kl", "hidden.mse"):
        within = compared(moved, 1e-2)["float16", name]
        assert 0 < within.loss_share < 1
        assert 0 < within.gradient_share < 1
        beyond = compared(moved, 1e-4)["float16", name]
        assert beyond.gradient_share > 1
        assert beyond.gradient == within.gradient > 0
    swapped = {name: value.flip(0) for name, value in live.items()}
    assert compared(swapped, 1e-2)["float16", "hidden.mse"].loss_share > 1


def test_labels_do_not_move_whatever_the_streams() -> None:
    _, _, live = objective_and_batch()
    moved = noisy(live, dict.fromkeys(live, 0.5), seed=5)
    assert compared(moved, 1e-3)["float16", "prediction.labels"] == Moved()


def test_noise_is_as_large_as_said_and_leaves_padding_alone() -> None:
    value = torch.randn(3, 4, 8)
    value[:, 3] = 0
    found = noisy({"hidden.2": value}, {"hidden.2": 0.1}, seed=1)["hidden.2"]
    assert float((found - value).norm() / value.norm()) == pytest.approx(0.1, rel=1e-3)
    assert float(found[:, 3].abs().sum()) == 0


def test_the_greatest_difference_is_kept_field_by_field() -> None:
    assert Moved(1.0, 2.0, 3.0, 4.0).widen(Moved(4.0, 1.0, 2.0, 5.0)) == Moved(4.0, 2.0, 3.0, 5.0)


# --- results -------------------------------------------------------------------------------------


def test_cache_and_training_have_a_page_each(tmp_path: Path) -> None:
    assert (*CACHE, *TRAINING) == PARTS
    quiet = Console(quiet=True)
    write_table(tmp_path, TRAINING, quiet, page=TRAINING_PAGE)
    assert list(tmp_path.iterdir()) == []  # a page of nothing says nothing
    for part in ("rivals", "writing"):
        write_part(tmp_path, part, Findings((BenchFigure("x", (1.0,)),), {}), machine(), 1.0)
    write_table(tmp_path, CACHE, quiet)
    write_table(tmp_path, TRAINING, quiet, page=TRAINING_PAGE)
    cache, training = ((tmp_path / f).read_text() for f in ("cache.md", "training.md"))
    assert "| writing | x |" in cache
    assert "| rivals | x |" in training
    assert "rivals" not in cache
    assert training.startswith("# The student's training, measured")
