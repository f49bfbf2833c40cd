"""AdamW and its weight-decay groups, the learning rate, what is frozen, the moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tasks.kd.data.examples.trainable import TrainedPhase
from tasks.kd.encoders.pieces import pieces_of
from tasks.kd.encoders.shape import depth
from tasks.kd.errors import ParamsError
from tasks.kd.recipe.training import Optimizer

_NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight")
_FUSED_ON = ("cpu", "cuda")

Average = dict[str, torch.Tensor]


def new_optimizer(
    module: torch.nn.Module, settings: Optimizer, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW, fused where torch has it; biases and norms are not decayed.

    A weight without a gradient is left as it is by a step, and so are its moments.
    """
    named = list(module.named_parameters())
    groups = [
        {
            "params": [p for name, p in named if not name.endswith(_NO_DECAY)],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for name, p in named if name.endswith(_NO_DECAY)], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in _FUSED_ON for _, p in named)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)


def learning_rate(settings: Optimizer, peak: float, step: int, steps: int) -> float:
    """The rate of a phase's 0-based step: linear warm-up, then the recipe's schedule."""
    warmup = round(settings.warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    if settings.schedule == "linear":
        return peak * (1 - done)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def frozen_weights(student: torch.nn.Module, phase: TrainedPhase) -> list[torch.nn.Parameter]:
    """The weights of a student that a phase does not train.

    What all layers share (MPNet's and DeBERTa's positions) is trained with any of them; a pooler
    is of the head. Raises ParamsError for a layer that is not there.
    """
    if phase.trained_layers == "all":
        return []
    layers = range(depth(student) + 1)
    chosen = {layer for layer in phase.trained_layers if layer != "head"}
    if missing := sorted(chosen - set(layers)):
        raise ParamsError(
            "the student has no such layer to train",
            where=f"phase {phase.name}, trained_layers",
            expected=f"layers 0 to {layers[-1]}",
            found=", ".join(str(layer) for layer in missing),
        )
    trained = _weights_of(student, chosen)
    if "head" in phase.trained_layers:
        encoder = _weights_of(student, set(layers))
        trained |= {id(weight) for weight in student.parameters()} - encoder
    return [weight for weight in student.parameters() if id(weight) not in trained]


def _weights_of(student: torch.nn.Module, layers: set[int]) -> set[int]:
    """The identities of what those layers hold, 0 the embeddings, with what all layers share."""
    pieces = pieces_of(student, tuple(sorted(layers - {0})), embeddings=0 in layers)
    names = {name for weights in pieces.values() for name in weights}
    base: torch.nn.Module = student.base_model  # type: ignore[assignment]
    return {id(weight) for name, weight in base.named_parameters() if name in names}


@contextmanager
def frozen(weights: list[torch.nn.Parameter]) -> Iterator[None]:
    """While open, these weights get no gradient, so that no step changes or decays them."""
    held = [weight for weight in weights if weight.requires_grad]
    for weight in held:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)


def begin_average(module: torch.nn.Module) -> Average:
    """A moving average that has seen the weights as they are now."""
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


@torch.no_grad()
def update_average(average: Average, module: torch.nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights after a phase's 0-based step.

    At most `decay` of it stays, and (1 + n) / (10 + n) of it after n steps (as in TensorFlow's
    ExponentialMovingAverage), so that weights from before the training are soon forgotten.
    """
    stays = min(decay, (2 + step) / (11 + step))
    for name, weight in module.named_parameters():
        average[name].lerp_(weight, 1 - stays)


@contextmanager
def averaged(module: torch.nn.Module, average: Average) -> Iterator[None]:
    """While open, the module has the average for its weights; its own, bit by bit, afterwards."""
    own = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    _put(module, average)
    try:
        yield
    finally:
        _put(module, own)


@torch.no_grad()
def _put(module: torch.nn.Module, weights: Average) -> None:
    for name, weight in module.named_parameters():
        if name in weights:
            weight.copy_(weights[name])
