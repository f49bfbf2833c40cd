"""The losses in float64 NumPy, written from the papers' equations, example by example.

Nothing here is shared with tasks/kd: no torch, no batches, no masks that multiply.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def softmax(values: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def labels(student: Array, classes: Sequence[int]) -> float:
    """Sum of -log p(class): the usual cross-entropy."""
    return float(sum(-np.log(softmax(row)[k]) for row, k in zip(student, classes, strict=True)))


def kl(student: Array, teacher: Array, temperature: float) -> float:
    """Hinton et al., arXiv:1503.02531, section 2: T² times KL(p_T || p_S), summed."""
    total = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        p, q = softmax(theirs / temperature), softmax(own / temperature)
        total += float(np.sum(p * (np.log(p) - np.log(q))))
    return total * temperature**2


def mse(student: Array, teacher: Array, lengths: Sequence[int], deviation: Array | None) -> float:
    """TinyBERT, arXiv:1909.10351, equation 8, over real tokens: sum of each token's mean."""
    total = 0.0
    for own, theirs, length in zip(student, teacher, lengths, strict=True):
        for token in range(length):
            error = own[token] - theirs[token]
            if deviation is not None:
                error = error / deviation
            total += float(np.mean(error**2))
    return total
