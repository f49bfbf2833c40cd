"""Running a function in several processes, as torchrun does (gloo on CPUs, nccl on GPUs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tasks.kd.errors import KDError, StageError, TransientError, find_kind, from_record
from tasks.kd.params import Compute

# Of processes on one machine, where one that dies is noticed at once by the others' connections.
_TIMEOUT_S = 1800.0

Worker = Callable[..., None]


@dataclass(frozen=True)
class World:
    """How many processes there are to be, where they meet, and how long they wait for each other.

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
    otherwise this machine's are started as `compute` says. Raises as `run_processes` does.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = int(environment["WORLD_SIZE"])
        _guarded(worker, arguments, World(size, timeout_s=compute.peer_timeout_s))
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
    """A rank: checks that the world is as large as it should be, then works."""
    import torch
    from accelerate import PartialState

    is_alone = world.size == 1
    waits = {} if is_alone else {"timeout": timedelta(seconds=world.timeout_s)}
    found = PartialState(cpu=not torch.cuda.is_available(), **waits).num_processes
    if found != world.size:
        raise KDError(
            "the launcher started another number of processes", expected=world.size, found=found
        )
    worker(*arguments)
