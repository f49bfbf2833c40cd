"""The course of a training: its phases, epochs and batches, all known before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.kd.data.examples.batching import Rows, epoch_batches
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.data.examples.trainable import Moment, Trainable, TrainedPhase
from tasks.kd.recipe.training import Optimizer
from tasks.kd.training.checkpoint import State

Told = dict[str, Any]  # fields of a record, before it has all


@dataclass(frozen=True)
class Parts:
    """What is trained, and on what."""

    objective: Trainable
    targets: Targets
    train: Split
    dev: Split
    pad_id: int


def steps_per_epoch(settings: Optimizer, examples: int) -> int:
    """Optimizer steps in a pass over that many examples."""
    return math.ceil(examples / settings.batch_examples)


def rows_read(phase: TrainedPhase, split: Split) -> Rows:
    """The examples that a phase passes over: all, or those that have a label."""
    return np.arange(len(split)) if phase.reads_unlabelled else split.labelled


def steps_in_all(settings: Optimizer, phases: Sequence[TrainedPhase], split: Split) -> int:
    """Optimizer steps of all phases, should none end early."""
    return sum(
        phase.epochs * steps_per_epoch(settings, len(rows_read(phase, split))) for phase in phases
    )


@dataclass(frozen=True)
class Course:
    """Which examples each step passes over, and what follows from where a training is.

    `rows` are the examples of each phase, `per_epoch` its steps in one pass.
    """

    settings: Optimizer
    parts: Parts
    lengths: Rows
    rows: tuple[Rows, ...]
    per_epoch: tuple[int, ...]

    @classmethod
    def of(cls, settings: Optimizer, parts: Parts) -> Course:
        """The course of these parts."""
        rows = tuple(rows_read(phase, parts.train) for phase in parts.objective.phases)
        per_epoch = tuple(steps_per_epoch(settings, len(each)) for each in rows)
        return cls(settings, parts, parts.train.lengths, rows, per_epoch)

    def phase(self, state: State) -> TrainedPhase:
        """The state's phase."""
        return self.parts.objective.phases[state.phase]

    def steps(self, state: State) -> int:
        """Optimizer steps of the state's phase, should it not end early."""
        return self.per_epoch[state.phase] * self.phase(state).epochs

    def batches(self, state: State) -> Iterator[Rows]:
        """The global batches of the state's phase that are still to come."""
        rows, before = self.rows[state.phase], self._epochs_before(state)
        epoch, done = divmod(state.step_in_phase, self.per_epoch[state.phase])
        for number in range(epoch, self.phase(state).epochs):
            batches = epoch_batches(
                self.lengths[rows],
                batch_examples=self.settings.batch_examples,
                seed=self.settings.seed,
                epoch=before + number,
            )
            yield from (rows[batch] for batch in batches[done if number == epoch else 0 :])

    def epochs_done(self, state: State) -> int:
        """Whole passes so far, each over the texts that its phase reads."""
        return self._epochs_before(state) + state.step_in_phase // self.per_epoch[state.phase]

    def moment(self, state: State) -> Moment:
        """When the step that comes next is."""
        done = state.step_in_phase / self.steps(state)
        return Moment(state.phase, self.epochs_done(state), done)

    def place(self, state: State) -> Told:
        """Where the state is, as records say it."""
        done = state.step_in_phase / self.per_epoch[state.phase]
        epoch = self._epochs_before(state) + done
        return {"step": state.step, "epoch": epoch, "phase": self.phase(state).name}

    def ends_epoch(self, state: State) -> bool:
        """Whether the last step ended a pass."""
        return state.step_in_phase % self.per_epoch[state.phase] == 0

    def is_balanced(self, state: State) -> bool:
        """Whether the levels' factors are due: at their interval, and as long as there are none."""
        every = self.phase(state).balance_every
        return every is not None and (not state.factors or state.step_in_phase % every == 0)

    def is_last(self, state: State) -> bool:
        """Whether the state's phase is the last."""
        return state.phase == len(self.rows) - 1

    def is_over(self, state: State) -> bool:
        """Whether the last phase has gone too many epochs without a better dev accuracy."""
        limit = self.settings.stop_after_epochs
        return limit is not None and state.epochs_without_gain >= limit

    def _epochs_before(self, state: State) -> int:
        """Passes of the phases before the state's."""
        return sum(phase.epochs for phase in self.parts.objective.phases[: state.phase])
