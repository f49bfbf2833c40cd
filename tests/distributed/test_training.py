"""One process and several give the same losses and gradients: started for real, over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.errors import DataError, KDError, StageError
from tasks.kd.launch import _guarded, run_processes
from tasks.kd.training import train
from tests.kd.training_setup import (
    make_habits,
    make_parts,
    make_settings,
    weights_of,
    without_dropout,
)


def work_and_save(folder: str) -> None:
    """Train the small student; rank 0 saves its last weights and records."""
    torch.set_num_threads(1)
    # 41 examples in batches of 8: in the last batch, all ranks but one have no example.
    parts = without_dropout(make_parts(examples=41))
    train(make_settings(), parts, make_habits(Path(folder)))
    several = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if several else 0
    world = torch.distributed.get_world_size() if several else 1
    (Path(folder) / f"rank-{rank}-of-{world}").touch()
    if rank == 0:
        save_file(weights_of(parts.objective), Path(folder) / "weights.safetensors")


def refuse_on_purpose() -> None:
    raise DataError("no such thing", where="here")


def fail_on_purpose() -> None:
    raise ValueError("a rank that fails")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_does_not_change_the_training(
    processes: int, tmp_path: Path
) -> None:
    import json

    work_and_save(str(tmp_path / "one"))
    (tmp_path / "many").mkdir()
    run_processes(work_and_save, str(tmp_path / "many"), processes=processes)
    one, many = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "many")
    )
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


def test_a_world_of_another_size_than_asked_for_is_refused() -> None:
    with pytest.raises(KDError, match=r"another number of processes. Expected 2, found 1"):
        _guarded(fail_on_purpose, (), 2)


@pytest.mark.slow
def test_a_rank_s_own_error_keeps_its_name_and_message() -> None:
    with pytest.raises(DataError, match=r"^no such thing: here\.$"):
        run_processes(refuse_on_purpose, processes=2)


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_run_with_its_message() -> None:
    with pytest.raises(StageError, match=r"process \d of 2 failed.*a rank that fails"):
        run_processes(fail_on_purpose, processes=2)
