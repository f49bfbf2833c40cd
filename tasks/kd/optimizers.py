"""AdamW with its weight-decay groups, and the learning rate of each step."""

from __future__ import annotations

import math

import torch

from tasks.kd.params import Optimizer

_NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight")


def new_optimizer(
    module: torch.nn.Module, settings: Optimizer, learning_rate: float
) -> torch.optim.Optimizer:
    """Fused AdamW; biases and norms are not decayed."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in named if not name.endswith(_NO_DECAY)],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for name, p in named if name.endswith(_NO_DECAY)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


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
