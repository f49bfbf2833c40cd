"""Running a function in several processes, as torchrun does (gloo on CPUs, nccl on GPUs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.kd.errors import KDError, StageError, find_kind, from_record


def run_processes(worker: Callable[..., None], *arguments: Any, processes: int) -> None:
    """Run `worker(*arguments)` in that many processes on this machine; in this one if it is 1.

    The worker must be importable and its arguments picklable. Raises the first failing rank's own
    error if it is one of ours, StageError with its message if not.
    """
    if processes == 1:
        worker(*arguments)
        return
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        start_method="spawn",
    )
    try:
        elastic_launch(config, _guarded)(worker, arguments, processes)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        said: Any = failure.message  # a dictionary, whatever its annotation says
        text = str(said["message"] if isinstance(said, dict) else said)
        kind, _, message = text.partition(": ")
        named = find_kind(kind)
        if named is not None:
            raise from_record({"type": kind, "message": message}) from None
        raise StageError(f"process {rank} of {processes} failed", found=text[:2000]) from None


def _guarded(worker: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """A rank: checks that the world is as large as asked for, then works."""
    import torch
    from accelerate import PartialState

    found = PartialState(cpu=not torch.cuda.is_available()).num_processes
    if found != processes:
        raise KDError(
            "the launcher started another number of processes", expected=processes, found=found
        )
    worker(*arguments)
