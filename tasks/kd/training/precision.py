"""How a model's passes are run: precision, dropout, layers that are recomputed or compiled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch._functorch import config as functorch

from tasks.kd.data.examples.trainable import Trainable
from tasks.kd.encoders.shape import layers_of
from tasks.kd.errors import ParamsError
from tasks.kd.recipe.compute import Compute
from tasks.kd.training.dropout import quick_dropout

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_COMPILERS = ("g++", "clang++", "c++")

# fp16: gradients below 6e-8 would be lost, so the loss is multiplied by a scale, which is halved
# when a gradient overflows and doubled after so many updates without (as torch's GradScaler).
FIRST_SCALE = 2.0**16
SCALE_GROWS_AFTER = 2000


def first_scale(compute: Compute) -> float:
    """The factor of the loss at the start of a training: 1 but for fp16."""
    return FIRST_SCALE if compute.mixed_precision == "fp16" else 1.0


@contextmanager
def forward_pass(compute: Compute, device: torch.device) -> Iterator[None]:
    """While open, forward passes run in the recipe's precision, with quick dropout.

    The levels stay in float32: they lift what they compare and keep their own products out of
    autocast.
    """
    kind = _TYPES.get(compute.mixed_precision)
    lower = torch.autocast(device.type, dtype=kind) if kind else nullcontext()
    with lower, nullcontext() if compute.compile else quick_dropout(device):
        yield


def require_means(compute: Compute, objective: Trainable, device: torch.device) -> None:
    """Raise ParamsError for a precision or a compilation that this machine or recipe can't have."""
    kind = compute.mixed_precision
    if kind == "fp16" and device.type == "cpu":
        raise ParamsError(
            "fp16 needs a GPU", where="compute.mixed_precision", expected="no or bf16", found=kind
        )
    if kind == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ParamsError(
            "this GPU does not compute in bf16",
            where="compute.mixed_precision",
            expected="no or fp16",
            found=kind,
        )
    if not compute.compile:
        return
    if device.type == "cpu" and not any(shutil.which(name) for name in _COMPILERS):
        raise ParamsError(
            "torch.compile needs a C++ compiler on a CPU",
            where="compute.compile",
            expected=f"one of {', '.join(_COMPILERS)}",
            found="none",
        )
    if inside := sorted(objective.compared_inside):
        raise ParamsError(
            "what a compiled layer computes inside can't be compared",
            where="compute.compile",
            expected="levels prediction and hidden only",
            found=", ".join(inside),
        )


@contextmanager
def prepared(
    student: torch.nn.Module, compute: Compute, *, measured: bool = False
) -> Iterator[None]:
    """While open, the model's layers are recomputed or compiled as the recipe says.

    `measured`: a pass may be followed by several backward passes, one for each level.
    """
    model: Any = student
    layers = layers_of(student)
    if compute.gradient_checkpointing:
        options: dict[str, Any] = {"use_reentrant": False}
        if not compute.compile:
            # Of a layer's pass and of its pass again: to drop the same, both draw alike.
            again = quick_dropout(next(student.parameters()).device)
            options["context_fn"] = lambda: (nullcontext(), again)
        model.activation_checkpointing_enable(options)
    if compute.compile:
        for layer in layers:
            # Of the layer's own forward, so that hooks on the layer are run outside of it.
            layer.forward = torch.compile(layer.forward, dynamic=True)
    # A compiled backward pass otherwise lets go of what a second one would need.
    keeps = functorch.patch(donated_buffer=False) if compute.compile and measured else nullcontext()
    try:
        with keeps:
            yield
    finally:
        if compute.gradient_checkpointing:
            model.activation_checkpointing_disable()
        if compute.compile:
            for layer in layers:
                del layer.forward
