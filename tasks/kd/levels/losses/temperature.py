"""Temperatures of examples, by how well the student does on each. Without gradient.

B examples, C classes. Both rules are of Preparing Lessons (arXiv:1911.07471), in TextBrewer's form,
T + (c - w) · slope: w is large where the student has most to learn, and the temperature low there.
They differ from TextBrewer in c, a number of the recipe: there it is the mean of w over the batch,
so that an example's loss depends on how the batch is split. As there, no example has its own T² in
the loss, which would make those of low temperature count less; the base's T² is common to all.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from tasks.kd.levels.losses.numerics import precise, precise_pair
from tasks.kd.shapes import require_shape

# Below it a softmax is one-hot, and a rule that went below 0 would turn the teacher around.
LEAST = 0.1
# Keeps CWSM's weight finite; TextBrewer's.
_MARGIN = 1e-3


@torch.no_grad()
def flsw(
    student_BC: torch.Tensor,
    teacher_BC: torch.Tensor,
    *,
    base: float,
    slope: float,
    centre: float,
    power: float,
) -> torch.Tensor:
    """Focal style: w = (1 - cosine of both logits)^power; temperatures [B], at least `LEAST`.

    Raises ShapeError if the logits differ.
    """
    require_shape("teacher logits", teacher_BC, tuple(student_BC.shape))
    cosine_B = functional.cosine_similarity(*precise_pair(student_BC, teacher_BC), dim=-1)
    weight_B = (1 - cosine_B).clamp_min(0).pow(power)
    return (base + (centre - weight_B) * slope).clamp_min(LEAST)


@torch.no_grad()
def cwsm(student_BC: torch.Tensor, *, base: float, slope: float, centre: float) -> torch.Tensor:
    """By confidence: w = 1 / the student's highest probability; [B], at least `LEAST`."""
    highest_B = precise(student_BC).softmax(-1).max(-1).values
    return (base + (centre - 1 / (highest_B + _MARGIN)) * slope).clamp_min(LEAST)
