"""The legend of shapes, and a check that names the tensor whose shape is wrong.

B examples, T tokens, D width, H heads, K head width, C classes, L layers, N negatives, E edges of
a span. A name such as `student_BTD` spells its axes.
"""

from __future__ import annotations

import torch

from tasks.kd.errors import ShapeError


def require_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise ShapeError unless the tensor has exactly the expected shape."""
    if tuple(tensor.shape) != expected:
        raise ShapeError(
            f"{name} has the wrong shape", expected=expected, found=tuple(tensor.shape)
        )
