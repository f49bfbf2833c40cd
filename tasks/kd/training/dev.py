"""A model on the dev split: its logits, accuracy and loss, and the best weights so far."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tasks.kd.data.examples.batching import split_by_tokens
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Split
from tasks.kd.errors import NonFiniteLossError
from tasks.kd.processes import ranks
from tasks.kd.training.checkpoint import State
from tasks.kd.training.course import Course, Parts, Told
from tasks.kd.training.optimizers import averaged

# How many of a split's examples an error names.
_NAMED = 8


def evaluate_epoch(course: Course, state: State) -> Told:
    """Measure the student on the dev split after an epoch; returns what its record says.

    Its weights, or their average, are kept in `state` if they are the best of the last phase.
    """
    student = course.parts.objective.student
    with averaged(student, state.average) if state.average else nullcontext():
        accuracy, loss = measure(course.parts, state.micro_batch_tokens)
        if course.is_last(state):
            gained = accuracy > state.best_accuracy
            state.epochs_without_gain = 0 if gained else state.epochs_without_gain + 1
            if accuracy >= state.best_accuracy:
                state.best_accuracy, state.best_epoch = accuracy, course.epochs_done(state)
                weights = student.state_dict()
                state.best = {name: value.detach().clone() for name, value in weights.items()}
    return {"split": "dev", "accuracy": accuracy, "loss": loss}


def measure(parts: Parts, max_tokens: int) -> tuple[float, float]:
    """Accuracy and loss of the student on the dev split, of which each rank takes its part.

    Raises NonFiniteLossError, on all ranks, for examples whose logits are not finite.
    """
    dev, student = parts.dev, parts.objective.student
    rows = np.arange(ranks.rank(), len(dev), ranks.world_size())
    own = Scored(0, 0.0, [])
    if len(rows):
        own = score(student, dev.take(rows), pad_id=parts.pad_id, max_tokens=max_tokens)
    named = [int(rows[place]) for place in own.broken[:_NAMED]]
    named += [-1] * (_NAMED - len(named))
    device = next(parts.objective.parameters()).device
    said = ranks.gather([own.right, own.lost, len(own.broken), *named], device)
    right, lost, broken = (sum(each[place] for each in said) for place in range(3))
    if broken:
        first = sorted(int(row) for each in said for row in each[3:] if row >= 0)
        raise _not_finite(dev, first, int(broken))
    return right / len(dev), lost / len(dev)


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


def _not_finite(split: Split, rows: Sequence[int], count: int) -> NonFiniteLossError:
    more = " ..." if count > _NAMED else ""
    names = ", ".join(split.example_ids[row] for row in rows[:_NAMED])
    return NonFiniteLossError(
        "the model's logits are not finite",
        where=f"examples {names}{more}",
        expected="finite numbers",
        found=f"NaN or infinity on {count} of {len(split)}",
        advice="Lower learning_rate, or look at these texts.",
    )
