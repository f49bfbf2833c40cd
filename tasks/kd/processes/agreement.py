"""All processes of a training go on, or none does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from tasks.kd.errors import KDError, from_record
from tasks.kd.processes import ranks


@contextmanager
def agreed(device: torch.device) -> Iterator[None]:
    """Leave only when all processes are here, and with an error if any of them met one inside.

    That one's own error is raised in the process that met it; all others raise the first of them,
    by rank. Without it they would wait for that process until their patience ends, and then blame
    the network.
    """
    own: Exception | None = None
    try:
        yield
    except (KDError, OSError, SafetensorError) as error:
        own = error
    said = {} if own is None else {"type": type(own).__name__, "message": str(own)}
    heard = _told(said, device)
    if own is not None:
        raise own
    for rank, record in enumerate(heard):
        if record:
            message = f"process {rank} of {len(heard)}: {record['message']}"
            raise from_record({**record, "message": message})


def _told(said: dict[str, str], device: torch.device) -> list[dict[str, str]]:
    """What every process says, by rank."""
    text = json.dumps(said).encode()
    lengths = [int(length) for (length,) in ranks.gather([len(text)], device)]
    padded = list(text.ljust(max(lengths)))
    return [json.loads(bytes(int(byte) for byte in one)) for one in ranks.gather(padded, device)]
