"""Prediction level: the student's logits of tokens and spans against labels or the teacher's.

B examples, T tokens, C classes, E edges of a span (start, end). Temperatures are above 0. Sums
are over real tokens or over examples, as the count is. No recipe names these losses yet.
"""

from __future__ import annotations

import torch

from tasks.kd.errors import ShapeError
from tasks.kd.levels.losses.numerics import (
    masked_kl,
    masked_log_softmax,
    precise,
    precise_pair,
    require_axes,
    require_mask,
)
from tasks.kd.levels.losses.prediction import NO_LABEL, kl, labels
from tasks.kd.shapes import require_shape
from tasks.kd.totals import Total


def token_labels(
    student_BTC: torch.Tensor, labels_BT: torch.Tensor, mask_BT: torch.Tensor
) -> Total:
    """Cross-entropy with each token's class, summed over real tokens; the count is tokens.

    `labels_BT` int64; -100 (special tokens, later parts of a word) adds nothing, and is counted
    as long as the mask holds it, since the count must be known from lengths alone. What is at
    padding is not read. Raises ShapeError if the shapes differ.
    """
    require_axes("student logits", student_BTC, "BTC")
    require_shape("labels", labels_BT, tuple(student_BTC.shape[:2]))
    require_mask(mask_BT, tuple(student_BTC.shape[:2]))
    return labels(student_BTC[mask_BT], labels_BT[mask_BT])


def token_kl(
    student_BTC: torch.Tensor,
    teacher_BTC: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    temperature: float,
) -> Total:
    """`kl` of each token's classes, summed over real tokens; the count is tokens.

    DistilBERT (arXiv:1910.01108) for masked language modelling; here for any class per token.
    Raises ShapeError if the shapes differ.
    """
    require_axes("student logits", student_BTC, "BTC")
    require_shape("teacher logits", teacher_BTC, tuple(student_BTC.shape))
    require_mask(mask_BT, tuple(student_BTC.shape[:2]))
    return kl(student_BTC[mask_BT], teacher_BTC[mask_BT], temperature=temperature)


def span_labels(
    student_BTE: torch.Tensor, positions_BE: torch.Tensor, mask_BT: torch.Tensor
) -> Total:
    """Cross-entropy with the tokens where the span starts and ends, averaged over the two.

    BERT (arXiv:1810.04805), section 4.2. The count is examples; the softmax is over real tokens
    alone. `positions_BE` int64 indices of tokens; -100 adds nothing and is counted. Raises
    ShapeError if the shapes differ or a position is at no real token.

    Differs from the authors' code, which gives padding a share of the softmax.
    """
    _require_span(student_BTE, mask_BT)
    examples, tokens, edges = student_BTE.shape
    require_shape("span labels", positions_BE, (examples, edges))
    unlabelled_BE = positions_BE == NO_LABEL
    places_BE = positions_BE.masked_fill(unlabelled_BE, 0)
    real_BE = mask_BT.gather(1, places_BE.clamp(0, tokens - 1))
    real_BE = real_BE & (places_BE >= 0) & (places_BE < tokens)
    if not bool((real_BE | unlabelled_BE).all()):
        raise ShapeError("a span's edge is at no real token")
    log_BET = masked_log_softmax(precise(student_BTE).transpose(1, 2), mask_BT[:, None, :])
    chosen_BE = log_BET.gather(2, places_BE[:, :, None])[:, :, 0].masked_fill(unlabelled_BE, 0)
    return Total(-chosen_BE.sum() / edges, examples)


def span_kl(
    student_BTE: torch.Tensor,
    teacher_BTE: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    temperature: float,
) -> Total:
    """`kl` over the tokens where a span starts and ends, averaged over the two.

    The count is examples. Both sides' softmax is over real tokens alone. Raises ShapeError if the
    shapes differ.
    """
    _require_span(student_BTE, mask_BT)
    require_shape("teacher logits", teacher_BTE, tuple(student_BTE.shape))
    examples, _, edges = student_BTE.shape
    allowed_BET = mask_BT[:, None, :].expand(-1, edges, -1)
    log_student, log_teacher = (
        masked_log_softmax(logits.transpose(1, 2) / temperature, allowed_BET)
        for logits in precise_pair(student_BTE, teacher_BTE)
    )
    divergence = masked_kl(log_student, log_teacher, allowed_BET)
    return Total(divergence * temperature**2 / edges, examples)


def _require_span(student_BTE: torch.Tensor, mask_BT: torch.Tensor) -> None:
    require_axes("student logits", student_BTE, "BTE")
    require_mask(mask_BT, tuple(student_BTE.shape[:2]))
