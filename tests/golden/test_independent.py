"""The losses in float64 against other people's parts: torch's, its distributions', scikit-learn's.

Each works one example at a time, on real tokens alone, and agrees to 1e-9 of the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import euclidean_distances, linear_kernel
from sklearn.preprocessing import KernelCenterer, normalize
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional

from tasks.kd.levels import losses
from tasks.kd.levels.losses import attention, geometry, hidden, prediction, relation, tokens
from tasks.kd.totals import Total
from tests.golden.cases import mask_of, numbers, windowed

LENGTHS = [5, 3, 1, 4]
MASK = mask_of(LENGTHS, 5)
LOGITS, THEIRS = numbers(4, 6).double(), numbers(4, 6, seed=1).double()
STATES, OTHERS = numbers(4, 5, 8).double(), numbers(4, 5, 8, seed=1).double()
WIDE = numbers(4, 5, 12, seed=1).double()
SCORES, THEIR_SCORES = numbers(4, 2, 5, 5).double(), numbers(4, 2, 5, 5, seed=1).double()
CLASSES = torch.tensor([0, 1, 5, 2])
TOKEN_CLASSES = torch.tensor([[-100, 1, 5, 0, 2], [3, -100, 0, 1, 1], [4] * 5, [2] * 5])
POSITIONS = torch.tensor([[1, 4], [0, 2], [0, 0], [3, 3]])
SEVERAL = (numbers(4, 6, seed=2) > 0).double()
BANK = numbers(7, 8, seed=2).double()

Value = Callable[[], float | torch.Tensor]


def both(own: torch.Tensor, theirs: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Real tokens of an example, from either side."""
    for first, second, length in zip(own, theirs, LENGTHS, strict=True):
        yield first[:length], second[:length]


def soft(logits: torch.Tensor, temperature: float = 1.0) -> Categorical:
    return Categorical(logits=logits / temperature)


def jensen_shannon(beta: float) -> torch.Tensor:
    """By entropies: that of the mixture less the mixture of those."""
    p, q = soft(THEIRS, 2), soft(LOGITS, 2)
    middle = Categorical(probs=beta * p.probs + (1 - beta) * q.probs)
    mixed: torch.Tensor = middle.entropy() - beta * p.entropy() - (1 - beta) * q.entropy()
    return 4 * mixed.sum()


def correlation() -> float:
    rows = zip(soft(LOGITS, 2).probs.numpy(), soft(THEIRS, 2).probs.numpy(), strict=True)
    return float(sum(4 * (1 - np.corrcoef(own, theirs)[0, 1]) for own, theirs in rows))


def decoupled() -> torch.Tensor:
    """Target against rest as a coin, the rest by leaving the target's logit out."""
    total = torch.zeros((), dtype=torch.float64)
    for own, theirs, target in zip(LOGITS / 4, THEIRS / 4, CLASSES.tolist(), strict=True):
        coins = [Bernoulli(probs=soft(x).probs[target]) for x in (theirs, own)]
        rest = [soft(torch.cat([x[:target], x[target + 1 :]])) for x in (theirs, own)]
        total = total + kl_divergence(*coins) + 8 * kl_divergence(*rest)
    return 16 * total


def spans() -> torch.Tensor:
    loss = functional.cross_entropy
    rows = zip(STATES[..., :2], POSITIONS, LENGTHS, strict=True)
    return torch.stack([loss(x[:n].T, edges) for x, edges, n in rows]).sum()


def soft_spans() -> torch.Tensor:
    pairs = both(STATES[..., :2], OTHERS[..., :2])
    return torch.stack([kl_divergence(soft(b.T), soft(a.T)).mean() for a, b in pairs]).sum()


def kernel_alignment() -> float:
    """CKA from centred kernels, whose inner products are HSIC."""
    total = 0.0
    for example in both(STATES, WIDE):
        if len(example[0]) > 1:
            own, theirs = (KernelCenterer().fit_transform(linear_kernel(x)) for x in example)
            total += 1 - (own * theirs).sum() / np.sqrt((own**2).sum() * (theirs**2).sum())
    return float(total)


def nuclear(theirs: torch.Tensor, width: int) -> float:
    """The least squares' closed form: ‖H_S‖² + ‖H_T‖² - 2 · (sum of singular values)."""
    total = 0.0
    for a, b in both(STATES, theirs):
        x, y = a.numpy(), b.numpy()
        total += (x**2).sum() + (y**2).sum() - 2 * np.linalg.norm(x.T @ y, "nuc")
    return float(total / width)


def angles() -> torch.Tensor:
    """By torch's own cosine similarity, triplet after triplet."""
    total = torch.zeros(())
    for a, b, n in zip(STATES, WIDE, LENGTHS, strict=True):
        for at in range(n):
            own, theirs = (
                functional.cosine_similarity((x[:n] - x[at])[:, None], (x[:n] - x[at])[None], dim=2)
                for x in (a, b)
            )
            total = total + functional.huber_loss(own, theirs, reduction="sum")
    return total


def distances() -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for example in both(STATES, WIDE):
        if len(example[0]) > 1:
            own, theirs = (relative(euclidean_distances(x)) for x in example)
            total = total + functional.huber_loss(own, theirs, reduction="sum")
    return total


def relative(values: Any) -> torch.Tensor:
    return torch.tensor(values / values[~np.eye(len(values), dtype=bool)].mean())


def contrast() -> torch.Tensor:
    own, theirs, bank = (torch.tensor(normalize(x)) for x in (STATES[:, 0], OTHERS[:, 0], BANK))
    scores = own @ torch.cat([theirs, bank]).T / 0.1
    # The candidates of row i are its own vector and the bank.
    keep = torch.cat([torch.eye(4, dtype=torch.bool), torch.ones(4, 7, dtype=torch.bool)], 1)
    scores = scores.masked_fill(~keep, -torch.inf)
    return functional.cross_entropy(scores, torch.arange(4), reduction="sum")


def fsp() -> torch.Tensor:
    own, theirs = (
        torch.einsum("btd,bte,bt->bde", x, y, MASK.double()) / torch.tensor(LENGTHS)[:, None, None]
        for x, y in ((STATES, OTHERS), (OTHERS, WIDE[..., :8]))
    )
    return functional.mse_loss(own, theirs, reduction="none").mean((1, 2)).sum()


def similarities() -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for example in both(STATES, WIDE):
        own, theirs = (torch.tensor(linear_kernel(x) / x.shape[1]) for x in example)
        total = total + functional.mse_loss(own, theirs, reduction="sum")
    return total


def attended(heads: str) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, theirs, n in zip(SCORES, windowed(THEIR_SCORES, 1), LENGTHS, strict=True):
        sides = (torch.softmax(x[:, :n, :n], -1) for x in (theirs, own))
        if heads == "average":
            sides = (x.mean(0, keepdim=True) for x in sides)
        p, q = (Categorical(probs=x) for x in sides)
        total = total + kl_divergence(p, q).mean(0).sum()
    return total


def relations(heads: int) -> torch.Tensor:
    """The relation as torch's own attention: its output for values that are the identity."""
    total = torch.zeros((), dtype=torch.float64)
    for example in both(STATES, WIDE):
        eye = torch.eye(len(example[0]), dtype=torch.float64).expand(heads, -1, -1)
        cut = (torch.stack(x.chunk(heads, dim=1)) for x in example)
        q, p = (functional.scaled_dot_product_attention(x, x, eye) for x in cut)
        total = total + functional.kl_div(q.log(), p, reduction="sum") / heads
    return total


def real(states: torch.Tensor) -> torch.Tensor:
    return states[MASK]


def square(own: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(own, theirs, reduction="sum") / own.shape[-1]


def first(states: torch.Tensor) -> torch.Tensor:
    return torch.tensor(normalize(states[:, 0]))


def norm(states: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = torch.nn.LayerNorm(8, eps=1e-12, dtype=torch.float64)(real(states))
    return normed.detach()


WEIGHTS = {"target_weight": 1.0, "other_weight": 8.0}
PAIRS: dict[str, tuple[Callable[[], Total], Value]] = {
    "labels": (
        lambda: prediction.labels(LOGITS, CLASSES),
        lambda: -soft(LOGITS).log_prob(CLASSES).sum(),
    ),
    "kl": (
        lambda: prediction.kl(LOGITS, THEIRS, temperature=3),
        lambda: 9 * kl_divergence(soft(THEIRS, 3), soft(LOGITS, 3)).sum(),
    ),
    "reverse_kl": (
        lambda: prediction.reverse_kl(LOGITS, THEIRS, temperature=3),
        lambda: 9 * kl_divergence(soft(LOGITS, 3), soft(THEIRS, 3)).sum(),
    ),
    "jsd": (
        lambda: prediction.jsd(LOGITS, THEIRS, beta=0.3, temperature=2),
        lambda: jensen_shannon(0.3),
    ),
    "dkd": (lambda: prediction.dkd(LOGITS, THEIRS, CLASSES, temperature=4, **WEIGHTS), decoupled),
    "dist": (lambda: prediction.dist(LOGITS, THEIRS, temperature=2), correlation),
    "logits_mse": (lambda: prediction.logits_mse(LOGITS, THEIRS), lambda: square(LOGITS, THEIRS)),
    "regression": (lambda: prediction.regression(LOGITS, THEIRS), lambda: square(LOGITS, THEIRS)),
    "bce": (
        lambda: prediction.bce(LOGITS, SEVERAL),
        lambda: -Bernoulli(logits=LOGITS).log_prob(SEVERAL).mean(1).sum(),
    ),
    "bce_kl": (
        lambda: prediction.bce_kl(LOGITS, THEIRS, temperature=3),
        lambda: (
            9
            * kl_divergence(Bernoulli(logits=THEIRS / 3), Bernoulli(logits=LOGITS / 3))
            .mean(1)
            .sum()
        ),
    ),
    "token_labels": (
        lambda: tokens.token_labels(STATES, TOKEN_CLASSES, MASK),
        lambda: functional.nll_loss(
            torch.log_softmax(real(STATES), -1), TOKEN_CLASSES[MASK], reduction="sum"
        ),
    ),
    "token_kl": (
        lambda: tokens.token_kl(STATES, OTHERS, MASK, temperature=3),
        lambda: 9 * kl_divergence(soft(real(OTHERS), 3), soft(real(STATES), 3)).sum(),
    ),
    "span_labels": (lambda: tokens.span_labels(STATES[..., :2], POSITIONS, MASK), spans),
    "span_kl": (
        lambda: tokens.span_kl(STATES[..., :2], OTHERS[..., :2], MASK, temperature=1),
        soft_spans,
    ),
    "mse": (
        lambda: hidden.mse(STATES, OTHERS, MASK),
        lambda: square(real(STATES), real(OTHERS)),
    ),
    "cosine": (
        lambda: hidden.cosine(STATES, OTHERS, MASK),
        lambda: functional.cosine_embedding_loss(
            real(STATES), real(OTHERS), torch.ones(sum(LENGTHS)), reduction="sum"
        ),
    ),
    "layer_norm_mse": (
        lambda: hidden.layer_norm_mse(STATES, OTHERS, MASK),
        lambda: square(norm(STATES), norm(OTHERS)),
    ),
    "cls_mse": (
        lambda: hidden.cls_mse(STATES, OTHERS, MASK, normalised=True),
        lambda: square(first(STATES), first(OTHERS)),
    ),
    "gram": (lambda: geometry.gram((STATES, OTHERS), (OTHERS, WIDE[..., :8]), MASK), fsp),
    "nst": (lambda: geometry.nst(STATES, WIDE, MASK), similarities),
    "cka": (lambda: geometry.cka(STATES, WIDE, MASK), kernel_alignment),
    "procrustes": (lambda: geometry.procrustes(STATES, OTHERS, MASK), lambda: nuclear(OTHERS, 8)),
    "procrustes wide": (lambda: geometry.procrustes(STATES, WIDE, MASK), lambda: nuclear(WIDE, 12)),
    "rkd_distance": (lambda: geometry.rkd_distance(STATES, WIDE, MASK), distances),
    "rkd_angle": (lambda: geometry.rkd_angle(STATES, WIDE, MASK), angles),
    "pooled_mse": (
        lambda: hidden.pooled_mse(STATES, OTHERS, MASK, normalised=True),
        lambda: torch.stack(
            [
                # Of two vectors of length 1, the square of the distance is 2 - 2 cosines.
                (2 - 2 * functional.cosine_similarity(a[:n].mean(0), b[:n].mean(0), dim=0)) / 8
                for a, b, n in zip(STATES, OTHERS, LENGTHS, strict=True)
            ]
        ).sum(),
    ),
    "contrastive": (
        lambda: hidden.contrastive(STATES[:, 0], OTHERS[:, 0], BANK, temperature=0.1),
        contrast,
    ),
    "scores_mse": (
        lambda: attention.scores_mse(SCORES, THEIR_SCORES, MASK, heads="each"),
        lambda: torch.stack(
            [
                functional.mse_loss(a[:, :n, :n], b[:, :n, :n], reduction="sum") / 2
                for a, b, n in zip(SCORES, THEIR_SCORES, LENGTHS, strict=True)
            ]
        ).sum(),
    ),
    "attention_kl each": (
        lambda: attention.attention_kl(SCORES, windowed(THEIR_SCORES, 1), MASK, heads="each"),
        lambda: attended("each"),
    ),
    "attention_kl average": (
        lambda: attention.attention_kl(SCORES, windowed(THEIR_SCORES, 1), MASK, heads="average"),
        lambda: attended("average"),
    ),
    "relation_kl": (
        lambda: relation.relation_kl(STATES, WIDE, MASK, heads=4),
        lambda: relations(4),
    ),
}


def test_every_loss_is_compared() -> None:
    assert {name.split(maxsplit=1)[0] for name in PAIRS} == set(losses.FUNCTIONS)


@pytest.mark.parametrize("name", PAIRS)
def test_a_loss_agrees_with_another_implementation(name: str) -> None:
    ours, theirs = PAIRS[name]
    assert float(ours().sum) == pytest.approx(float(theirs()), rel=1e-9, abs=0)


@pytest.mark.parametrize("shape", [(60, 8, 8), (60, 8, 12), (4, 8, 12), (4, 12, 8)])
def test_the_rotation_is_the_best_of_many(shape: tuple[int, int, int]) -> None:
    tokens, own_width, their_width = shape
    own, theirs = numbers(1, tokens, own_width), numbers(1, tokens, their_width, seed=1)
    width = max(own_width, their_width)
    best = float(geometry.procrustes(own, theirs, mask_of([tokens], tokens)).sum)
    filled = [functional.pad(x[0], (0, width - x.shape[2])) for x in (own, theirs)]
    for seed in range(20):
        turn = torch.linalg.qr(numbers(width, width, seed=seed + 2))[0]
        assert best < float((filled[0] @ turn - filled[1]).square().sum()) / width
