"""AdamW and its weight-decay groups, the learning rate, the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tasks.kd.params import Optimizer

_NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight")
_FUSED_ON = ("cpu", "cuda")

Average = dict[str, torch.Tensor]


def new_optimizer(
    module: torch.nn.Module, settings: Optimizer, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW, fused where torch has it; biases and norms are not decayed."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
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
