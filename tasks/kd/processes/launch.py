"""Runs a function in several processes, as torchrun does (gloo on CPUs, nccl on GPUs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tasks.kd.errors import (
    KDError,
    ParamsError,
    StageError,
    TransientError,
    find_kind,
    from_record,
)
from tasks.kd.recipe.compute import Compute

# Of processes on one machine, where one that dies is noticed at once by the others' connections.
_TIMEOUT_S = 1800.0
# What torchrun and others say to a process that they start.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Worker = Callable[..., None]


@dataclass(frozen=True)
class World:
    """How many processes there are, where they meet, and how long they wait for each other.

    `rendezvous` is `host:port` of the first of several machines, None on one machine.
    """

    processes: int
    machines: int = 1
    machine_rank: int = 0
    rendezvous: str | None = None
    timeout_s: float = _TIMEOUT_S

    @property
    def size(self) -> int:
        """Processes on all machines."""
        return self.processes * self.machines


def run_training(
    worker: Worker, *arguments: Any, compute: Compute, environment: Mapping[str, str]
) -> None:
    """Run `worker(*arguments)` in the processes of a training.

    If the environment says that this is one of several processes already (RANK and WORLD_SIZE, as
    torchrun, Kubernetes' training jobs and a SLURM script set them), it is taken as one of them;
    otherwise this machine's are started as `compute` says. Raises as `run_processes` does,
    ParamsError for variables that make no sense, and TransientError if the processes do not find
    each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        _guarded(worker, arguments, _world_of(environment, compute))
        return
    world = World(
        compute.processes,
        compute.machines,
        compute.machine_rank or 0,
        compute.rendezvous,
        compute.peer_timeout_s,
    )
    _start(worker, arguments, world)


def run_processes(worker: Worker, *arguments: Any, processes: int) -> None:
    """Run `worker(*arguments)` in that many processes on this machine; in this one if it is 1.

    The worker must be importable and its arguments picklable. Raises the first failing rank's own
    error if it is one of ours, StageError with its message if not.
    """
    _start(worker, arguments, World(processes))


def _world_of(environment: Mapping[str, str], compute: Compute) -> World:
    """The world that a launcher has written into the environment."""
    said = {name: environment.get(name, "") for name in _VARIABLES}
    rank, size = said["RANK"], said["WORLD_SIZE"]
    is_known = rank.isdecimal() and size.isdecimal() and int(rank) < int(size)
    if is_known and int(size) > 1:
        port = said["MASTER_PORT"]
        is_known = bool(said["MASTER_ADDR"]) and port.isdecimal() and 0 < int(port) < 1 << 16
    if not is_known:
        raise ParamsError(
            "the launcher's variables do not say which process this is and where all meet",
            where=", ".join(_VARIABLES),
            expected="RANK below WORLD_SIZE, and the first process's host and port",
            found=", ".join(f"{name}={value}" for name, value in said.items()),
            advice="Without RANK and WORLD_SIZE, the processes of the recipe are started.",
        )
    meeting = f"{said['MASTER_ADDR']}:{said['MASTER_PORT']}"
    return World(int(size), rendezvous=meeting, timeout_s=compute.peer_timeout_s)


def _start(worker: Worker, arguments: tuple[Any, ...], world: World) -> None:
    if world.size == 1:
        worker(*arguments)
        return
    from torch.distributed import DistNetworkError, DistStoreError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=world.machines,
        max_nodes=world.machines,
        nproc_per_node=world.processes,
        # With c10d the order of machines would be chance; the first keeps the checkpoints.
        rdzv_backend="c10d" if world.rendezvous is None else "static",
        rdzv_endpoint=world.rendezvous or "127.0.0.1:0",
        rdzv_configs={"rank": world.machine_rank, "timeout": int(world.timeout_s) or 1},
        run_id="training",  # the same on all machines
        max_restarts=0,
        start_method="spawn",
    )
    try:
        elastic_launch(config, _guarded)(worker, arguments, world)
    except ChildFailedError as error:
        raise _named(error, world) from None
    except (DistNetworkError, DistStoreError, RendezvousError) as error:
        raise TransientError(
            "the machines of the training did not find each other",
            where=f"machine {world.machine_rank} of {world.machines}",
            expected=f"an answer from {world.rendezvous} within {world.timeout_s:g} s",
            found=" ".join(str(error).split())[:300],
        ) from None


def _named(error: Any, world: World) -> KDError:
    """The first failing rank's own error, or one with its message."""
    rank, failure = error.get_first_failure()
    said: Any = failure.message  # a dictionary, whatever its annotation says
    text = str(said["message"] if isinstance(said, dict) else said)
    kind, _, message = text.partition(": ")
    if find_kind(kind) is not None:
        return from_record({"type": kind, "message": message})
    return StageError(f"process {rank} of {world.size} failed", found=text[:2000])


def _guarded(worker: Worker, arguments: tuple[Any, ...], world: World) -> None:
    """Check that the world has its size, then work; runs in every process."""
    import torch
    from accelerate import PartialState

    from tasks.kd.processes.ranks import is_silence

    is_alone = world.size == 1
    waits = {} if is_alone else {"timeout": timedelta(seconds=world.timeout_s)}
    try:
        found = PartialState(cpu=not torch.cuda.is_available(), **waits).num_processes
    except RuntimeError as error:
        if not is_silence(error):
            raise
        raise TransientError(
            "the processes of the training did not find each other",
            where=f"one of {world.size} processes",
            expected=f"all at {world.rendezvous or 'the first one'} within {world.timeout_s:g} s",
            found=" ".join(str(error).split())[:300],
            advice="Is the first process there, is that its address, and its port free?",
        ) from error
    if found != world.size:
        raise KDError(
            "the launcher started another number of processes", expected=world.size, found=found
        )
    worker(*arguments)
