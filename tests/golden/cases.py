"""What the contract suite gives each loss. See tests/contracts/test_losses.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tasks.kd.levels import losses
from tasks.kd.levels.losses import geometry, hidden, prediction, relation, tokens
from tasks.kd.totals import Total


@dataclass(frozen=True)
class Case:
    """A loss with what it is given: `own`, `theirs` and more, all of B rows.

    `axes` are those of `own` that go over tokens, `their_axes` those of `theirs`. `rounding` is how
    far a sum may move when rows get longer, as matrix products then add in another order.
    """

    loss: Callable[..., Total]
    own: torch.Tensor
    theirs: torch.Tensor
    more: tuple[torch.Tensor, ...] = ()
    axes: tuple[int, ...] = ()
    their_axes: tuple[int, ...] = field(default=())
    zero_on_itself: bool = True
    rounding: float = 0.0


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """The same normal numbers for the same shape and seed."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).float()


def mask_of(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def windowed(scores: torch.Tensor, width: int) -> torch.Tensor:
    """-inf at keys further away than `width`."""
    tokens = torch.arange(scores.shape[-1])
    return scores.masked_fill((tokens[:, None] - tokens).abs() > width, -torch.inf)


def prediction_cases() -> dict[str, Case]:
    """Losses of logits."""
    own, theirs, classes = numbers(4, 6), numbers(4, 6, seed=1), torch.tensor([0, 1, 5, 2])
    several = (numbers(4, 6, seed=2) > 0).float()
    token_classes = torch.tensor([[-100, 1, 5, 0, 2], [3, -100, 0, 9, 9], [4] * 5, [2] * 5])
    edges, their_edges = numbers(4, 5, 2), numbers(4, 5, 2, seed=1)
    positions = torch.tensor([[1, 4], [0, 2], [0, 0], [-100, 3]])

    def of_logits(loss: Callable[..., Total], **options: float) -> Case:
        return Case(lambda s, t, _: loss(s, t, **options), own, theirs)

    def of_labels(loss: Callable[..., Total], labels: torch.Tensor) -> Case:
        return Case(lambda s, t, _: loss(s, t), own, labels, zero_on_itself=False)

    decoupled = {"temperature": 4.0, "target_weight": 1.0, "other_weight": 8.0}
    return {
        "labels": of_labels(prediction.labels, classes),
        "kl": of_logits(prediction.kl, temperature=3.0),
        "reverse_kl": of_logits(prediction.reverse_kl, temperature=3.0),
        **{
            f"jsd {beta}": of_logits(prediction.jsd, beta=beta, temperature=2.0)
            for beta in (0.0, 0.3, 1.0)
        },
        "dkd": Case(
            lambda s, t, _, k: prediction.dkd(s, t, k, **decoupled), own, theirs, more=(classes,)
        ),
        "dist": of_logits(prediction.dist, temperature=2.0),
        "logits_mse": of_logits(prediction.logits_mse),
        "bce": of_labels(prediction.bce, several),
        "bce_kl": of_logits(prediction.bce_kl, temperature=3.0),
        "regression": of_logits(prediction.regression),
        "token_labels": Case(
            tokens.token_labels,
            numbers(4, 5, 6),
            token_classes,
            axes=(1,),
            their_axes=(1,),
            zero_on_itself=False,
        ),
        "token_kl": Case(
            lambda s, t, m: tokens.token_kl(s, t, m, temperature=3.0),
            numbers(4, 5, 6),
            numbers(4, 5, 6, seed=1),
            axes=(1,),
            their_axes=(1,),
        ),
        "span_labels": Case(
            tokens.span_labels, edges, positions, axes=(1,), zero_on_itself=False, rounding=1e-6
        ),
        "span_kl": Case(
            lambda s, t, m: tokens.span_kl(s, t, m, temperature=2.0),
            edges,
            their_edges,
            axes=(1,),
            their_axes=(1,),
            rounding=1e-6,
        ),
    }


def hidden_cases() -> dict[str, Case]:
    """Losses of hidden states."""
    states, others = numbers(4, 5, 8), numbers(4, 5, 8, seed=1)
    deviation = numbers(8).abs() + 0.2

    def of_states(loss: Callable[..., Total], theirs: torch.Tensor, rounding: float) -> Case:
        return Case(loss, states, theirs, axes=(1,), their_axes=(1,), rounding=rounding)

    def two_layers(own: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> Total:
        first, second = own.tensor_split(2, dim=-1)
        their_first, their_second = theirs.tensor_split(2, dim=-1)
        return geometry.gram((first, second), (their_first, their_second), mask)

    wide = numbers(4, 5, 12, seed=1)
    return {
        "mse": of_states(hidden.mse, others, 1e-6),
        "mse standardised": of_states(
            lambda s, t, m: hidden.mse(s, t, m, deviation_D=deviation), others, 1e-6
        ),
        "cosine": of_states(hidden.cosine, others, 0),
        "layer_norm_mse": of_states(hidden.layer_norm_mse, others, 0),
        **{
            f"cls_mse {normalised}": of_states(
                lambda s, t, m, n=normalised: hidden.cls_mse(s, t, m, normalised=n), others, 0
            )
            for normalised in (True, False)
        },
        **{
            f"pooled_mse {normalised}": of_states(
                lambda s, t, m, n=normalised: hidden.pooled_mse(s, t, m, normalised=n), others, 1e-6
            )
            for normalised in (True, False)
        },
        "gram": of_states(two_layers, others, 1e-6),
        "nst": of_states(geometry.nst, wide, 1e-6),
        "cka": of_states(geometry.cka, wide, 1e-6),
        "procrustes": of_states(geometry.procrustes, others, 2e-6),
        "procrustes wide": of_states(geometry.procrustes, wide, 2e-6),
        "procrustes narrow": of_states(geometry.procrustes, numbers(4, 5, 3, seed=1), 2e-6),
        "rkd_distance": of_states(geometry.rkd_distance, wide, 1e-6),
        "rkd_angle": of_states(geometry.rkd_angle, wide, 1e-6),
        "contrastive": Case(
            lambda s, t, _: hidden.contrastive(s, t, numbers(7, 8, seed=2), temperature=0.1),
            numbers(4, 8),
            numbers(4, 8, seed=1),
            zero_on_itself=False,
        ),
    }


def attention_cases() -> dict[str, Case]:
    """Losses of attention scores and of relations."""
    scores, others, of_four = numbers(4, 2, 5, 5), numbers(4, 2, 5, 5, seed=1), numbers(4, 4, 5, 5)

    def of_scores(name: str, heads: str, own: torch.Tensor, theirs: torch.Tensor) -> Case:
        loss = losses.FUNCTIONS[name]
        return Case(
            lambda s, t, m: loss(s, t, m, heads=heads),
            own,
            theirs,
            axes=(2, 3),
            their_axes=(2, 3),
            rounding=1e-6,
        )

    def of_relations(heads: int, theirs: torch.Tensor) -> Case:
        return Case(
            lambda s, t, m: relation.relation_kl(s, t, m, heads=heads),
            numbers(4, 5, 8),
            theirs,
            axes=(1,),
            their_axes=(1,),
            rounding=1e-6,
        )

    cases = {
        "relation_kl": of_relations(2, numbers(4, 5, 8, seed=1)),
        "relation_kl wide": of_relations(4, numbers(4, 5, 12, seed=1)),
    }
    for name in ("scores_mse", "attention_kl"):
        cases[f"{name} each"] = of_scores(name, "each", scores, others)
        cases[f"{name} average"] = of_scores(name, "average", scores, of_four)
        for heads in ("each", "average"):
            cases[f"{name} windows {heads}"] = of_scores(
                name, heads, windowed(scores, 2), windowed(others, 1)
            )
    return cases


CASES = prediction_cases() | hidden_cases() | attention_cases()
