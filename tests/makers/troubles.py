"""Trainings that go wrong: too little memory, targets and answers that are no numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tasks.kd.training.course import Parts

Raise = Callable[[], Exception]


def with_memory_for(
    tokens: int, parts: Parts, error: Raise = MemoryError, *, backwards: bool = False
) -> Parts:
    """An objective that fails where a micro-batch holds more padded tokens than that."""
    forward = parts.objective.forward

    def limited(batch: Any, *arguments: Any) -> Any:
        totals = forward(batch, *arguments)
        if batch.input_ids_BT.numel() > tokens:
            if not backwards:
                raise error()
            for total in totals.values():
                total.sum.register_hook(fail)
        return totals

    def fail(_gradient: torch.Tensor) -> None:
        raise error()

    parts.objective.forward = limited  # type: ignore[assignment, method-assign]
    return parts


class Poisoned:
    """Targets that are not a number wherever one of some texts is asked for."""

    def __init__(self, parts: Parts, rows: Sequence[int]) -> None:
        self._targets = parts.targets
        self._texts = {parts.train.input_ids[row].tobytes() for row in rows}

    def fetch(self, input_ids: Any) -> dict[str, torch.Tensor]:
        is_bad = any(ids.tobytes() in self._texts for ids in input_ids)
        factor = float("nan") if is_bad else 1.0
        return {name: value * factor for name, value in self._targets.fetch(input_ids).items()}


def blind_on(parts: Parts, rows: Sequence[int]) -> Parts:
    """A student that has no finite answer to some dev texts; while it is trained, it has."""
    texts = {parts.dev.input_ids[row].tobytes() for row in rows}

    def spoil(module: Any, _inputs: Any, named: dict[str, Any], output: Any) -> None:
        lengths = named["attention_mask"].sum(1)
        for place, length in enumerate(lengths.tolist()):
            ids = named["input_ids"][place, :length].numpy().astype(np.int32)
            if not module.training and ids.tobytes() in texts:
                output.logits[place, 1] = float("nan")

    parts.objective.student.register_forward_hook(spoil, with_kwargs=True)
    return parts
