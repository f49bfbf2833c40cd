"""Our own training loop as users run it, on a sample: how fast it is once it is warm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.caches import Bench
from bench.students import objective_of, one_phase, run_loop
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.documents.history import Record, RefusedRecord, TrainRecord
from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.levels import Level
from tasks.kd.recipe.student import Student
from tasks.kd.recipe.training import Optimizer
from tasks.kd.training.course import Parts

# A new optimizer's first update makes its moments, the first batch is assembled during no step.
WARM_UP_STEPS = 3
# An evaluation ends each epoch; it stands between the steps and is not counted.
_DEV_TEXTS = 32


@dataclass(frozen=True)
class Speed:
    """Examples a second, and the share of that time in which a step waited for its data."""

    examples_per_s: float
    waiting: float


class Speeds:
    """A sink that takes the seconds of each update; all batches are full ones."""

    def __init__(self, batch_examples: int) -> None:
        self._batch_examples = batch_examples
        self.seconds: list[float] = []
        self.waited: list[float] = []

    def write(self, record: Record) -> None:
        """Of an update; a refused one is a fault here."""
        if isinstance(record, RefusedRecord):
            raise SystemExit(f"an update was refused: {record.message}")
        if isinstance(record, TrainRecord):
            self.seconds.append(self._batch_examples / record.examples_per_s)
            self.waited.append(self.seconds[-1] * record.waiting)

    def close(self) -> None:
        """Nothing to close."""

    @property
    def speed(self) -> Speed:
        """Over all steps after the warm-up."""
        seconds, waited = self.seconds[WARM_UP_STEPS:], self.waited[WARM_UP_STEPS:]
        if not seconds:
            raise SystemExit(f"{len(self.seconds)} steps: none after the warm-up")
        spent = sum(seconds)
        return Speed(len(seconds) * self._batch_examples / spent, sum(waited) / spent)


class Loop:
    """`train` on a student; each call is one epoch with an optimizer of its own."""

    def __init__(
        self,
        bench: Bench,
        student: Student,
        levels: tuple[Level, ...],
        source: tuple[torch.nn.Module, Targets, Targets, Split],
    ) -> None:
        """`source`: the teacher, what standardises, what serves the levels, and the texts."""
        teacher, scales, self._targets, split = source
        self._bench, self._split = bench, split
        self._objective = objective_of(student, teacher, one_phase(levels), (scales, split))

    def speed(self, number: int) -> Speed:
        """Of an epoch; round 0 is a few steps."""
        settings = self._bench.material.recipe.train_student.optimizer
        steps = WARM_UP_STEPS + 1 if number == 0 else len(self._split)
        split = whole_batches(self._split, settings.batch_examples, steps)
        speeds = Speeds(settings.batch_examples)
        data = self._bench.material.short
        dev = data.dev.take(np.arange(min(_DEV_TEXTS, len(data.dev)), dtype=np.int64))
        parts = Parts(self._objective, self._targets, split, dev, data.pad_id)
        train_on(parts, speeds, settings, self._bench.material.recipe.compute, self._bench.folder)
        return speeds.speed


def train_on(
    parts: Parts, speeds: Speeds, settings: Optimizer, compute: Compute, folder: Path
) -> None:
    """One training, told to a sink that asks for full batches."""
    if len(parts.train) % settings.batch_examples:
        raise AssertionError("a record does not tell how many examples the last batch had")
    run_loop(parts, speeds, settings=settings, compute=compute, folder=folder)


def whole_batches(split: Split, batch_examples: int, most: int) -> Split:
    """The first texts, as many as fill whole batches, at most that many of them."""
    batches = min(most, len(split) // batch_examples)
    return split.take(np.arange(batches * batch_examples, dtype=np.int64))
