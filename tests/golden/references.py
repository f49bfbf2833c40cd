"""The losses in float64 NumPy, written from the papers' equations, example by example.

Nothing here is shared with tasks/kd: no torch, no batches, no masks that multiply. A function has
its loss's name and arguments, with the examples' lengths in place of a mask, and gives the sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Lengths = Sequence[int]


def softmax(values: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)))


def divergence(p: Array, q: Array) -> float:
    """KL(p || q) = sum of p log(p / q); a p of zero adds nothing."""
    return float(sum(a * np.log(a / b) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0))


def examples(own: Array, theirs: Array, lengths: Lengths) -> Iterator[tuple[Array, Array]]:
    """Both sides' real tokens, one example after the other."""
    for first, second, length in zip(own, theirs, lengths, strict=True):
        yield first[:length], second[:length]


# --- prediction ----------------------------------------------------------------------------------


def labels(student: Array, classes: Sequence[int]) -> float:
    """Sum of -log p(class): the usual cross-entropy; nothing for -100."""
    pairs = zip(student, classes, strict=True)
    return float(sum(-np.log(softmax(row)[k]) for row, k in pairs if k != -100))


def kl(student: Array, teacher: Array, temperature: float) -> float:
    """Hinton et al., arXiv:1503.02531, section 2: T² times KL(p_T || p_S), summed."""
    total = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        p, q = softmax(theirs / temperature), softmax(own / temperature)
        total += float(np.sum(p * (np.log(p) - np.log(q))))
    return total * temperature**2


def reverse_kl(student: Array, teacher: Array, temperature: float) -> float:
    """MiniLLM, arXiv:2306.08543: KL with the student's probabilities first."""
    return kl(teacher, student, temperature)


def jsd(student: Array, teacher: Array, beta: float, temperature: float) -> float:
    """GKD, arXiv:2306.13649, equation 1, times T²; the ends as TRL has them."""
    if beta in {0, 1}:
        return (kl, reverse_kl)[int(beta)](student, teacher, temperature)
    total = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        p, q = softmax(theirs / temperature), softmax(own / temperature)
        middle = beta * p + (1 - beta) * q
        total += beta * divergence(p, middle) + (1 - beta) * divergence(q, middle)
    return total * temperature**2


def dkd(
    student: Array,
    teacher: Array,
    classes: Sequence[int],
    temperature: float,
    target_weight: float,
    other_weight: float,
) -> float:
    """Decoupled KD, arXiv:2203.08679, equations 5 to 7, times T² as in the authors' code."""
    total = 0.0
    for own, theirs, target in zip(student, teacher, classes, strict=True):
        p, q = softmax(theirs / temperature), softmax(own / temperature)
        binary_p, binary_q = (np.array([x[target], 1 - x[target]]) for x in (p, q))
        rest_p, rest_q = (np.delete(x, target) / (1 - x[target]) for x in (p, q))
        total += target_weight * divergence(binary_p, binary_q)
        total += other_weight * divergence(rest_p, rest_q)
    return total * temperature**2


def dist(student: Array, teacher: Array, temperature: float) -> float:
    """DIST, arXiv:2205.10536: Pearson's distance of an example's probabilities, times T²."""
    total = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        a, b = softmax(own / temperature), softmax(theirs / temperature)
        covariance = np.mean((a - a.mean()) * (b - b.mean()))
        total += float(1 - covariance / (a.std() * b.std()))
    return total * temperature**2


def logits_mse(student: Array, teacher: Array) -> float:
    """Ba and Caruana, arXiv:1312.6184, as a mean over classes."""
    return float(sum(np.mean((a - b) ** 2) for a, b in zip(student, teacher, strict=True)))


regression = logits_mse


def bce(student: Array, wanted: Array) -> float:
    """-y log σ(z) - (1 - y) log(1 - σ(z)), the mean over classes."""
    total = 0.0
    for row, targets in zip(student, wanted, strict=True):
        p = sigmoid(row)
        total += float(np.mean(-targets * np.log(p) - (1 - targets) * np.log(1 - p)))
    return total


def bce_kl(student: Array, teacher: Array, temperature: float) -> float:
    """T² times the mean over classes of KL between two coins."""
    total = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        coins = zip(sigmoid(own / temperature), sigmoid(theirs / temperature), strict=True)
        parts = [divergence(np.array([p, 1 - p]), np.array([q, 1 - q])) for q, p in coins]
        total += float(np.mean(parts))
    return total * temperature**2


def token_labels(student: Array, classes: npt.NDArray[np.int64], lengths: Lengths) -> float:
    """Cross-entropy of every real token that has a label."""
    return sum(
        labels(rows[:length], row[:length].tolist())
        for rows, row, length in zip(student, classes, lengths, strict=True)
    )


def token_kl(student: Array, teacher: Array, lengths: Lengths, temperature: float) -> float:
    """Hinton's loss of every real token."""
    return sum(kl(*both, temperature) for both in examples(student, teacher, lengths))


def span_labels(student: Array, positions: npt.NDArray[np.int64], lengths: Lengths) -> float:
    """BERT, arXiv:1810.04805, section 4.2: a softmax over tokens for each edge; their mean."""
    total = 0.0
    for logits, edges, length in zip(student, positions, lengths, strict=True):
        for edge in (0, 1):
            total += labels(logits[None, :length, edge], [int(edges[edge])]) / 2
    return total


def span_kl(student: Array, teacher: Array, lengths: Lengths, temperature: float) -> float:
    """Hinton's loss over tokens for each edge; their mean."""
    return sum(
        kl(own.T, theirs.T, temperature) / 2 for own, theirs in examples(student, teacher, lengths)
    )


# --- hidden --------------------------------------------------------------------------------------


def mse(student: Array, teacher: Array, lengths: Lengths, deviation: Array | None = None) -> float:
    """TinyBERT, arXiv:1909.10351, equation 8, over real tokens: sum of each token's mean."""
    total = 0.0
    for own, theirs, length in zip(student, teacher, lengths, strict=True):
        for token in range(length):
            error = own[token] - theirs[token]
            if deviation is not None:
                error = error / deviation
            total += float(np.mean(error**2))
    return total


def cosine(student: Array, teacher: Array, lengths: Lengths) -> float:
    """DistilBERT, arXiv:1910.01108: 1 - cos of every real token."""
    total = 0.0
    for own, theirs in examples(student, teacher, lengths):
        for a, b in zip(own, theirs, strict=True):
            total += float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))
    return total


def layer_norm_mse(student: Array, teacher: Array, lengths: Lengths) -> float:
    """MobileBERT, arXiv:2004.02984: both states to mean 0 and variance 1, then squared error."""
    total = 0.0
    for own, theirs in examples(student, teacher, lengths):
        for a, b in zip(own, theirs, strict=True):
            error = (a - a.mean()) / a.std() - (b - b.mean()) / b.std()
            total += float(np.mean(error**2))
    return total


def cls_mse(student: Array, teacher: Array, lengths: Lengths, normalised: bool) -> float:
    """PKD, arXiv:1908.09355, equation 7, as a mean over channels like its authors' code."""
    total = 0.0
    for own, theirs in examples(student, teacher, lengths):
        a, b = own[0], theirs[0]
        if normalised:
            a, b = a / np.sqrt(a @ a), b / np.sqrt(b @ b)
        total += float(np.mean((a - b) ** 2))
    return total


def pooled_mse(student: Array, teacher: Array, lengths: Lengths, normalised: bool) -> float:
    """RAIL-KD, arXiv:2109.10164, section 3: means over tokens, to length 1, squared error."""
    total = 0.0
    for own, theirs in examples(student, teacher, lengths):
        a, b = own.mean(0), theirs.mean(0)
        if normalised:
            a, b = a / np.sqrt(a @ a), b / np.sqrt(b @ b)
        total += float(np.mean((a - b) ** 2))
    return total


def gram(student: tuple[Array, Array], teacher: tuple[Array, Array], lengths: Lengths) -> float:
    """FSP, Yim et al., CVPR 2017: G[i, j] is the mean over tokens of a_i b_j."""
    total = 0.0
    for (a, theirs_a), (b, theirs_b) in zip(
        examples(student[0], teacher[0], lengths),
        examples(student[1], teacher[1], lengths),
        strict=True,
    ):
        own = np.mean([np.outer(x, y) for x, y in zip(a, b, strict=True)], axis=0)
        their = np.mean([np.outer(x, y) for x, y in zip(theirs_a, theirs_b, strict=True)], axis=0)
        total += float(np.mean((own - their) ** 2))
    return total


def nst(student: Array, teacher: Array, lengths: Lengths) -> float:
    """NST, arXiv:1707.01219, per pair of tokens: mean product of channels, squared error."""
    total = 0.0
    for own, theirs in examples(student, teacher, lengths):
        for i in range(len(own)):
            for j in range(len(own)):
                total += float((np.mean(own[i] * own[j]) - np.mean(theirs[i] * theirs[j])) ** 2)
    return total


def cka(student: Array, teacher: Array, lengths: Lengths) -> float:
    """Kornblith et al., arXiv:1905.00414: 1 - ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), columns centred."""
    total = 0.0
    for own, theirs in examples(student, teacher, lengths):
        if len(own) > 1:
            x, y = own - own.mean(0), theirs - theirs.mean(0)
            norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
            total += float(1 - np.linalg.norm(y.T @ x) ** 2 / norm)
    return total


def procrustes(student: Array, teacher: Array, lengths: Lengths) -> float:
    """Schönemann (1966): the narrower side filled up with zeros, R = U Vᵀ of H_Sᵀ H_T."""
    width = max(student.shape[2], teacher.shape[2])
    total = 0.0
    for own, theirs in examples(student, teacher, lengths):
        a, b = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (own, theirs))
        left, _, right = np.linalg.svd(a.T @ b)
        total += float(np.sum((a @ left @ right - b) ** 2)) / width
    return total


def rkd_distance(student: Array, teacher: Array, lengths: Lengths) -> float:
    """RKD, arXiv:1904.05068: Huber loss (δ = 1) of distances over their mean."""
    total = 0.0
    for both in examples(student, teacher, lengths):
        length = len(both[0])
        pairs = [(i, j) for i in range(length) for j in range(length) if i != j]
        sides = []
        for x in both:
            distances = np.array([np.sqrt(np.sum((x[i] - x[j]) ** 2)) for i, j in pairs])
            sides.append(distances / distances.mean() if pairs else distances)
        for error in np.abs(sides[0] - sides[1]):
            total += float(error**2 / 2 if error <= 1 else error - 0.5)
    return total


def rkd_angle(student: Array, teacher: Array, lengths: Lengths) -> float:
    """RKD, arXiv:1904.05068, equation 7: Huber loss (δ = 1) of cos∠ijk, vertex j; 0 if i or k is j.

    For texts of at most 32 tokens, all of which are points then.
    """
    total = 0.0
    for both in examples(student, teacher, lengths):
        for i, j, k in itertools.product(range(len(both[0])), repeat=3):
            cosines = []
            for x in both:
                a, b = x[i] - x[j], x[k] - x[j]
                norms = np.sqrt((a @ a) * (b @ b))
                cosines.append(a @ b / norms if norms else 0.0)
            error = abs(cosines[0] - cosines[1])
            total += float(error**2 / 2 if error <= 1 else error - 0.5)
    return total


def contrastive(student: Array, teacher: Array, negatives: Array, temperature: float) -> float:
    """InfoNCE as in CoDIR, arXiv:2009.14167, by cosine."""
    total = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        candidates = [theirs, *negatives]
        cosines = [own @ x / np.sqrt((own @ own) * (x @ x)) for x in candidates]
        total -= float(np.log(softmax(np.array(cosines) / temperature)[0]))
    return total


# --- attention and relation ----------------------------------------------------------------------


def windowed(scores: Array, window: int | None) -> Array:
    """-inf at keys further away than the window."""
    tokens = np.arange(scores.shape[-1])
    far = np.abs(tokens[:, None] - tokens) > (len(tokens) if window is None else window)
    return np.where(far, -np.inf, scores)


def scores_mse(student: Array, teacher: Array, lengths: Lengths, heads: str) -> float:
    """TinyBERT, arXiv:1909.10351, equation 7, over real pairs that both sides see."""
    total = 0.0
    if heads == "average":
        student, teacher = student.mean(1, keepdims=True), teacher.mean(1, keepdims=True)
    for own, theirs, length in zip(student, teacher, lengths, strict=True):
        for a, b in zip(own, theirs, strict=True):
            for i in range(length):
                for j in range(length):
                    if np.isfinite(a[i, j]) and np.isfinite(b[i, j]):
                        total += float((a[i, j] - b[i, j]) ** 2) / len(own)
    return total


def attention_kl(student: Array, teacher: Array, lengths: Lengths, heads: str) -> float:
    """MiniLM, arXiv:2002.10957: KL of each real query's attention, the mean over heads."""
    total = 0.0
    for own, theirs, length in zip(student, teacher, lengths, strict=True):
        q, p = (softmax(x[:, :length, :length]) for x in (own, theirs))
        if heads == "average":
            q, p = q.mean(0, keepdims=True), p.mean(0, keepdims=True)
        total += divergence(p, q) / len(q)
    return total


def relation_kl(student: Array, teacher: Array, lengths: Lengths, heads: int) -> float:
    """MiniLMv2, arXiv:2012.15828: KL of softmax(X Xᵀ / √K) per relation head."""
    total = 0.0
    for both in examples(student, teacher, lengths):
        for own, theirs in zip(*(np.split(x, heads, axis=1) for x in both), strict=True):
            q, p = (softmax(x @ x.T / np.sqrt(x.shape[1])) for x in (own, theirs))
            total += divergence(p, q) / heads
    return total
