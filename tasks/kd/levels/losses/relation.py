"""Relation level: how a layer's queries, keys or values relate to each other.

B examples, T tokens, D width (all heads side by side), H relation heads, K width of one.
"""

from __future__ import annotations

import math

import torch

from tasks.kd.errors import ShapeError
from tasks.kd.levels.losses.numerics import (
    blank,
    count_tokens,
    masked_kl,
    masked_log_softmax,
    pairs_of,
    precise_pair,
    product,
    require_states,
)
from tasks.kd.totals import Total


def relation_kl(
    student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, mask_BT: torch.Tensor, *, heads: int
) -> Total:
    """KL(teacher ‖ student) of softmax(X Xᵀ / √K) in each relation head, averaged over heads.

    MiniLMv2 (arXiv:2012.15828), multi-head self-attention relations. X are queries, keys or values
    (each a relation of its own), heads side by side, cut anew into `heads` relation heads of
    K = D / heads channels. Summed over the queries that are real tokens; the count is tokens; the
    softmax is over real keys; what stands at padding is not read. Widths may differ. MiniLM's
    value relation (arXiv:2002.10957) is this on values with the attention's own number of heads.
    Raises ShapeError if B or T differ, or if a width does not divide into `heads`.
    """
    require_states(student_BTD, teacher_BTD, mask_BT, same_width=False)
    pairs = pairs_of(mask_BT)[:, None]
    sides = zip(("student", "teacher"), precise_pair(student_BTD, teacher_BTD), strict=True)
    log_student, log_teacher = (
        masked_log_softmax(_relations(blank(states, mask_BT), heads, side), pairs)
        for side, states in sides
    )
    total = masked_kl(log_student, log_teacher, pairs)
    return Total(total / heads, count_tokens(mask_BT))


def _relations(states_BTD: torch.Tensor, heads: int, side: str) -> torch.Tensor:
    """[B, H, T, T]: scaled dot products within each relation head."""
    width = states_BTD.shape[2]
    if heads < 1 or width % heads:
        raise ShapeError(
            f"relation heads do not divide the {side}'s width",
            expected=f"a width that {heads} divides",
            found=width,
        )
    heads_BHTK = states_BTD.unflatten(2, (heads, width // heads)).transpose(1, 2)
    return product(heads_BHTK, heads_BHTK.mT) / math.sqrt(width // heads)
