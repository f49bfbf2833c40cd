"""Hidden level: the student's hidden states against the teacher's.

B examples, T tokens, D width, N negatives. `mask_BT` is bool, true at real tokens; what stands at
padding is not read. States come already projected where a loss needs equal widths. With
`each=True`, where a loss has it, the sum is not over the examples but [B], each one's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tasks.kd.errors import ShapeError
from tasks.kd.levels.losses.numerics import (
    count_tokens,
    pool,
    precise_pair,
    product,
    require_axes,
    require_states,
    sum_examples,
    sum_tokens,
)
from tasks.kd.shapes import require_shape
from tasks.kd.totals import Total

# BERT's and MobileBERT's; torch's own 1e-5 would change states of small variance.
LAYER_NORM_EPSILON = 1e-12


# --- token by token, same width ------------------------------------------------------------------


def mse(
    student_BTD: torch.Tensor,
    teacher_BTD: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    deviation_D: torch.Tensor | None = None,
    each: bool = False,
) -> Total:
    """Squared error, averaged over channels and summed over real tokens; the count is tokens.

    TinyBERT (arXiv:1909.10351), equation 8; the student's states come already projected.
    `mask_BT` is true at real tokens. With `deviation_D`, the teacher's standard deviation per
    channel, each channel's error is divided by it, so that a few channels of large scale do not
    decide the loss. Raises ShapeError for shapes that differ.

    Differs from the authors' code, which averages over padding as well.
    """
    require_states(student_BTD, teacher_BTD, mask_BT)
    student, teacher = precise_pair(student_BTD, teacher_BTD)
    scale_D = student.new_ones(()).expand(student.shape[2])
    if deviation_D is not None:
        require_shape("deviation", deviation_D, (student.shape[2],))
        scale_D = 1 / deviation_D.to(student.dtype)
    if each:
        error = (student - teacher)[mask_BT] * scale_D
        return Total(sum_tokens(error.square().mean(-1), mask_BT, each=True), error.shape[0])
    apply: Any = _SquaredError.apply
    total: torch.Tensor = apply(student, teacher, mask_BT, scale_D)
    return Total(total / student.shape[2], count_tokens(mask_BT))


class _SquaredError(torch.autograd.Function):
    """Sum of ((student - teacher) · scale)² over real tokens.

    As a function of its own, since it is the loss of most steps: autograd's own chain of gather,
    difference, quotient and square reads and writes the states ten times, this one four times
    (measured: 2.4 against 6.8 ms for 32 texts of 60 tokens, 384 wide, on one core).
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_BTD: torch.Tensor,
        teacher_BTD: torch.Tensor,
        mask_BT: torch.Tensor,
        scale_D: torch.Tensor,
    ) -> torch.Tensor:
        error_BTD = (student_BTD - teacher_BTD).mul_(scale_D)
        error_BTD.masked_fill_(~mask_BT[:, :, None], 0)
        ctx.save_for_backward(error_BTD, scale_D)
        flat = error_BTD.flatten()
        return torch.dot(flat, flat)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> Any:
        error_BTD, scale_D = ctx.saved_tensors
        slope_BTD = error_BTD * (2 * slopes[0] * scale_D)
        of_teacher = -slope_BTD if ctx.needs_input_grad[1] else None
        return slope_BTD, of_teacher, None, None


def cosine(
    student_BTD: torch.Tensor,
    teacher_BTD: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    each: bool = False,
) -> Total:
    """1 - cosine of the two states, summed over real tokens; the count is tokens.

    DistilBERT (arXiv:1910.01108), section 3, there for the last layer. It does not mind norms; a
    state of zeros counts 1. Raises ShapeError for shapes that differ.
    """
    student, teacher = _real_tokens(student_BTD, teacher_BTD, mask_BT)
    cosines = functional.cosine_similarity(student, teacher, dim=-1)
    return Total(sum_tokens(1 - cosines, mask_BT, each=each), student.shape[0])


def layer_norm_mse(
    student_BTD: torch.Tensor,
    teacher_BTD: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    each: bool = False,
) -> Total:
    """Squared error of layer-normed states, averaged over channels; the count is tokens.

    MobileBERT's feature map transfer (arXiv:2004.02984); both sides go through layer norm
    without weights. Raises ShapeError for shapes that differ.

    Differs from the authors' code: padding is left out, and the factor 100 and the transfer of
    mean and variance are left to weights and other levels.
    """
    student, teacher = (
        functional.layer_norm(states, states.shape[-1:], eps=LAYER_NORM_EPSILON)
        for states in _real_tokens(student_BTD, teacher_BTD, mask_BT)
    )
    error = (student - teacher).square().mean(-1)
    return Total(sum_tokens(error, mask_BT, each=each), student.shape[0])


def cls_mse(
    student_BTD: torch.Tensor,
    teacher_BTD: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    normalised: bool,
    each: bool = False,
) -> Total:
    """Squared error of the first token's states, averaged over channels; the count is examples.

    PKD (arXiv:1908.09355), equation 7, which normalises each state to length 1; its tuned runs on
    the large data sets did not. T may be 1, where only first tokens were kept. Raises ShapeError
    for shapes that differ, or if a first token is padding.

    Differs from the paper, as its authors' code does: a mean over channels, not a sum.
    """
    require_states(student_BTD, teacher_BTD, mask_BT)
    if not bool(mask_BT[:, 0].all()):
        raise ShapeError("an example begins with padding", expected="a first token that is real")
    return _vectors_mse(student_BTD[:, 0], teacher_BTD[:, 0], normalised=normalised, each=each)


def pooled_mse(
    student_BTD: torch.Tensor,
    teacher_BTD: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    normalised: bool,
    each: bool = False,
) -> Total:
    """Squared error of the mean of the real tokens' states, averaged over channels.

    RAIL-KD (arXiv:2109.10164), section 3, which normalises each mean to length 1. The count is
    examples. Raises ShapeError for shapes that differ.

    Differs from the authors' code: padding does not enter the means, the student's side alone is
    projected (theirs projects both to 128 channels, and may shrink the teacher's to nothing), and
    it is a mean over channels, not a sum.
    """
    require_states(student_BTD, teacher_BTD, mask_BT)
    own, theirs = (pool(states, mask_BT) for states in precise_pair(student_BTD, teacher_BTD))
    return _vectors_mse(own, theirs, normalised=normalised, each=each)


# --- one vector per example ----------------------------------------------------------------------


def contrastive(
    student_BD: torch.Tensor,
    teacher_BD: torch.Tensor,
    negatives_ND: torch.Tensor,
    *,
    temperature: float,
    excluded_BN: torch.Tensor | None = None,
) -> Total:
    """InfoNCE: -log of the teacher's own vector's share among it and N negatives; by cosine.

    CoDIR (arXiv:2009.14167); the vectors are pooled, and projected where widths differ. Summed
    over examples; the count is examples. `negatives_ND` are teacher vectors of other examples, the
    same for any split of the batch; where `excluded_BN` (bool) is true, a negative is left out
    for that example, since it is the example itself or its copy. Raises ShapeError if shapes
    differ.

    Differs from the paper, whose negatives are drawn from a bank that training fills: here the
    bank is given (it may be the teacher cache) and all of it is used.
    """
    require_axes("student vectors", student_BD, "BD")
    require_shape("teacher vectors", teacher_BD, tuple(student_BD.shape))
    require_axes("negatives", negatives_ND, "ND")
    require_shape("negatives", negatives_ND, (negatives_ND.shape[0], student_BD.shape[1]))
    student, teacher = (
        functional.normalize(vectors) for vectors in precise_pair(student_BD, teacher_BD)
    )
    bank = functional.normalize(negatives_ND.to(student.dtype))
    scores_BN = product(student, bank.mT) / temperature
    if excluded_BN is not None:
        require_shape("excluded negatives", excluded_BN, tuple(scores_BN.shape))
        scores_BN = scores_BN.masked_fill(excluded_BN, torch.finfo(scores_BN.dtype).min)
    own_B1 = (student * teacher).sum(-1, keepdim=True) / temperature
    shares_B = torch.log_softmax(torch.cat([own_B1, scores_BN], dim=1), dim=1)[:, 0]
    return Total(-shares_B.sum(), student_BD.shape[0])


def _vectors_mse(
    student_BD: torch.Tensor, teacher_BD: torch.Tensor, *, normalised: bool, each: bool
) -> Total:
    student, teacher = precise_pair(student_BD, teacher_BD)
    if normalised:
        student, teacher = functional.normalize(student), functional.normalize(teacher)
    error_B = (student - teacher).square().mean(-1)
    return Total(sum_examples(error_B, each=each), student.shape[0])


def _real_tokens(
    student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides' real tokens, one under the other, [sum of n_i, D]."""
    require_states(student_BTD, teacher_BTD, mask_BT)
    return precise_pair(student_BTD[mask_BT], teacher_BTD[mask_BT])
