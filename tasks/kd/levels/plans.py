"""Layers that choose one another: how much each pair of them counts, for each example.

Each example chooses for itself. Over a batch, as in the papers' code, what an example is worth
would depend on how the batch was split.

B examples, S student layers, L teacher layers, T tokens, D width.
"""

from __future__ import annotations

import math

import torch

from tasks.kd.recipe.maps import ChosenMap

# Sinkhorn's smoothing, as a share of the mean cost, and its rounds.
_SMOOTHING, _ROUNDS = 0.05, 40


def shares(layer_map: ChosenMap, costs_BSL: torch.Tensor) -> torch.Tensor:
    """How much of each pair counts for each example [B, S, L], by what the pairs cost it.

    `transport`: 1 in all, S and L layers each with an equal share. `nearest`: 1 per teacher layer.
    Without gradient.
    """
    return (transport if layer_map == "transport" else nearest)(costs_BSL.detach())


@torch.no_grad()
def transport(costs_BSL: torch.Tensor) -> torch.Tensor:
    """The plan [B, S, L] of least cost that gives each layer an equal share; it sums to 1.

    BERT-EMD (arXiv:2010.06133), equations 6 to 8, by Sinkhorn's algorithm (Cuturi,
    arXiv:1306.0895) in logarithms; what its rounds leave of the shares is made exact as by
    Altschuler et al. (arXiv:1705.09634), algorithm 2. Costs are not negative; those of an example
    may all be 0.

    Differs from the authors' code: a plan per example, not per batch; layers keep equal weights
    instead of weights that follow the costs in state that no checkpoint holds.
    """
    scale = costs_BSL.mean((1, 2), keepdim=True).clamp_min(torch.finfo(costs_BSL.dtype).tiny)
    logs = -costs_BSL / (_SMOOTHING * scale)
    students, teachers = costs_BSL.shape[1:]
    for _ in range(_ROUNDS):
        logs = logs - logs.logsumexp(2, keepdim=True) - math.log(students)
        logs = logs - logs.logsumexp(1, keepdim=True) - math.log(teachers)
    plan = logs.exp()
    plan = plan * (1 / students / plan.sum(2, keepdim=True)).clamp_max(1)
    plan = plan * (1 / teachers / plan.sum(1, keepdim=True)).clamp_max(1)
    # Rounding leaves a layer a hair too much as well: that is no lack, and their sum no divisor.
    lacking_BS1 = (1 / students - plan.sum(2, keepdim=True)).clamp_min(0)
    lacking_B1L = (1 / teachers - plan.sum(1, keepdim=True)).clamp_min(0)
    least = torch.finfo(plan.dtype).tiny
    return plan + lacking_BS1 / lacking_BS1.sum(1, keepdim=True).clamp_min(least) * lacking_B1L


@torch.no_grad()
def nearest(costs_BSL: torch.Tensor) -> torch.Tensor:
    """1 where a student layer is the nearest to a teacher layer, else 0; the lower of equal ones.

    CoFi (arXiv:2204.00408), section 3.2. Differs from the authors' code: each example chooses.
    """
    return torch.nn.functional.one_hot(costs_BSL.argmin(1), costs_BSL.shape[1]).mT.to(
        costs_BSL.dtype
    )


def mixture(student_BTD: torch.Tensor, teachers_BTLD: torch.Tensor) -> torch.Tensor:
    """[B, T, D]: the teacher's layers, each by its share in the softmax of h_S · h_T.

    ALP-KD (arXiv:2012.14022), equations 4 and 5, there for the first token alone. The shares have
    a gradient.
    """
    scores_BTL = torch.einsum("btd,btld->btl", student_BTD, teachers_BTLD)
    return torch.einsum("btl,btld->btd", scores_BTL.softmax(-1), teachers_BTLD)
