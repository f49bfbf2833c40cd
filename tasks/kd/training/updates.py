"""What becomes of a step's gradients: an update of the weights, or its refusal."""

from __future__ import annotations

import math
from typing import Any

import torch

from tasks.kd.documents.history import LevelRecord
from tasks.kd.errors import NonFiniteLossError
from tasks.kd.recipe.compute import Compute
from tasks.kd.training.checkpoint import State
from tasks.kd.training.course import Course, Told
from tasks.kd.training.feeding import Work
from tasks.kd.training.gradients import Losses
from tasks.kd.training.optimizers import learning_rate, update_average
from tasks.kd.training.precision import SCALE_GROWS_AFTER

# How many of a batch's examples an error or a record names.
_NAMED = 8


def update(
    course: Course,
    compute: Compute,
    optimizer: torch.optim.Optimizer,
    work: Work,
    state: State,
    losses: Losses,
) -> Told:
    """Take a step with the gradients at the weights, or refuse it; returns what its record says.

    The gradients are gone afterwards. Raises NonFiniteLossError for the last of `max_non_finite`
    refusals in a row.
    """
    settings, objective = course.settings, course.parts.objective
    loss = sum(losses.weights[name] * value for name, value in losses.raw.items())
    norm = float(torch.nn.utils.clip_grad_norm_(objective.parameters(), settings.max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        optimizer.zero_grad(set_to_none=True)
        return _refuse(course, work, state, losses, norm)
    rate = learning_rate(
        settings, course.phase(state).learning_rate, state.step_in_phase, course.steps(state)
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.refused_in_a_row = 0
    if settings.ema_decay is not None:
        update_average(state.average, objective.student, settings.ema_decay, state.step_in_phase)
    if compute.mixed_precision == "fp16":
        _grow_scale(state)
    return {
        "split": "train",
        "loss": loss,
        "levels": {name: level_record(name, losses, state) for name in losses.raw},
        "learning_rate": rate,
        "grad_norm": norm,
    }


def _grow_scale(state: State) -> None:
    """Double the scale of the loss after so many updates at it."""
    state.steps_at_scale += 1
    if state.steps_at_scale == SCALE_GROWS_AFTER:
        state.loss_scale, state.steps_at_scale = 2 * state.loss_scale, 0


def _refuse(course: Course, work: Work, state: State, losses: Losses, norm: float) -> Told:
    """Leave an update out; raise NonFiniteLossError if it is one too many."""
    is_finite = all(math.isfinite(value) for value in losses.raw.values())
    if is_finite and state.loss_scale > 1:  # a gradient too large for fp16 at this scale
        state.loss_scale, state.steps_at_scale = state.loss_scale / 2, 0
        message = f"a gradient overflowed fp16; the loss is now scaled by {state.loss_scale:g}"
        return {"split": "refused", "message": message}
    state.refused += 1
    state.refused_in_a_row += 1
    examples = [course.parts.train.example_ids[row] for row in work.rows]
    error = _not_finite(losses, norm, examples)
    if state.refused_in_a_row >= course.settings.max_non_finite:
        raise error
    return {
        "split": "refused",
        "message": str(error),
        "in_a_row": state.refused_in_a_row,
        "examples": tuple(examples[:_NAMED]),
    }


def level_record(name: str, losses: Losses, state: State) -> LevelRecord:
    """What a step's record says of a level."""
    raw, weight = losses.raw[name], losses.weights[name]
    more: dict[str, Any] = {}
    if state.factors:
        more["factor"] = state.factors[name]
    if losses.level_norms:
        norm = losses.level_norms[name]
        more["grad_norm"] = norm if math.isfinite(norm) else None
    return LevelRecord(raw=raw, weight=weight, weighted=weight * raw, **more)


def _not_finite(losses: Losses, norm: float, example_ids: list[str]) -> NonFiniteLossError:
    levels = ", ".join(f"{name} {value:g}" for name, value in losses.raw.items())
    more = " ..." if len(example_ids) > _NAMED else ""
    return NonFiniteLossError(
        "a loss or gradient is not finite; the update was refused",
        where=f"examples {', '.join(example_ids[:_NAMED])}{more}",
        expected="finite numbers",
        found=f"{levels}, gradient norm {norm:g}",
        advice="Lower learning_rate, or look at these texts.",
    )
