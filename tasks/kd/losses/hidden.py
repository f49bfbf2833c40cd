"""Hidden level: the student's hidden states against the teacher's."""

from __future__ import annotations

import torch

from tasks.kd.shapes import require_shape
from tasks.kd.totals import Total


def mse(
    student_BTD: torch.Tensor,
    teacher_BTD: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    deviation_D: torch.Tensor | None = None,
) -> Total:
    """Squared error, averaged over channels and summed over real tokens; the count is tokens.

    TinyBERT (arXiv:1909.10351), equation 8; the student's states come already projected.
    `mask_BT` is true at real tokens. With `deviation_D`, the teacher's standard deviation per
    channel, each channel's error is divided by it, so that a few channels of large scale do not
    decide the loss. Raises ShapeError for shapes that differ.

    Differs from the authors' code, which averages over padding as well.
    """
    require_shape("teacher hidden states", teacher_BTD, tuple(student_BTD.shape))
    require_shape("attention mask", mask_BT, tuple(student_BTD.shape[:2]))
    error = (student_BTD.float() - teacher_BTD.float())[mask_BT]
    if deviation_D is not None:
        require_shape("deviation", deviation_D, (student_BTD.shape[2],))
        error = error / deviation_D.float()
    return Total(error.square().sum() / student_BTD.shape[2], error.shape[0])
