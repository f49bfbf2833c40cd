"""One training loop, for the teacher and for the student.

The loss of a step is, for each level, weight x (sum over the whole step) / (count over the whole
step), whatever the micro-batches and ranks. All randomness (order, dropout) is a function of the
seed, the step and the rank, so that a resumed run ends as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from tasks.kd import checkpoint
from tasks.kd.batching import Rows, epoch_batches, micro_batches, split_by_tokens
from tasks.kd.checkpoint import State
from tasks.kd.data import Split
from tasks.kd.errors import NonFiniteLossError
from tasks.kd.objective import Batch, Objective, level_name
from tasks.kd.optimizers import learning_rate, new_optimizer
from tasks.kd.params import Optimizer, Phase
from tasks.kd.sinks import Record, Sink
from tasks.kd.targets import Targets, pad


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
    """What does not change the result: where work in progress is kept, who watches."""

    work: Path
    checkpoint_every_s: float
    sinks: Callable[[int], Sequence[Sink]]


@dataclass(frozen=True)
class Report:
    """How a training ended."""

    steps: int
    seconds: float
    dev_accuracy: float
    best_epoch: int


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch on its way to the model; `weight` 0 for a rank that has no example."""

    batch: Batch
    targets: Mapping[str, torch.Tensor]
    weight: float


def steps_per_epoch(settings: Optimizer, examples: int) -> int:
    """Optimizer steps in a pass over that many examples."""
    return math.ceil(examples / settings.batch_examples)


def train(settings: Optimizer, parts: Parts, habits: Habits) -> Report:
    """Train `parts.objective.student` in place; it ends with the weights of the best dev epoch.

    Best by dev accuracy among the last phase's epochs, the later of equal ones. `habits.sinks`
    gives the sinks of a run that starts at a given step. Raises NonFiniteLossError, naming the
    examples, before the update; the last checkpoint stays.
    """
    loop = _Loop(settings, parts, habits)
    state, optimizer_tensors = checkpoint.load(habits.work, parts.objective)
    loop.sinks = habits.sinks(state.step) if loop.accelerator.is_main_process else ()
    with contextlib.ExitStack() as closing:
        for sink in loop.sinks:
            closing.callback(sink.close)
        for number in range(state.phase, len(parts.objective.phases)):
            if number > state.phase:
                state.phase, state.step_in_phase, optimizer_tensors = number, 0, {}
            loop.run_phase(state, optimizer_tensors)
    parts.objective.student.load_state_dict(state.best)
    parts.objective.student.eval()
    return Report(state.step, state.seconds, state.best_accuracy, state.best_epoch)


class _Loop:
    """What stays the same through a training."""

    def __init__(self, settings: Optimizer, parts: Parts, habits: Habits) -> None:
        self.settings, self.parts, self.habits = settings, parts, habits
        self.accelerator = Accelerator(
            # Without this, several processes without a GPU would each train alone.
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.model: torch.nn.Module = self.accelerator.prepare_model(parts.objective)
        self.lengths = parts.train.lengths
        self.per_epoch = steps_per_epoch(settings, len(parts.train))
        self.sinks: Sequence[Sink] = ()

    def run_phase(self, state: State, optimizer_tensors: dict[str, torch.Tensor]) -> None:
        """Train the state's phase from where it is to its end."""
        phase = self.parts.objective.phases[state.phase]
        optimizer = new_optimizer(self.parts.objective, self.settings, phase.learning_rate)
        checkpoint.restore_optimizer(optimizer, optimizer_tensors)
        saved = begun = time.monotonic()
        before = state.seconds
        for rows, batches in self._read_ahead(state, phase):
            record = self._step(optimizer, rows, batches, state)
            state.step += 1
            state.step_in_phase += 1
            state.seconds = before + time.monotonic() - begun
            epoch, inside = divmod(state.step, self.per_epoch)
            self._tell(record | {"step": state.step, "epoch": state.step / self.per_epoch})
            if not inside:
                self._evaluate(state, phase, epoch)
            if not inside or time.monotonic() - saved > self.habits.checkpoint_every_s:
                if self.accelerator.is_main_process:
                    checkpoint.save(self.habits.work, state, self.parts.objective, optimizer)
                saved = time.monotonic()

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        rows: Rows,
        batches: Sequence[MicroBatch],
        state: State,
    ) -> Record:
        """One optimizer update over a global batch; returns its record."""
        started = time.monotonic()
        phase = self.parts.objective.phases[state.phase]
        weights = {level_name(level): level.weight for level in phase.levels}
        seed_step(self.settings.seed, state.step, self.accelerator.process_index)
        raw = self._backward(batches, rows, state.phase, weights)
        loss = sum(weights[name] * value for name, value in raw.items())
        norm = float(
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _not_finite(raw, norm, [self.parts.train.example_ids[row] for row in rows])
        rate = learning_rate(
            self.settings, phase.learning_rate, state.step_in_phase, self.per_epoch * phase.epochs
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {
            "phase": phase.name,
            "split": "train",
            "loss": loss,
            "levels": {
                name: {"raw": value, "weighted": weights[name] * value}
                for name, value in raw.items()
            },
            "learning_rate": rate,
            "grad_norm": norm,
            "examples_per_s": len(rows) / (time.monotonic() - started),
        }

    def _backward(
        self, batches: Sequence[MicroBatch], rows: Rows, phase: int, weights: Mapping[str, float]
    ) -> dict[str, float]:
        """Gradients of the global batch; returns each level's value over all ranks."""
        counts = self.parts.objective.counts(
            phase, examples=len(rows), tokens=int(self.lengths[rows].sum())
        )
        sums = torch.zeros(len(counts), device=self.accelerator.device)
        ranks = self.accelerator.num_processes
        self.model.train()
        for number, micro in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                totals = self.model(micro.batch, micro.targets, phase)
                parts = torch.stack([totals[name].mean(counts[name]) for name in counts])
                wanted = parts.new_tensor([weights[name] for name in counts])
                # Gradients are averaged over ranks, and each rank holds a part of the sum.
                self.accelerator.backward((parts * wanted).sum() * micro.weight * ranks)
            sums += parts.detach() * micro.weight
        values = self.accelerator.reduce(sums, reduction="sum").tolist()
        return dict(zip(counts, values, strict=True))

    def _read_ahead(self, state: State, phase: Phase) -> Iterator[tuple[Rows, list[MicroBatch]]]:
        """Steps that are still to do in the phase; the next one is assembled during this one."""
        todo = list(self._batches(state, phase))
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self._assemble, todo[0]) if todo else None
            for number, rows in enumerate(todo):
                assert coming is not None
                batches = coming.result()
                if number + 1 < len(todo):
                    coming = thread.submit(self._assemble, todo[number + 1])
                yield rows, batches

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

    def _assemble(self, rows: Rows) -> list[MicroBatch]:
        """This rank's micro-batches of a global batch, with the teacher's streams."""
        shares = micro_batches(
            rows,
            self.lengths,
            max_tokens=self.settings.micro_batch_tokens,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        return [
            self._micro_batch(share if len(share) else rows[:1], len(share) > 0) for share in shares
        ]

    def _micro_batch(self, rows: Rows, counts: bool) -> MicroBatch:
        split, device = self.parts.train, self.accelerator.device
        input_ids = [split.input_ids[row] for row in rows]
        ids_BT, mask_BT = pad(input_ids, self.parts.pad_id)
        labels_B = torch.from_numpy(split.labels[rows])
        targets = self.parts.targets.fetch(input_ids)
        return MicroBatch(
            Batch(ids_BT.to(device), mask_BT.to(device), labels_B.to(device)),
            {name: value.to(device) for name, value in targets.items()},
            1.0 if counts else 0.0,
        )

    def _evaluate(self, state: State, phase: Phase, epoch: int) -> None:
        """Dev accuracy after an epoch; keeps the weights if it is the best of the last phase."""
        accuracy, loss = evaluate(
            self.parts.objective.student,
            self.parts.dev,
            pad_id=self.parts.pad_id,
            max_tokens=self.settings.micro_batch_tokens,
        )
        is_last = state.phase == len(self.parts.objective.phases) - 1
        if is_last and accuracy >= state.best_accuracy:
            state.best_accuracy, state.best_epoch = accuracy, epoch
            weights = self.parts.objective.student.state_dict()
            state.best = {name: value.detach().clone() for name, value in weights.items()}
        record = {"step": state.step, "epoch": float(epoch), "phase": phase.name, "split": "dev"}
        self._tell(record | {"accuracy": accuracy, "loss": loss})

    def _tell(self, record: Record) -> None:
        for sink in self.sinks:
            sink.write(record)


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


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout for one step on one rank."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def _not_finite(
    raw: Mapping[str, float], norm: float, example_ids: list[str]
) -> NonFiniteLossError:
    levels = ", ".join(f"{name} {value:g}" for name, value in raw.items())
    return NonFiniteLossError(
        "a loss or gradient is not finite; the update was refused",
        where=f"examples {', '.join(example_ids[:8])}{' ...' if len(example_ids) > 8 else ''}",
        expected="finite numbers",
        found=f"{levels}, gradient norm {norm:g}",
        advice="Lower learning_rate, or look at these texts.",
    )
