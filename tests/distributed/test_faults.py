"""Processes that do not find each other, no longer hear each other, or call each other wrongly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import accelerate
import pytest
import torch
from torch import distributed

from tasks.kd.errors import KDError, NonFiniteLossError, ParamsError, TransientError
from tasks.kd.processes import ranks
from tasks.kd.processes.launch import run_processes, run_training
from tasks.kd.training.loop import train
from tests.makers.training_setup import make_compute, make_habits, make_parts, make_settings
from tests.makers.troubles import blind_on

PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


# --- a world that another program has made -------------------------------------------------------


def join(root: Path, rank: int, port: int, address: str = "127.0.0.1") -> str:
    """What one of two processes says that a cluster has started; the other one is not there."""
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environment |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.joining"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1], ids=["the others", "the first"])
def test_a_process_that_waits_in_vain_says_for_whom(rank: int, root: Path, free_port: int) -> None:
    said = join(root, rank, free_port)
    assert said.startswith("TransientError: the processes of the training did not find each other")
    assert f"Expected all at 127.0.0.1:{free_port} within 2 s" in said
    assert "Timed out" in said or "timed out" in said
    assert "\n" not in said


@pytest.mark.slow
def test_an_address_that_is_nobody_s_is_named(root: Path, free_port: int) -> None:
    said = join(root, 1, free_port, "nobody.invalid")
    assert said.startswith("TransientError: the processes of the training did not find each other")
    assert f"nobody.invalid:{free_port}" in said


@pytest.mark.slow
def test_a_port_that_is_in_use_is_named(root: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        said = join(root, 0, port)
    assert said.startswith("TransientError: the processes of the training did not find each other")
    assert "address already in use" in said
    assert f"127.0.0.1:{port}" in said


@pytest.mark.parametrize(
    "said",
    [
        {"RANK": "2", "WORLD_SIZE": "2", **PLACE},
        {"RANK": "-1", "WORLD_SIZE": "2", **PLACE},
        {"RANK": "one", "WORLD_SIZE": "2", **PLACE},
        {"RANK": "0", "WORLD_SIZE": "", **PLACE},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"},
        {"RANK": "0", "WORLD_SIZE": "2", **PLACE, "MASTER_PORT": "http"},
        {"RANK": "0", "WORLD_SIZE": "2", **PLACE, "MASTER_PORT": "70000"},
    ],
    ids=str,
)
def test_variables_that_make_no_sense_are_named(said: dict[str, str]) -> None:
    with pytest.raises(
        ParamsError, match=r"launcher's variables.*found RANK=.*, MASTER_PORT="
    ) as e:
        run_training(fail, compute=make_compute(), environment=said)
    assert f"RANK={said['RANK']}, WORLD_SIZE={said['WORLD_SIZE']}" in str(e.value)


def fail() -> None:
    raise AssertionError("the worker is not to be run")


def test_another_fault_of_joining_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(accelerate, "PartialState", refuse)
    with pytest.raises(RuntimeError, match="no such device"):
        run_training(
            fail, compute=make_compute(), environment={"RANK": "0", "WORLD_SIZE": "2", **PLACE}
        )


# --- a world that falls apart, or is called wrongly ----------------------------------------------


def fall_silent(folder: str) -> None:
    """The second process says nothing for once; then both ask for what can't be."""
    heard = Path(folder) / "heard"
    wrong = [torch.ones(4), torch.ones(4)]
    with pytest.raises(RuntimeError, match="invalid tensor size"), ranks._answered():
        distributed.all_gather(wrong, torch.ones(5))
    if ranks.rank() == 0:
        try:
            ranks.gather([1.0], torch.device("cpu"))
        except TransientError as error:
            heard.write_text(str(error))
        assert heard.exists()
    while not heard.exists():
        time.sleep(0.05)


@pytest.mark.slow
def test_a_silent_process_is_a_transient_fault_and_a_wrong_call_is_not(tmp_path: Path) -> None:
    compute = make_compute(processes=2, peer_timeout_s=3.0)
    run_training(fall_silent, str(tmp_path), compute=compute, environment={})
    said = (tmp_path / "heard").read_text()
    assert said.startswith("another process of the training does not answer: process 0 of 2")


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"


@pytest.mark.parametrize(
    ("error", "is_silence"),
    [
        (RuntimeError(GLOO), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (distributed.DistBackendError("NCCL error: remote process exited"), True),
        (distributed.DistStoreError("Timed out after 4 seconds waiting for clients"), True),
        (RuntimeError("ProcessGroupGloo::allgather: invalid tensor size at index 0"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
    ids=str,
)
def test_only_faults_of_the_communication_are_transient(
    error: RuntimeError, is_silence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", refuse)
    with pytest.raises(RuntimeError if not is_silence else TransientError) as caught:
        ranks.add_up([torch.ones(2)])
    assert isinstance(caught.value, KDError) == is_silence


# --- a dev split of which one process can't score its part ----------------------------------------


def meet_a_blind_spot(folder: str) -> None:
    torch.set_num_threads(1)
    parts = blind_on(make_parts(), [3, 7])  # of two processes, both are the second's
    with pytest.raises(NonFiniteLossError) as caught:
        train(make_settings(), parts, make_habits(Path(folder) / str(ranks.rank())))
    (Path(folder) / f"said-{ranks.rank()}").write_text(str(caught.value))


@pytest.mark.slow
def test_all_processes_name_the_dev_examples_that_one_of_them_met(tmp_path: Path) -> None:
    run_processes(meet_a_blind_spot, str(tmp_path), processes=2)
    first, second = ((tmp_path / f"said-{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert "examples 2-3, 2-7. Expected finite numbers, found NaN or infinity on 2 of 20" in first
