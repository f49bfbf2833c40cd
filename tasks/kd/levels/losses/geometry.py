"""Hidden level: how the tokens of one example stand to one another, on either side.

B examples, T tokens, P points, D width. `mask_BT` is bool, true at real tokens; what stands at
padding is not read. All but `gram` compare states of unequal widths as they are.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from tasks.kd.levels.losses.numerics import (
    TINY,
    blank,
    count_pairs,
    count_tokens,
    pairs_of,
    precise_pair,
    product,
    require_states,
)
from tasks.kd.totals import Total

# Of an example, in `rkd_angle`: 32³ cosines per example.
ANGLE_TOKENS = 32


def gram(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    mask_BT: torch.Tensor,
) -> Total:
    """Squared error of G = H_aᵀ H_b / n between two layers, averaged over G; the count is examples.

    FSP matrices (Yim et al., A Gift from Knowledge Distillation, CVPR 2017), the n real tokens in
    place of pixels. Each side is (states of layer a, states of layer b), [B, T, D];
    both sides' widths must be the same, layer by layer. Raises ShapeError for shapes that differ.
    """
    for own, theirs in zip(student, teacher, strict=True):
        require_states(own, theirs, mask_BT)
    lengths_B = mask_BT.sum(1).clamp_min(1)[:, None, None]
    own, theirs = (
        product(blank(first, mask_BT).mT, blank(second, mask_BT)) / lengths_B
        for first, second in zip(
            *(precise_pair(*pair) for pair in zip(student, teacher, strict=True)), strict=True
        )
    )
    return Total((own - theirs).square().mean((1, 2)).sum(), mask_BT.shape[0])


def nst(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, mask_BT: torch.Tensor) -> Total:
    """Squared error of H Hᵀ / D, summed over pairs of real tokens; the count is token pairs.

    Neuron selectivity transfer (arXiv:1707.01219), which matches what tokens have in common, in
    TextBrewer's form for encoders; widths may differ. Raises ShapeError if B or T differ.
    """
    require_states(student_BTD, teacher_BTD, mask_BT, same_width=False)
    own, theirs = (
        product(states, states.mT) / states.shape[-1]
        for states in _blanked(student_BTD, teacher_BTD, mask_BT)
    )
    return Total((own - theirs).square().sum(), count_pairs(mask_BT))


def cka(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, mask_BT: torch.Tensor) -> Total:
    """1 - linear CKA of an example's tokens, summed over examples; the count is examples.

    Kornblith et al. (arXiv:1905.00414), equations 3 and 4, centred over that example's real
    tokens; widths may differ, and rotations and scale do not matter. An example of one token has
    nothing to compare and adds 0; one whose tokens are all alike on one side adds 1. Raises
    ShapeError if B or T differ.

    Differs from use over a batch of pooled vectors, whose value depends on the batch.
    """
    require_states(student_BTD, teacher_BTD, mask_BT, same_width=False)
    own, theirs = (
        _centred_kernel(states, mask_BT) for states in _blanked(student_BTD, teacher_BTD, mask_BT)
    )
    norms_B = torch.linalg.vector_norm(own, dim=(1, 2)) * torch.linalg.vector_norm(
        theirs, dim=(1, 2)
    )
    alike_B = (own * theirs).sum((1, 2)) / norms_B.clamp_min(TINY)
    loss_B = (1 - alike_B).masked_fill(mask_BT.sum(1) < 2, 0)
    return Total(loss_B.sum(), mask_BT.shape[0])


def procrustes(
    student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, mask_BT: torch.Tensor
) -> Total:
    """The least ‖H_S R - H_T‖² over orthogonal R, one R per example; the count is tokens.

    Averaged over channels of the wider side and summed over real tokens. Schönemann (1966) solves
    it by a singular value decomposition; Bhattarai et al. (arXiv:2509.25253) distil with it. If
    the widths differ, R turns the narrower side into the wider (orthonormal rows), which is the
    same as to fill the narrower up with zeros. Raises ShapeError if B or T differ.

    R is computed without gradient. The gradient is exact all the same: at the least value, a
    small change of R changes nothing, so only the path through H_S counts; and the derivative of
    a decomposition, infinite where singular values are equal, is never needed.

    Differs from the paper: one R per example (not per batch), squared, neither centred nor scaled.
    """
    require_states(student_BTD, teacher_BTD, mask_BT, same_width=False)
    student, teacher = _blanked(student_BTD, teacher_BTD, mask_BT)
    rotation = _best_rotation(student.detach(), teacher.detach())
    if student.shape[2] <= teacher.shape[2]:
        error = product(student, rotation) - teacher
    else:
        error = student - product(teacher, rotation.mT)
    return Total(error.square().sum() / error.shape[2], count_tokens(mask_BT))


def rkd_distance(
    student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, mask_BT: torch.Tensor
) -> Total:
    """Huber loss of the distances between an example's tokens, each side's mean distance being 1.

    Relational knowledge distillation (arXiv:1904.05068), the distance-wise loss; the mean is over
    the example's pairs of different tokens. Summed over all pairs of real tokens, a token with
    itself included, as in the authors' code; the count is token pairs. Widths may differ. An
    example of one token adds 0. Raises ShapeError if B or T differ.

    Differs from the paper: the points are the tokens of one example, not the pooled vectors of a
    batch, whose mean distance, and so the loss, depends on how the batch is split.
    """
    require_states(student_BTD, teacher_BTD, mask_BT, same_width=False)
    own, theirs = (
        _relative_distances(states, mask_BT)
        for states in _blanked(student_BTD, teacher_BTD, mask_BT)
    )
    total = functional.smooth_l1_loss(own, theirs, reduction="sum")
    return Total(total, count_pairs(mask_BT))


def rkd_angle(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, mask_BT: torch.Tensor) -> Total:
    """Huber loss of the cosines of the angles that an example's tokens form, three by three.

    Relational knowledge distillation (arXiv:1904.05068), the angle-wise loss. The points are at
    most `ANGLE_TOKENS` real tokens of the example, evenly spread over it, so that memory stays
    bounded; the sum is over all ordered triplets of them, in which a token may stand twice (its
    angle is 0 on both sides then), as in the authors' code. The count is triplets. Widths may
    differ. Raises ShapeError if B or T differ.

    Differs from the paper: the points are the tokens of one example, not the pooled vectors of a
    batch, so that the loss does not depend on how the batch is split.
    """
    require_states(student_BTD, teacher_BTD, mask_BT, same_width=False)
    places_BP, chosen_BP = _spread(mask_BT)
    own, theirs = (
        _angles(states.gather(1, places_BP[:, :, None].expand(-1, -1, states.shape[2])), chosen_BP)
        for states in _blanked(student_BTD, teacher_BTD, mask_BT)
    )
    total = functional.smooth_l1_loss(own, theirs, reduction="sum")
    return Total(total, int(chosen_BP.sum(1).pow(3).sum()))


def _blanked(
    student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = precise_pair(student_BTD, teacher_BTD)
    return blank(student, mask_BT), blank(teacher, mask_BT)


def _centred_kernel(states_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """X Xᵀ of the centred tokens, scaled to ‖X‖ = 1 so that no square over- or underflows."""
    lengths_B = mask_BT.sum(1).clamp_min(1)[:, None, None]
    means = states_BTD.sum(1, keepdim=True) / lengths_B
    centred = blank(states_BTD - means, mask_BT)
    norms = torch.linalg.vector_norm(centred, dim=(1, 2), keepdim=True)
    centred = centred / norms.clamp_min(TINY)
    return product(centred, centred.mT)


def _best_rotation(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor) -> torch.Tensor:
    """[B, D_S, D_T]: U Vᵀ of the decomposition of H_Sᵀ H_T.

    By way of the tokens' own subspaces: for T tokens of width 768 it decomposes T × T, not
    768 × 768. Outside those subspaces R is 0 instead of any orthogonal map, which no state sees.
    """
    student_basis, student_part = torch.linalg.qr(student_BTD.mT)
    teacher_basis, teacher_part = torch.linalg.qr(teacher_BTD.mT)
    # Non-finite states must reach the loss and be named there, not stop the decomposition.
    core = product(student_part, teacher_part.mT).nan_to_num(0, 0, 0)
    left, _, right = torch.linalg.svd(core, full_matrices=False)
    return product(product(student_basis, product(left, right)), teacher_basis.mT)


def _relative_distances(states_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, T] distances of tokens divided by their example's mean; 0 at padding."""
    # The form by matrix products loses small distances to rounding.
    distances = torch.cdist(
        states_BTD, states_BTD, compute_mode="donot_use_mm_for_euclid_dist"
    ).masked_fill(~pairs_of(mask_BT), 0)
    lengths_B = mask_BT.sum(1)
    means_B = distances.sum((1, 2)) / (lengths_B * (lengths_B - 1)).clamp_min(1)
    return distances / means_B.clamp_min(TINY)[:, None, None]


def _spread(mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places [B, P] of at most ANGLE_TOKENS real tokens, first to last, and which of them count."""
    lengths_B1 = mask_BT.sum(1, keepdim=True)
    wanted_B1 = lengths_B1.clamp_max(ANGLE_TOKENS)
    number_1P = torch.arange(min(ANGLE_TOKENS, mask_BT.shape[1]), device=mask_BT.device)[None]
    # Real tokens need not come first: the n-th of them is where the running count reaches n.
    nth_BP = (number_1P * lengths_B1) // wanted_B1.clamp_min(1)
    chosen_BP = number_1P < wanted_B1
    running_BT = mask_BT.cumsum(1)
    places_BP = torch.searchsorted(running_BT, (nth_BP + 1).clamp_max(lengths_B1))
    return places_BP.clamp_max(mask_BT.shape[1] - 1), chosen_BP


def _angles(points_BPD: torch.Tensor, chosen_BP: torch.Tensor) -> torch.Tensor:
    """[B, P, P, P]: cosine at the second point between the first and the third; 0 if one is not."""
    towards_BPPD = points_BPD[:, None] - points_BPD[:, :, None]  # [b, at, to]
    squares = towards_BPPD.square().sum(-1, keepdim=True)
    # The square root of 0, of a point to itself, has no gradient: it is never taken.
    norms = torch.where(squares > 0, squares, 1).sqrt()
    directions = towards_BPPD / norms
    cosines = product(directions, directions.mT)  # [b, at, to, to]
    seen = chosen_BP[:, :, None, None] & chosen_BP[:, None, :, None] & chosen_BP[:, None, None]
    return cosines.masked_fill(~seen, 0)
