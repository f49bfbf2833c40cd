"""Micro-batches from the rows of a step; for a GPU, made while the step before is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import torch

from tasks.kd.data.examples.batching import Rows, micro_batches
from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.processes import ranks


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch on its way to the model; `weight` 0 for a rank that has no example."""

    rows: Rows
    batch: Batch
    targets: Mapping[str, torch.Tensor]
    weight: float


@dataclass(frozen=True)
class Work:
    """A step's rows over all ranks, this rank's micro-batches, and the seconds waited for them."""

    rows: Rows
    batches: Sequence[MicroBatch]
    max_tokens: int
    waited_s: float


@dataclass(frozen=True)
class _Coming:
    """Micro-batches under way, and the bound that they are made for."""

    batches: Future[list[MicroBatch]]
    max_tokens: int


class _AtOnce(Executor):
    """An executor that works at once, in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """The finished result; the function's error is raised here."""
        done: Future[Any] = Future()
        done.set_result(function(*arguments, **named))
        return done


class Feed:
    """Assembles micro-batches of a split: for a GPU ahead, in a thread of its own.

    A step on a CPU keeps every core busy, and work beside it delays it by more than the work takes.
    So on a CPU the caller's thread assembles each step when it is due.

    `max_tokens` is what a micro-batch holds at most, padded; it may be lowered at any time.
    """

    def __init__(
        self,
        split: Split,
        targets: Targets,
        *,
        pad_id: int,
        device: torch.device,
        max_tokens: int,
    ) -> None:
        """`targets` is asked for the teacher's streams from one thread alone."""
        self._split, self._targets, self._pad_id, self._device = split, targets, pad_id, device
        self.max_tokens = max_tokens
        self._lengths = split.lengths
        self._is_ahead = device.type != "cpu"
        self._thread = ThreadPoolExecutor(1) if self._is_ahead else _AtOnce()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def work(self, todo: Sequence[Rows]) -> Iterator[Work]:
        """Each step's work; ahead, the next is assembled while the caller works on this one."""
        coming: _Coming | None = None
        for number, rows in enumerate(todo):
            started = time.monotonic()
            if coming is not None and coming.max_tokens != self.max_tokens:
                coming.batches.cancel()  # the bound was lowered while the caller worked
                coming = None
            now = coming or self._begin(rows)
            batches = now.batches.result()
            waited_s = time.monotonic() - started
            is_ahead = self._is_ahead and number + 1 < len(todo)
            coming = self._begin(todo[number + 1]) if is_ahead else None
            yield Work(rows, batches, now.max_tokens, waited_s)

    def cut(self, work: Work) -> Work:
        """The same step, cut anew if the bound is lower than when it was assembled."""
        if work.max_tokens <= self.max_tokens:
            return work
        again = self._begin(work.rows)
        return Work(work.rows, again.batches.result(), again.max_tokens, work.waited_s)

    def _begin(self, rows: Rows) -> _Coming:
        return _Coming(self._thread.submit(self._assemble, rows, self.max_tokens), self.max_tokens)

    def _assemble(self, rows: Rows, max_tokens: int) -> list[MicroBatch]:
        """This rank's micro-batches of a global batch, with the teacher's streams."""
        shares = micro_batches(
            rows,
            self._lengths,
            max_tokens=max_tokens,
            rank=ranks.rank(),
            world_size=ranks.world_size(),
        )
        return [
            self._micro_batch(share if len(share) else rows[:1], 1.0 if len(share) else 0.0)
            for share in shares
        ]

    def _micro_batch(self, rows: Rows, weight: float) -> MicroBatch:
        input_ids = [self._split.input_ids[row] for row in rows]
        ids_BT, mask_BT = pad(input_ids, self._pad_id)
        labels_B = torch.from_numpy(self._split.labels[rows])
        targets = self._targets.fetch(input_ids)
        return MicroBatch(
            rows,
            Batch(*(value.to(self._device) for value in (ids_BT, mask_BT, labels_B))),
            {name: value.to(self._device) for name, value in targets.items()},
            weight,
        )
