"""One process and several give the same losses and gradients: started for real, over gloo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.data.examples.prepared import NO_LABEL
from tasks.kd.errors import DataError, KDError, ParamsError, StageError, TransientError
from tasks.kd.processes import ranks
from tasks.kd.processes.launch import World, _guarded, run_processes, run_training
from tasks.kd.recipe.schedules import WeightSchedule
from tasks.kd.training.loop import train
from tests.distributed.level_gradients import save_gradients
from tests.makers.phases import one_phase
from tests.makers.training_setup import (
    HIDDEN,
    KL,
    LABELS,
    make_compute,
    make_habits,
    make_parts,
    make_settings,
    records_of,
    weights_of,
    without_dropout,
)
from tests.makers.troubles import Poisoned, with_memory_for


def work_and_save(folder: str) -> None:
    """Train the small student; rank 0 saves its last weights and records."""
    torch.set_num_threads(1)
    # 41 examples in batches of 8: in the last batch, all ranks but one have no example. Those
    # without a label are left out by the second phase.
    parts = without_dropout(make_parts(examples=41))
    parts.train.labels[::7] = NO_LABEL
    train(make_settings(), parts, make_habits(Path(folder)))
    several = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if several else 0
    world = torch.distributed.get_world_size() if several else 1
    (Path(folder) / f"rank-{rank}-of-{world}").touch()
    if rank == 0:
        save_file(weights_of(parts.objective), Path(folder) / "weights.safetensors")


def work_with_faults(folder: str) -> None:
    """Train while the last rank meets NaN and has little memory; then with too little for one."""
    torch.set_num_threads(1)
    last = ranks.rank() == ranks.world_size() - 1
    made = without_dropout(make_parts())
    parts = replace(made, targets=Poisoned(made, [5]))
    if last:
        with_memory_for(60, parts)
    settings = make_settings(ema_decay=0.8, stop_after_epochs=1, max_non_finite=2)
    report = train(settings, parts, make_habits(Path(folder)))
    found: list[object] = [report.steps, report.refused_updates, report.best_epoch]
    save_file(weights_of(parts.objective), Path(folder) / f"rank-{ranks.rank()}.safetensors")
    parts = make_parts()
    if last:
        with_memory_for(3, parts)
    with pytest.raises(ParamsError, match="memory does not suffice for one example") as caught:
        train(settings, parts, make_habits(Path(folder) / f"too-little-{ranks.rank()}"))
    found.append(str(caught.value))
    (Path(folder) / f"rank-{ranks.rank()}.json").write_text(json.dumps(found))


def work_in_phases(folder: str) -> None:
    """Train in phases that balance, freeze, go on and have schedules; all ranks save."""
    torch.set_num_threads(1)
    rising = WeightSchedule(schedule="cosine", start=0.1, end=1.0)
    upper = HIDDEN.model_copy(update={"layer_map": "last", "weight": rising})
    phases = (
        one_phase((LABELS, HIDDEN), name="all", balance_every=2),
        one_phase(
            (KL, upper), name="upper", optimizer="continued", trained_layers=(2,), balance_every=4
        ),
    )
    parts = without_dropout(make_parts(phases, examples=41))
    train(make_settings(), parts, make_habits(Path(folder)))
    save_file(weights_of(parts.objective), Path(folder) / f"rank-{ranks.rank()}.safetensors")


def refuse_on_purpose() -> None:
    raise DataError("no such thing", where="here")


def fail_on_purpose() -> None:
    raise ValueError("a rank that fails")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_does_not_change_the_training(
    processes: int, tmp_path: Path
) -> None:
    work_and_save(str(tmp_path / "one"))
    (tmp_path / "many").mkdir()
    run_processes(work_and_save, str(tmp_path / "many"), processes=processes)
    one, many = (records_of(tmp_path / name) for name in ("one", "many"))
    ranks = {path.name for path in (tmp_path / "many").glob("rank-*")}
    assert ranks == {f"rank-{rank}-of-{processes}" for rank in range(processes)}
    assert len(one) == len(many)
    for expected, found in zip(one, many, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        if "grad_norm" in expected:
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "many"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_phases_with_all_that_they_may_say_are_the_same_in_two_processes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    work_in_phases(str(tmp_path / "one"))
    run_processes(work_in_phases, str(tmp_path / "two"), processes=2)
    one, two = (records_of(tmp_path / name, "train") for name in ("one", "two"))
    assert len(one) == len(two) == 12
    for expected, found in zip(one, two, strict=True):
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
        for name, level in expected["levels"].items():
            assert level["factor"] != 1
            assert found["levels"][name] == pytest.approx(level, rel=1e-3)
    expected = load_file(tmp_path / "one" / "rank-0.safetensors")
    own, other = (load_file(tmp_path / "two" / f"rank-{rank}.safetensors") for rank in (0, 1))
    for name, value in own.items():
        assert torch.equal(other[name], value)
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_what_one_rank_meets_all_decide_alike(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    work_with_faults(str(tmp_path / "one"))
    run_processes(work_with_faults, str(tmp_path / "two"), processes=2)
    (alone,) = (tmp_path / "one").glob("rank-*.json")
    first, second = (
        json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first == second
    assert first[:3] == json.loads(alone.read_text())[:3]
    assert first[1] > 0
    expected = load_file(tmp_path / "one" / "rank-0.safetensors")
    own, other = (load_file(tmp_path / "two" / f"rank-{rank}.safetensors") for rank in (0, 1))
    for name, value in own.items():
        assert torch.equal(other[name], value)
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3)
    assert records_of(tmp_path / "two", "notice")
    assert len(records_of(tmp_path / "two", "refused")) == first[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each level's gradients in one process and one micro-batch a step."""
    folder = tmp_path_factory.mktemp("whole")
    save_gradients(str(folder), 10_000)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "micro_batch_tokens"), [(1, 25), (2, 10_000), (3, 25)])
def test_every_level_has_the_same_loss_and_gradients(
    processes: int, micro_batch_tokens: int, whole: Path, tmp_path: Path
) -> None:
    run_processes(save_gradients, str(tmp_path), micro_batch_tokens, processes=processes)
    expected = load_file(whole / "gradients-0-of-1.safetensors")
    for rank in range(processes):
        found = load_file(tmp_path / f"gradients-{rank}-of-{processes}.safetensors")
        assert set(found) == set(expected)
        for name, gradient in found.items():
            size = max(1.0, float(expected[name].abs().max()))
            difference = float((gradient - expected[name]).abs().max())
            assert difference <= 1e-6 * size, (name, difference)
    for folder in (path for path in whole.iterdir() if path.is_dir()):
        own, others = records_of(folder, "train"), records_of(tmp_path / folder.name, "train")
        assert [record["step"] for record in own] == [record["step"] for record in others] == [1, 2]
        for one, other in zip(own, others, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-6, abs=1e-6)


def note_size(folder: str) -> None:
    (Path(folder) / f"{ranks.rank()}-of-{ranks.world_size()}").touch()


def test_a_process_that_a_cluster_started_is_taken_as_one_of_its_world(tmp_path: Path) -> None:
    """Several are tried in test_machines; here, a world that is not as large as it is named."""
    compute = make_compute(processes=2)
    environment = {"RANK": "0", "WORLD_SIZE": "1"}
    run_training(note_size, str(tmp_path), compute=compute, environment=environment)
    assert [path.name for path in tmp_path.iterdir()] == ["0-of-1"]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    environment = {"RANK": "0", "WORLD_SIZE": "3", **place}
    with pytest.raises(KDError, match=r"another number of processes. Expected 3, found 1"):
        run_training(note_size, str(tmp_path), compute=compute, environment=environment)


@pytest.mark.slow
def test_without_a_cluster_the_recipe_s_processes_are_started(tmp_path: Path) -> None:
    run_training(note_size, str(tmp_path), compute=make_compute(processes=2), environment={})
    assert {path.name for path in tmp_path.iterdir()} == {"0-of-2", "1-of-2"}


@pytest.mark.slow
def test_machines_that_do_not_find_each_other_say_so(free_port: int, tmp_path: Path) -> None:
    compute = make_compute(
        machines=2, machine_rank=0, rendezvous=f"127.0.0.1:{free_port}", peer_timeout_s=1.0
    )
    with pytest.raises(TransientError, match=r"did not find each other: machine 0 of 2\. Exp"):
        run_training(note_size, str(tmp_path), compute=compute, environment={})
    assert not list(tmp_path.iterdir())


def test_a_world_of_another_size_than_asked_for_is_refused() -> None:
    with pytest.raises(KDError, match=r"another number of processes. Expected 2, found 1"):
        _guarded(fail_on_purpose, (), World(2))


@pytest.mark.slow
def test_a_rank_s_own_error_keeps_its_name_and_message() -> None:
    with pytest.raises(DataError, match=r"^no such thing: here\.$"):
        run_processes(refuse_on_purpose, processes=2)


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_run_with_its_message() -> None:
    with pytest.raises(StageError, match=r"process \d of 2 failed.*a rank that fails"):
        run_processes(fail_on_purpose, processes=2)
