"""Attention level: the student's attention against the teacher's.

B examples, H heads, T tokens. Scores are before the softmax (q·k / √K), [B, H, query, key], with
padded keys not yet masked; a pair that a local window excludes holds -inf. `mask_BT` is bool, true
at real tokens; what stands at padding, as query or as key, is not read. With `each=True`, where a
loss has it, the sum is not over the examples but [B], each one's own.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from tasks.kd.errors import ParamsError, ShapeError
from tasks.kd.levels.losses.numerics import (
    count_pairs,
    count_tokens,
    masked_kl,
    masked_log_softmax,
    pairs_of,
    precise_pair,
    require_axes,
    require_mask,
    sum_examples,
)
from tasks.kd.shapes import require_shape
from tasks.kd.totals import Total

# How heads are compared: each with its own number, or the mean of the one side's with the other's.
Heads = Literal["each", "average"]


def scores_mse(
    student_BHTT: torch.Tensor,
    teacher_BHTT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    heads: Heads,
    each: bool = False,
) -> Total:
    """Squared error of the scores, averaged over heads, summed over pairs of real tokens.

    TinyBERT (arXiv:1909.10351), equation 7; the count is token pairs. Pairs that either side
    excludes by -inf add 0 and are counted. With `heads="average"`, the scores of each side are
    averaged over its heads first, so that the head counts may differ; a pair that any head
    excludes is excluded. Raises ShapeError for shapes that differ, ParamsError for other `heads`.

    Differs from the authors' code, where padding enters the mean, as zeros.
    """
    student, teacher = _require_scores(student_BHTT, teacher_BHTT, mask_BT, heads)
    if heads == "average":
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    seen = pairs_of(mask_BT)[:, None] & ~torch.isneginf(student) & ~torch.isneginf(teacher)
    error = student.masked_fill(~seen, 0) - teacher.masked_fill(~seen, 0)
    error_B = error.square().sum((1, 2, 3)) / error.shape[1]
    return Total(sum_examples(error_B, each=each), count_pairs(mask_BT))


def attention_kl(
    student_BHTT: torch.Tensor,
    teacher_BHTT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    heads: Heads,
) -> Total:
    """KL(teacher ‖ student) of the attention of each query, averaged over heads.

    MiniLM (arXiv:2002.10957) and MobileBERT (arXiv:2004.02984), attention transfer. Summed over
    the queries that are real tokens; the count is tokens. The softmax is over real keys. With
    `heads="average"`, the distributions of each side are averaged over its heads first, so that
    the head counts may differ. Raises ShapeError for shapes that differ or if the student's window
    excludes a pair that the teacher sees (the loss would be infinite), ParamsError for other
    `heads`.
    """
    student, teacher = _require_scores(student_BHTT, teacher_BHTT, mask_BT, heads)
    pairs = pairs_of(mask_BT)[:, None]
    log_student, student_sees = _attend(student, pairs, heads)
    log_teacher, teacher_sees = _attend(teacher, pairs, heads)
    outside = int((teacher_sees & ~student_sees).sum())
    if outside:
        raise ShapeError(
            "the student's window excludes what the teacher attends to",
            expected="a student window that holds the teacher's",
            found=f"{outside} pairs outside",
        )
    total = masked_kl(log_student, log_teacher, teacher_sees)
    return Total(total / log_student.shape[1], count_tokens(mask_BT))


def _attend(
    scores_BHTT: torch.Tensor, pairs: torch.Tensor, heads: Heads
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, averaged over heads if wanted, and where they are above zero."""
    sees = pairs & ~torch.isneginf(scores_BHTT)
    log = masked_log_softmax(scores_BHTT, sees)
    if heads == "each":
        return log, sees
    mean = log.logsumexp(1, keepdim=True) - math.log(log.shape[1])
    return mean, sees.any(1, keepdim=True)


def _require_scores(
    student_BHTT: torch.Tensor, teacher_BHTT: torch.Tensor, mask_BT: torch.Tensor, heads: Heads
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides' scores in one precision; ShapeError if they do not fit."""
    if heads not in get_args(Heads):
        raise ParamsError("unknown way to compare heads", expected=get_args(Heads), found=heads)
    require_axes("student attention scores", student_BHTT, "BHTT")
    require_axes("teacher attention scores", teacher_BHTT, "BHTT")
    examples, own_heads, tokens, _ = student_BHTT.shape
    require_shape("student attention scores", student_BHTT, (examples, own_heads, tokens, tokens))
    their_heads = own_heads if heads == "each" else teacher_BHTT.shape[1]
    require_shape("teacher attention scores", teacher_BHTT, (examples, their_heads, tokens, tokens))
    require_mask(mask_BT, (examples, tokens))
    return precise_pair(student_BHTT, teacher_BHTT)
