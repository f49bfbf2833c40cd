"""The gradients of each level, as they reach the optimizer, in however many processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.kd.processes import ranks
from tasks.kd.training.loop import train
from tests.makers.levels import EVERY_LEVEL, phase_with
from tests.makers.training_setup import make_habits, make_parts, make_settings, without_dropout

# 13 examples in batches of 8: of the last five, three ranks have 2, 2 and 1.
EXAMPLES = 13


def noting(objective: torch.nn.Module, steps: list[dict[str, torch.Tensor]]) -> Callable[..., None]:
    """A step of the optimizer that leaves the weights alone and keeps their gradients."""

    def step(*_: object) -> None:
        named = objective.named_parameters()
        steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    return step


def save_gradients(folder: str, micro_batch_tokens: int) -> None:
    """For each level, the gradients of both steps of an epoch whose updates are not made."""
    torch.set_num_threads(1)
    rank, found = ranks.rank(), dict[str, torch.Tensor]()
    for fields in EVERY_LEVEL:
        name = f"{fields['level']}.{fields['loss']}"
        parts = without_dropout(make_parts((phase_with(fields),), examples=EXAMPLES))
        steps: list[dict[str, torch.Tensor]] = []
        settings = make_settings(micro_batch_tokens=micro_batch_tokens, max_grad_norm=1e9)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", noting(parts.objective, steps))
            train(settings, parts, make_habits(Path(folder) / name))
        assert len(steps) == 2
        for number, gradients in enumerate(steps):
            found |= {f"{name}/{number}/{weight}": value for weight, value in gradients.items()}
    save_file(found, Path(folder) / f"gradients-{rank}-of-{ranks.world_size()}.safetensors")
