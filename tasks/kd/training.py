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

from tasks.kd import checkpoint, ranks
from tasks.kd.batching import Rows, epoch_batches, split_by_tokens
from tasks.kd.checkpoint import Checkpoint, State, Tensors
from tasks.kd.data import Split
from tasks.kd.errors import NonFiniteLossError
from tasks.kd.feeding import Feed, Work
from tasks.kd.gradients import Computer, Found
from tasks.kd.levels import Phase
from tasks.kd.objective import Objective, level_name
from tasks.kd.optimizers import (
    averaged,
    begin_average,
    learning_rate,
    new_optimizer,
    update_average,
)
from tasks.kd.params import Compute, Optimizer
from tasks.kd.precision import SCALE_GROWS_AFTER, first_scale, prepared, require_means
from tasks.kd.profiling import profiled
from tasks.kd.sinks import Record, Sink
from tasks.kd.targets import Targets, pad

# How many of a batch's examples an error or a record names.
_NAMED = 8


@dataclass(frozen=True)
class Parts:
    """What is trained, and on what."""

    objective: Objective
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


def train(settings: Optimizer, parts: Parts, habits: Habits) -> Report:
    """Train `parts.objective.student` in place; it ends with the weights of the best dev epoch.

    Best by dev accuracy among the last phase's epochs, the later of equal ones; those weights, or
    with `ema_decay` their moving average. An update whose loss or gradient is not finite is left
    out; NonFiniteLossError, naming the examples, is raised after `max_non_finite` in a row.
    ParamsError is raised for a precision that the machine can't have and where memory does not
    suffice for one example, TransientError where another process no longer answers. Whatever is
    raised, the last checkpoint stays.
    """
    device = PartialState(cpu=not torch.cuda.is_available()).device
    require_means(habits.compute, parts.objective, device)
    parts.objective.to(device)
    begun = _begin(settings, parts.objective, habits, device)
    state, optimizer_tensors = begun.state, begun.optimizer
    sinks = habits.sinks(state.step) if ranks.rank() == 0 else ()
    with ExitStack() as closing:
        for sink in sinks:
            closing.callback(sink.close)
        closing.enter_context(prepared(parts.objective.student, habits.compute))
        feed = Feed(parts.train, parts.targets, pad_id=parts.pad_id, device=device)
        loop = _Loop(settings, parts, habits, closing.enter_context(feed), sinks)
        for number in range(state.phase, len(parts.objective.phases)):
            if number > state.phase:
                state.phase, state.step_in_phase = number, 0
                state.average, optimizer_tensors = {}, {}
            loop.run_phase(state, optimizer_tensors)
    parts.objective.student.load_state_dict(state.best)
    parts.objective.student.eval()
    return Report(state.step, state.seconds, state.best_accuracy, state.best_epoch, state.refused)


def _begin(
    settings: Optimizer, objective: Objective, habits: Habits, device: torch.device
) -> Checkpoint:
    """The first rank's checkpoint, or its new weights, on every rank; loaded into the objective."""
    found = checkpoint.load(habits.work) if ranks.rank() == 0 else None
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
    return begun


class _Loop:
    """What stays the same through a training."""

    def __init__(
        self,
        settings: Optimizer,
        parts: Parts,
        habits: Habits,
        feed: Feed,
        sinks: Sequence[Sink],
    ) -> None:
        self.settings, self.parts, self.habits, self.sinks = settings, parts, habits, sinks
        self.feed = feed
        self.computer = Computer(parts.objective, feed, parts.train, habits.compute, settings.seed)
        self.lengths = parts.train.lengths
        self.per_epoch = steps_per_epoch(settings, len(parts.train))

    def run_phase(self, state: State, optimizer_tensors: Tensors) -> None:
        """Train the state's phase from where it is to its end, or to where it stops early."""
        phase = self.parts.objective.phases[state.phase]
        optimizer = new_optimizer(self.parts.objective, self.settings, phase.learning_rate)
        checkpoint.restore_optimizer(optimizer, optimizer_tensors)
        if self.settings.ema_decay is not None and not state.average:
            state.average = begin_average(self.parts.objective.student)
        todo = [] if self._is_over(state) else list(self._batches(state, phase))
        saved = begun = told = time.monotonic()
        before = state.seconds
        for work in self.feed.work(todo, state.micro_batch_tokens):
            record = self._step(optimizer, work, state)
            state.step += 1
            state.step_in_phase += 1
            now = time.monotonic()
            state.seconds = before + now - begun
            self._tell(state, record | self._speed(work, now - told))
            told = now
            ends_epoch = state.step % self.per_epoch == 0
            if ends_epoch:
                self._evaluate(state, state.step // self.per_epoch)
            if ends_epoch or time.monotonic() - saved > self.habits.compute.checkpoint_every_s:
                if ranks.rank() == 0:
                    checkpoint.save(self.habits.work, state, self.parts.objective, optimizer)
                saved = time.monotonic()
            if ends_epoch:
                told = time.monotonic()
                if self._is_over(state):
                    break

    def _step(self, optimizer: torch.optim.Optimizer, work: Work, state: State) -> Record:
        """One optimizer update over a global batch, or its refusal; returns its record."""
        compute, number = self.habits.compute, state.step + 1
        measured = compute.grad_norm_every is not None and number % compute.grad_norm_every == 0
        is_watched = number == compute.profile_step and ranks.rank() == 0
        with profiled(self.habits.profiles, f"step-{number}") if is_watched else nullcontext():
            found = self.computer.compute(work, state, measured=measured)
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
        weights = {level_name(level): level.weight for level in phase.levels}
        loss = sum(weights[name] * value for name, value in found.raw.items())
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                self.parts.objective.parameters(), self.settings.max_grad_norm
            )
        )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            optimizer.zero_grad(set_to_none=True)
            return self._refuse(work, state, found, norm)
        rate = learning_rate(
            self.settings, phase.learning_rate, state.step_in_phase, self.per_epoch * phase.epochs
        )
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
            "levels": {
                name: {"raw": value, "weighted": weights[name] * value}
                | ({"grad_norm": found.level_norms[name]} if found.level_norms else {})
                for name, value in found.raw.items()
            },
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
        epoch, done = divmod(state.step, self.per_epoch)
        ends = (state.step - state.step_in_phase) // self.per_epoch + phase.epochs
        for number in range(epoch, ends):
            batches = epoch_batches(
                self.lengths,
                batch_examples=self.settings.batch_examples,
                seed=self.settings.seed,
                epoch=number,
            )
            yield from batches[done if number == epoch else 0 :]

    def _evaluate(self, state: State, epoch: int) -> None:
        """Dev accuracy after an epoch; keeps the weights if it is the best of the last phase."""
        student = self.parts.objective.student
        with averaged(student, state.average) if state.average else nullcontext():
            accuracy, loss = self._measure(state.micro_batch_tokens)
            if self._is_last(state):
                gained = accuracy > state.best_accuracy
                state.epochs_without_gain = 0 if gained else state.epochs_without_gain + 1
            if self._is_last(state) and accuracy >= state.best_accuracy:
                state.best_accuracy, state.best_epoch = accuracy, epoch
                weights = student.state_dict()
                state.best = {name: value.detach().clone() for name, value in weights.items()}
        self._tell(state, {"split": "dev", "accuracy": accuracy, "loss": loss})

    def _measure(self, max_tokens: int) -> tuple[float, float]:
        """Accuracy and loss on the dev split, of which each rank takes its part."""
        dev = self.parts.dev
        own = dev.take(np.arange(ranks.rank(), len(dev), ranks.world_size()))
        accuracy, loss = 0.0, 0.0
        if len(own):
            accuracy, loss = evaluate(
                self.parts.objective.student,
                own,
                pad_id=self.parts.pad_id,
                max_tokens=max_tokens,
            )
        if ranks.world_size() == 1:
            return accuracy, loss
        device = next(self.parts.objective.parameters()).device
        said = ranks.gather([round(accuracy * len(own)), loss * len(own)], device)
        right, lost = (sum(each) for each in zip(*said, strict=True))
        return right / len(dev), lost / len(dev)

    def _is_last(self, state: State) -> bool:
        return state.phase == len(self.parts.objective.phases) - 1

    def _is_over(self, state: State) -> bool:
        """Whether the last phase has gone too many epochs without a better dev accuracy."""
        limit = self.settings.stop_after_epochs
        return limit is not None and state.epochs_without_gain >= limit

    def _tell(self, state: State, record: Record) -> None:
        phase = self.parts.objective.phases[state.phase].name
        place = {"step": state.step, "epoch": state.step / self.per_epoch, "phase": phase}
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


def evaluate(
    model: torch.nn.Module, split: Split, *, pad_id: int, max_tokens: int
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy on a split."""
    logits = predict(model, split, pad_id=pad_id, max_tokens=max_tokens)
    labels = torch.from_numpy(split.labels)
    accuracy = float((logits.argmax(-1) == labels).double().mean())
    return accuracy, float(torch.nn.functional.cross_entropy(logits, labels))


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
