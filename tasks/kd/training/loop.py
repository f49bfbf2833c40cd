"""One training loop, for the teacher and for the student.

The loss of a step is, for each level, weight x (sum over the whole step) / (count over the whole
step), whatever the micro-batches and ranks. All randomness (order, dropout) is a function of the
seed, the step and the rank, so that a resumed run ends as an uninterrupted one. What decides how
a training goes on (a refused update, the dev accuracy) is the same number on every rank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from tasks.kd.data.examples.batching import Rows, epoch_batches, split_by_tokens
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.data.examples.trainable import Trainable
from tasks.kd.errors import NonFiniteLossError
from tasks.kd.processes import ranks
from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.phases import Moment, Phase
from tasks.kd.recipe.training import Optimizer
from tasks.kd.training import checkpoint
from tasks.kd.training.checkpoint import Checkpoint, Checkpoints, State
from tasks.kd.training.feeding import Feed, Work
from tasks.kd.training.gradients import Asked, Computer, Found
from tasks.kd.training.optimizers import (
    averaged,
    begin_average,
    frozen,
    frozen_weights,
    learning_rate,
    new_optimizer,
    update_average,
)
from tasks.kd.training.precision import SCALE_GROWS_AFTER, first_scale, prepared, require_means
from tasks.kd.training.profiling import profiled
from tasks.kd.training.sinks import Record, Sink

# How many of a batch's examples an error or a record names.
_NAMED = 8


@dataclass(frozen=True)
class Parts:
    """What is trained, and on what."""

    objective: Trainable
    targets: Targets
    train: Split
    dev: Split
    pad_id: int


@dataclass(frozen=True)
class Habits:
    """What does not change the result: how and where the work is done, who watches.

    `work` keeps checkpoints and `profiles` the profile of a step; `sinks` gives the sinks of a
    run that starts at a given step.
    """

    work: Path
    profiles: Path
    compute: Compute
    sinks: Callable[[int], Sequence[Sink]]


@dataclass(frozen=True)
class Report:
    """How a training ended."""

    steps: int
    seconds: float
    dev_accuracy: float
    best_epoch: int
    refused_updates: int


def steps_per_epoch(settings: Optimizer, examples: int) -> int:
    """Optimizer steps in a pass over that many examples."""
    return math.ceil(examples / settings.batch_examples)


def rows_read(phase: Phase, split: Split) -> Rows:
    """The examples that a phase passes over: all, or those that have a label."""
    return np.arange(len(split)) if phase.reads_unlabelled else split.labelled


def steps_in_all(settings: Optimizer, phases: Sequence[Phase], split: Split) -> int:
    """Optimizer steps of all phases, should none end early."""
    return sum(
        phase.epochs * steps_per_epoch(settings, len(rows_read(phase, split))) for phase in phases
    )


def train(settings: Optimizer, parts: Parts, habits: Habits) -> Report:
    """Train `parts.objective.student` in place; it ends with the weights of the best dev epoch.

    Best by dev accuracy among the last phase's epochs, the later of equal ones; those weights, or
    with `ema_decay` their moving average. An update whose loss or gradient is not finite is left
    out; NonFiniteLossError, naming the examples, is raised after `max_non_finite` in a row.
    It is raised as well where the student's logits on a dev example are not finite: an accuracy
    that counts such an example would say nothing. ParamsError is raised for a precision that the
    machine can't have, for layers to train that are not there or that no level reaches, and where
    memory does not suffice for one example; TransientError where another process no longer
    answers. Whatever is raised, the last checkpoint stays.
    """
    device = PartialState(cpu=not torch.cuda.is_available()).device
    require_means(habits.compute, parts.objective, device)
    for phase in parts.objective.phases:
        frozen_weights(parts.objective.student, phase)  # raises before an hour is spent
    parts.objective.to(device)
    checkpoints = Checkpoints(habits.work)
    state, optimizer = _begin(settings, parts.objective, habits, checkpoints, device)
    sinks = habits.sinks(state.step) if ranks.rank() == 0 else ()
    with ExitStack() as closing:
        for sink in sinks:
            closing.callback(sink.close)
        measured = habits.compute.grad_norm_every is not None or any(
            phase.balance_every is not None for phase in parts.objective.phases
        )
        student = parts.objective.student
        closing.enter_context(prepared(student, habits.compute, measured=measured))
        feed = Feed(
            parts.train,
            parts.targets,
            pad_id=parts.pad_id,
            device=device,
            max_tokens=state.micro_batch_tokens,
        )
        loop = _Loop(settings, parts, habits, closing.enter_context(feed), sinks, checkpoints)
        loop.run(state, optimizer)
    parts.objective.student.load_state_dict(state.best)
    parts.objective.student.eval()
    return Report(state.step, state.seconds, state.best_accuracy, state.best_epoch, state.refused)


def _begin(
    settings: Optimizer,
    objective: Trainable,
    habits: Habits,
    checkpoints: Checkpoints,
    device: torch.device,
) -> tuple[State, torch.optim.Optimizer]:
    """The first rank's checkpoint, or its new weights, on every rank.

    Loaded into the objective and an optimizer; of its tensors no others are kept.
    """
    found = checkpoints.load() if ranks.rank() == 0 else None
    if found is None:
        found = Checkpoint(State(), dict(objective.state_dict()), {})
    begun = checkpoint.unflatten(*ranks.share(*found.flatten(), device))
    objective.load_state_dict(begun.weights)
    state = begun.state
    state.average = {name: value.to(device) for name, value in state.average.items()}
    bound = settings.micro_batch_tokens
    state.micro_batch_tokens = min(state.micro_batch_tokens or bound, bound)
    if habits.compute.mixed_precision != "fp16" or state.loss_scale <= 1:
        state.loss_scale = first_scale(habits.compute)  # or it began in another precision
    optimizer = new_optimizer(objective, settings, objective.phases[state.phase].learning_rate)
    checkpoint.restore_optimizer(optimizer, begun.optimizer)
    return state, optimizer


class _Loop:
    """What stays the same through a training."""

    def __init__(
        self,
        settings: Optimizer,
        parts: Parts,
        habits: Habits,
        feed: Feed,
        sinks: Sequence[Sink],
        checkpoints: Checkpoints,
    ) -> None:
        self.settings, self.parts, self.habits, self.sinks = settings, parts, habits, sinks
        self.feed, self.checkpoints = feed, checkpoints
        self.lengths = parts.train.lengths
        self.rows = [rows_read(phase, parts.train) for phase in parts.objective.phases]
        self.per_epoch = [steps_per_epoch(settings, len(rows)) for rows in self.rows]

    def run(self, state: State, optimizer: torch.optim.Optimizer) -> None:
        """Train from the state's phase on, that one with the optimizer that is given."""
        objective = self.parts.objective
        for number, phase in enumerate(objective.phases[state.phase :], start=state.phase):
            if number > state.phase:
                state.phase, state.step_in_phase = number, 0
                state.average, state.factors = {}, {}
                if phase.optimizer == "anew":
                    optimizer = new_optimizer(objective, self.settings, phase.learning_rate)
            with frozen(frozen_weights(objective.student, phase)):
                self._run_phase(state, optimizer)

    def _run_phase(self, state: State, optimizer: torch.optim.Optimizer) -> None:
        """Train the state's phase from where it is to its end, or to where it stops early."""
        parts, compute = self.parts, self.habits.compute
        phase = parts.objective.phases[state.phase]
        computer = Computer(parts.objective, self.feed, parts.train, compute, self.settings.seed)
        if self.settings.ema_decay is not None and not state.average:
            state.average = begin_average(self.parts.objective.student)
        todo = [] if self._is_over(state) else list(self._batches(state, phase))
        saved = begun = told = time.monotonic()
        before = state.seconds
        for work in self.feed.work(todo):
            record = self._step(computer, optimizer, work, state)
            state.step += 1
            state.step_in_phase += 1
            now = time.monotonic()
            state.seconds = before + now - begun
            self._tell(state, record | self._speed(work, now - told))
            told = now
            ends_epoch = state.step_in_phase % self.per_epoch[state.phase] == 0
            if ends_epoch:
                self._evaluate(state)
            if ends_epoch or time.monotonic() - saved > compute.checkpoint_every_s:
                if ranks.rank() == 0:
                    self.checkpoints.save(state, parts.objective, optimizer)
                saved = time.monotonic()
            if ends_epoch:
                told = time.monotonic()
                if self._is_over(state):
                    break

    def _step(
        self, computer: Computer, optimizer: torch.optim.Optimizer, work: Work, state: State
    ) -> Record:
        """One optimizer update over a global batch, or its refusal; returns its record."""
        compute, number = self.habits.compute, state.step + 1
        asked = Asked(
            self._moment(state),
            measured=_is_due(compute.grad_norm_every, number),
            balanced=self._is_balanced(state),
        )
        is_watched = number == compute.profile_step and ranks.rank() == 0
        with profiled(self.habits.profiles, f"step-{number}") if is_watched else nullcontext():
            found = computer.compute(work, state, asked)
            if found.halved_to is not None:
                message = (
                    f"memory did not suffice: micro-batches hold at most {found.halved_to} tokens "
                    "from here on; the global batch is as it was"
                )
                self._tell(state, {"split": "notice", "step": number, "message": message})
            record = self._update(optimizer, work, state, found)
        if is_watched:
            message = f"a profile of step {number} is in {self.habits.profiles}"
            self._tell(state, {"split": "notice", "step": number, "message": message})
        return record

    def _update(
        self, optimizer: torch.optim.Optimizer, work: Work, state: State, found: Found
    ) -> Record:
        """What is done with a step's gradients, which are gone afterwards."""
        phase = self.parts.objective.phases[state.phase]
        loss = sum(found.weights[name] * value for name, value in found.raw.items())
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                self.parts.objective.parameters(), self.settings.max_grad_norm
            )
        )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            optimizer.zero_grad(set_to_none=True)
            return self._refuse(work, state, found, norm)
        steps = self.per_epoch[state.phase] * phase.epochs
        rate = learning_rate(self.settings, phase.learning_rate, state.step_in_phase, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.refused_in_a_row = 0
        if self.settings.ema_decay is not None:
            student = self.parts.objective.student
            update_average(state.average, student, self.settings.ema_decay, state.step_in_phase)
        if self.habits.compute.mixed_precision == "fp16":
            state.steps_at_scale += 1
            if state.steps_at_scale == SCALE_GROWS_AFTER:
                state.loss_scale, state.steps_at_scale = 2 * state.loss_scale, 0
        return {
            "split": "train",
            "loss": loss,
            "levels": {name: _level_record(name, found, state) for name in found.raw},
            "learning_rate": rate,
            "grad_norm": norm,
        }

    def _refuse(self, work: Work, state: State, found: Found, norm: float) -> Record:
        """Leave an update out; raise NonFiniteLossError if it is one too many."""
        is_finite = all(math.isfinite(value) for value in found.raw.values())
        if is_finite and state.loss_scale > 1:  # a gradient too large for fp16 at this scale
            state.loss_scale, state.steps_at_scale = state.loss_scale / 2, 0
            message = f"a gradient overflowed fp16; the loss is now scaled by {state.loss_scale:g}"
            return {"split": "refused", "message": message}
        state.refused += 1
        state.refused_in_a_row += 1
        examples = [self.parts.train.example_ids[row] for row in work.rows]
        error = _not_finite(found, norm, examples)
        if state.refused_in_a_row >= self.settings.max_non_finite:
            raise error
        return {
            "split": "refused",
            "message": str(error),
            "in_a_row": state.refused_in_a_row,
            "examples": examples[:_NAMED],
        }

    def _speed(self, work: Work, seconds: float) -> Record:
        """Examples and tokens per second, and the share of time in which data was waited for."""
        return {
            "examples_per_s": len(work.rows) / seconds,
            "tokens_per_s": int(self.lengths[work.rows].sum()) / seconds,
            "waiting": min(1.0, work.waited_s / seconds),
        }

    def _batches(self, state: State, phase: Phase) -> Iterator[Rows]:
        rows, before = self.rows[state.phase], self._epochs_before(state)
        epoch, done = divmod(state.step_in_phase, self.per_epoch[state.phase])
        for number in range(epoch, phase.epochs):
            batches = epoch_batches(
                self.lengths[rows],
                batch_examples=self.settings.batch_examples,
                seed=self.settings.seed,
                epoch=before + number,
            )
            yield from (rows[batch] for batch in batches[done if number == epoch else 0 :])

    def _epochs_before(self, state: State) -> int:
        """Passes of the phases before the state's."""
        return sum(phase.epochs for phase in self.parts.objective.phases[: state.phase])

    def _epochs_done(self, state: State) -> int:
        """Whole passes so far, each over the texts that its phase reads."""
        return self._epochs_before(state) + state.step_in_phase // self.per_epoch[state.phase]

    def _evaluate(self, state: State) -> None:
        """Dev accuracy after an epoch; keeps the weights if it is the best of the last phase."""
        student = self.parts.objective.student
        with averaged(student, state.average) if state.average else nullcontext():
            accuracy, loss = self._measure(state.micro_batch_tokens)
            if self._is_last(state):
                gained = accuracy > state.best_accuracy
                state.epochs_without_gain = 0 if gained else state.epochs_without_gain + 1
            if self._is_last(state) and accuracy >= state.best_accuracy:
                state.best_accuracy, state.best_epoch = accuracy, self._epochs_done(state)
                weights = student.state_dict()
                state.best = {name: value.detach().clone() for name, value in weights.items()}
        self._tell(state, {"split": "dev", "accuracy": accuracy, "loss": loss})

    def _measure(self, max_tokens: int) -> tuple[float, float]:
        """Accuracy and loss on the dev split, of which each rank takes its part.

        Raises NonFiniteLossError, on all ranks, for examples whose logits are not finite.
        """
        dev, student = self.parts.dev, self.parts.objective.student
        rows = np.arange(ranks.rank(), len(dev), ranks.world_size())
        own = Scored(0, 0.0, [])
        if len(rows):
            pad_id = self.parts.pad_id
            own = score(student, dev.take(rows), pad_id=pad_id, max_tokens=max_tokens)
        named = [int(rows[place]) for place in own.broken[:_NAMED]]
        named += [-1] * (_NAMED - len(named))
        device = next(self.parts.objective.parameters()).device
        said = ranks.gather([own.right, own.lost, len(own.broken), *named], device)
        right, lost, broken = (sum(each[place] for each in said) for place in range(3))
        if broken:
            first = sorted(int(row) for each in said for row in each[3:] if row >= 0)
            raise _not_finite_in(dev, first, int(broken))
        return right / len(dev), lost / len(dev)

    def _moment(self, state: State) -> Moment:
        steps = self.per_epoch[state.phase] * self.parts.objective.phases[state.phase].epochs
        return Moment(state.phase, self._epochs_done(state), state.step_in_phase / steps)

    def _is_balanced(self, state: State) -> bool:
        """Whether the levels' factors are due: at their interval, and as long as there are none."""
        every = self.parts.objective.phases[state.phase].balance_every
        return every is not None and (not state.factors or _is_due(every, state.step_in_phase))

    def _is_last(self, state: State) -> bool:
        return state.phase == len(self.parts.objective.phases) - 1

    def _is_over(self, state: State) -> bool:
        """Whether the last phase has gone too many epochs without a better dev accuracy."""
        limit = self.settings.stop_after_epochs
        return limit is not None and state.epochs_without_gain >= limit

    def _tell(self, state: State, record: Record) -> None:
        phase = self.parts.objective.phases[state.phase].name
        done = state.step_in_phase / self.per_epoch[state.phase]
        place = {"step": state.step, "epoch": self._epochs_before(state) + done, "phase": phase}
        for sink in self.sinks:
            sink.write(place | record)


@torch.inference_mode()
def predict(model: torch.nn.Module, split: Split, *, pad_id: int, max_tokens: int) -> torch.Tensor:
    """Logits [N, C] of every example, in the split's order."""
    model.eval()
    device = next(model.parameters()).device
    order = np.argsort(split.lengths, kind="stable")
    parts = []
    for rows in split_by_tokens(order, split.lengths, max_tokens=max_tokens):
        ids_BT, mask_BT = pad([split.input_ids[row] for row in rows], pad_id)
        output: Any = model(input_ids=ids_BT.to(device), attention_mask=mask_BT.long().to(device))
        parts.append(output.logits.float().cpu())
    logits = torch.cat(parts)
    return torch.empty_like(logits).index_copy_(0, torch.from_numpy(order), logits)


@dataclass(frozen=True)
class Scored:
    """Right answers on a split, summed cross-entropy, places whose logits are not finite."""

    right: int
    lost: float
    broken: list[int]


def score(model: torch.nn.Module, split: Split, *, pad_id: int, max_tokens: int) -> Scored:
    """How a model does on a split."""
    logits = predict(model, split, pad_id=pad_id, max_tokens=max_tokens)
    labels = torch.from_numpy(split.labels)
    return Scored(
        int((logits.argmax(-1) == labels).sum()),
        float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")),
        (~logits.isfinite().all(-1)).nonzero().flatten().tolist(),
    )


def evaluate(
    model: torch.nn.Module, split: Split, *, pad_id: int, max_tokens: int
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy on a split.

    Raises NonFiniteLossError for examples whose logits are not finite.
    """
    scored = score(model, split, pad_id=pad_id, max_tokens=max_tokens)
    if scored.broken:
        raise _not_finite_in(split, scored.broken, len(scored.broken))
    return scored.right / len(split), scored.lost / len(split)


def _is_due(every: int | None, number: int) -> bool:
    return every is not None and number % every == 0


def _level_record(name: str, found: Found, state: State) -> Record:
    """What a step's record says of a level."""
    raw, weight = found.raw[name], found.weights[name]
    record: Record = {"raw": raw, "weight": weight, "weighted": weight * raw}
    if state.factors:
        record["factor"] = state.factors[name]
    if found.level_norms:
        norm = found.level_norms[name]
        record["grad_norm"] = norm if math.isfinite(norm) else None
    return record


def _not_finite_in(split: Split, rows: Sequence[int], count: int) -> NonFiniteLossError:
    more = " ..." if count > _NAMED else ""
    names = ", ".join(split.example_ids[row] for row in rows[:_NAMED])
    return NonFiniteLossError(
        "the model's logits are not finite",
        where=f"examples {names}{more}",
        expected="finite numbers",
        found=f"NaN or infinity on {count} of {len(split)}",
        advice="Lower learning_rate, or look at these texts.",
    )


def _not_finite(found: Found, norm: float, example_ids: list[str]) -> NonFiniteLossError:
    levels = ", ".join(f"{name} {value:g}" for name, value in found.raw.items())
    more = " ..." if len(example_ids) > _NAMED else ""
    return NonFiniteLossError(
        "a loss or gradient is not finite; the update was refused",
        where=f"examples {', '.join(example_ids[:_NAMED])}{more}",
        expected="finite numbers",
        found=f"{levels}, gradient norm {norm:g}",
        advice="Lower learning_rate, or look at these texts.",
    )
