"""One training loop, for the teacher and for the student.

The loss of a step is, for each level, weight x (sum over the whole step) / (count over the whole
step), whatever the micro-batches and ranks. All randomness (order, dropout) is a function of the
seed, the step and the rank, so that a resumed run ends as an uninterrupted one. What decides how
a training goes on (a refused update, the dev accuracy) is the same number on every rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from tasks.kd.data.examples.trainable import Trainable
from tasks.kd.documents.history import make_record
from tasks.kd.processes import ranks
from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.training import Optimizer
from tasks.kd.training import checkpoint
from tasks.kd.training.checkpoint import Checkpoint, Checkpoints, State
from tasks.kd.training.course import Course, Parts, Told
from tasks.kd.training.dev import evaluate_epoch
from tasks.kd.training.feeding import Feed, Work
from tasks.kd.training.gradients import Asked, Computer
from tasks.kd.training.optimizers import begin_average, frozen, frozen_weights, new_optimizer
from tasks.kd.training.precision import first_scale, prepared, require_means
from tasks.kd.training.profiling import profiled
from tasks.kd.training.sinks import Sink
from tasks.kd.training.updates import update


@dataclass(frozen=True)
class Habits:
    """What does not change the result: how and where the work is done, and who watches.

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


@dataclass(frozen=True)
class _Training:
    """What stays the same through a training."""

    course: Course
    habits: Habits
    feed: Feed
    sinks: Sequence[Sink]
    checkpoints: Checkpoints

    @property
    def objective(self) -> Trainable:
        return self.course.parts.objective

    def tell(self, state: State, said: Told) -> None:
        """Hand a record to the sinks, with its place in the training."""
        if self.sinks:
            record = make_record(self.course.place(state) | said)
            for sink in self.sinks:
                sink.write(record)

    def notice(self, state: State, message: str) -> None:
        """Tell of something that happened in the step that comes next."""
        self.tell(state, {"split": "notice", "step": state.step + 1, "message": message})


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
    objective, compute = parts.objective, habits.compute
    require_means(compute, objective, device)
    for phase in objective.phases:
        frozen_weights(objective.student, phase)  # raises before an hour is spent
    objective.to(device)
    checkpoints = Checkpoints(habits.work)
    state, optimizer = _begin(settings, objective, habits, checkpoints, device)
    sinks = habits.sinks(state.step) if ranks.rank() == 0 else ()
    with ExitStack() as closing:
        for sink in sinks:
            closing.callback(sink.close)
        measured = _measures_levels(objective, compute)
        closing.enter_context(prepared(objective.student, compute, measured=measured))
        feed = closing.enter_context(_feed(parts, state, device))
        training = _Training(Course.of(settings, parts), habits, feed, sinks, checkpoints)
        _run_phases(training, state, optimizer)
    objective.student.load_state_dict(state.best)
    objective.student.eval()
    return Report(state.step, state.seconds, state.best_accuracy, state.best_epoch, state.refused)


def _begin(
    settings: Optimizer,
    objective: Trainable,
    habits: Habits,
    checkpoints: Checkpoints,
    device: torch.device,
) -> tuple[State, torch.optim.Optimizer]:
    """The first rank's checkpoint, or its new weights, on every rank.

    They are loaded into the objective and an optimizer; no other tensors are kept.
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


def _measures_levels(objective: Trainable, compute: Compute) -> bool:
    """Whether some step measures each level's own gradient."""
    balances = any(phase.balance_every is not None for phase in objective.phases)
    return compute.grad_norm_every is not None or balances


def _feed(parts: Parts, state: State, device: torch.device) -> Feed:
    return Feed(
        parts.train,
        parts.targets,
        pad_id=parts.pad_id,
        device=device,
        max_tokens=state.micro_batch_tokens,
    )


def _run_phases(training: _Training, state: State, optimizer: torch.optim.Optimizer) -> None:
    """Train from the state's phase on, that one with the optimizer that is given."""
    objective, settings = training.objective, training.course.settings
    for number, phase in enumerate(objective.phases[state.phase :], start=state.phase):
        if number > state.phase:
            state.phase, state.step_in_phase = number, 0
            state.average, state.factors = {}, {}
            if phase.optimizer == "anew":
                optimizer = new_optimizer(objective, settings, phase.learning_rate)
        with frozen(frozen_weights(objective.student, phase)):
            _run_phase(training, state, optimizer)


def _run_phase(training: _Training, state: State, optimizer: torch.optim.Optimizer) -> None:
    """Train the state's phase from where it is to its end, or to where it stops early."""
    course, compute = training.course, training.habits.compute
    computer = Computer(
        training.objective, training.feed, course.parts.train, compute, course.settings.seed
    )
    if course.settings.ema_decay is not None and not state.average:
        state.average = begin_average(training.objective.student)
    todo = [] if course.is_over(state) else list(course.batches(state))
    saved = begun = told = time.monotonic()
    before = state.seconds
    for work in training.feed.work(todo):
        said = _step(training, computer, optimizer, work, state)
        state.step += 1
        state.step_in_phase += 1
        now = time.monotonic()
        state.seconds = before + now - begun
        training.tell(state, said | _speed(course, work, now - told))
        told = now
        ends_epoch = course.ends_epoch(state)
        if ends_epoch:
            training.tell(state, evaluate_epoch(course, state))
        if ends_epoch or time.monotonic() - saved > compute.checkpoint_every_s:
            if ranks.rank() == 0:
                training.checkpoints.save(state, training.objective, optimizer)
            saved = time.monotonic()
        if ends_epoch:
            told = time.monotonic()
            if course.is_over(state):
                break


def _step(
    training: _Training,
    computer: Computer,
    optimizer: torch.optim.Optimizer,
    work: Work,
    state: State,
) -> Told:
    """One optimizer update over a global batch, or its refusal; returns what its record says."""
    habits, number = training.habits, state.step + 1
    is_watched = number == habits.compute.profile_step and ranks.rank() == 0
    with profiled(habits.profiles, f"step-{number}") if is_watched else nullcontext():
        losses = computer.compute(work, state, _asked(training, state))
        if losses.halved_to is not None:
            training.notice(state, _halved(losses.halved_to))
        said = update(training.course, habits.compute, optimizer, work, state, losses)
    if is_watched:
        training.notice(state, f"a profile of step {number} is in {habits.profiles}")
    return said


def _asked(training: _Training, state: State) -> Asked:
    """What is wanted of the step that comes next, beside its gradients."""
    every = training.habits.compute.grad_norm_every
    return Asked(
        training.course.moment(state),
        measured=every is not None and (state.step + 1) % every == 0,
        balanced=training.course.is_balanced(state),
    )


def _halved(tokens: int) -> str:
    return (
        f"memory did not suffice: micro-batches hold at most {tokens} tokens from here on; "
        "the global batch is as it was"
    )


def _speed(course: Course, work: Work, seconds: float) -> Told:
    """Examples and tokens per second, and the share of time in which data was waited for."""
    return {
        "examples_per_s": len(work.rows) / seconds,
        "tokens_per_s": int(course.lengths[work.rows].sum()) / seconds,
        "waiting": min(1.0, work.waited_s / seconds),
    }
