"""What the processes of a training say to each other: sums, votes, and the first one's state.

Every call is made by all of them, in the same order. Nothing is pickled. A process that no longer
answers ends the others with TransientError, at the latest after the time that
`launch.run_training` was given; the training then goes on from its last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from torch.distributed import DistError

from tasks.kd.errors import TransientError

# Gradients travel together in pieces of about this many numbers.
_TOGETHER = 1 << 23
# From so many rows on a matrix is taken for a table of words.
_TABLE_ROWS = 4096
# What gloo says of a peer that is gone or silent; it raises a bare RuntimeError.
_SILENCE = ("/gloo/transport/", "Timed out waiting", "caused pair closure", "Connection ")


def rank() -> int:
    """This process's number, 0 the first."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """Every process's numbers, of equal count, by rank; exact up to 53 bits."""
    if world_size() == 1:
        return [list(values)]
    own = torch.tensor(values, dtype=torch.float64, device=device)
    found = [torch.empty_like(own) for _ in range(world_size())]
    with _answered():
        distributed.all_gather(found, own)
        return [each.tolist() for each in found]


def add_up(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor with its sum over all processes: float32 on one device."""
    if world_size() == 1:
        return
    for table in (tensor for tensor in tensors if _is_table(tensor)):
        _add_up_rows(table)
    for group in _groups([tensor for tensor in tensors if not _is_table(tensor)]):
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        with _answered():
            distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def share(
    document: Any, tensors: Mapping[str, torch.Tensor], device: torch.device
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The first process's JSON value and tensors, everywhere; the others' are not read."""
    if world_size() == 1:
        return document, dict(tensors)
    shapes = [[name, str(t.dtype), list(t.shape)] for name, t in tensors.items()]
    with _answered():
        document, shapes = _share_json([document, shapes], device)
        found = {}
        for name, dtype, shape in shapes:
            if rank() == 0:
                value = tensors[name].detach().to(device).contiguous()
            else:
                kind = getattr(torch, dtype.removeprefix("torch."))
                value = torch.empty(shape, dtype=kind, device=device)
            distributed.broadcast(value, src=0)
            found[name] = value
    return document, found


def _share_json(value: Any, device: torch.device) -> Any:
    text = json.dumps(value).encode()
    length = torch.tensor(len(text), device=device)
    distributed.broadcast(length, src=0)
    content = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if rank() == 0:
        content = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
    distributed.broadcast(content, src=0)
    return json.loads(bytes(content.tolist()))


def _is_table(tensor: torch.Tensor) -> bool:
    """Whether it may be the gradient of an embedding, of which a batch reaches few rows."""
    return tensor.dim() == 2 and tensor.shape[0] >= _TABLE_ROWS


def _add_up_rows(table_ND: torch.Tensor) -> None:
    """Replace a table with its sum over all processes; rows that are 0 everywhere are not sent."""
    reached_N = (torch.linalg.vector_norm(table_ND, dim=1) != 0).to(torch.uint8)
    with _answered():
        distributed.all_reduce(reached_N, distributed.ReduceOp.MAX)
        rows = reached_N.nonzero().squeeze(1)
        part = table_ND[rows]
        distributed.all_reduce(part)
    # A row whose norm underflows is 0 on every rank, not on those alone that lack it.
    table_ND.zero_()
    table_ND[rows] = part


def _groups(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    group: list[torch.Tensor] = []
    for tensor in tensors:
        group.append(tensor)
        if sum(each.numel() for each in group) >= _TOGETHER:
            yield group
            group = []
    if group:
        yield group


@contextmanager
def _answered() -> Iterator[None]:
    """Name the fault of a process that died, hangs or can't be reached; others stay as they are."""
    try:
        yield
    except RuntimeError as error:
        if not is_silence(error):
            raise
        raise TransientError(
            "another process of the training does not answer",
            where=f"process {rank()} of {world_size()}",
            found=" ".join(str(error).split())[:300],
            advice="Started again, the training goes on from its last checkpoint.",
        ) from error


def is_silence(error: RuntimeError) -> bool:
    """Whether an error says that another process was not heard, not that a call was wrong."""
    return isinstance(error, DistError) or any(said in str(error) for said in _SILENCE)
