"""The examples of each step: length-bucketed, deterministic, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

# Examples are sorted by length within a window of this many batches, and the batches are then
# shuffled. There is little padding, and the order still differs in each epoch.
WINDOW_BATCHES = 50


def epoch_batches(lengths: Rows, *, batch_examples: int, seed: int, epoch: int) -> list[Rows]:
    """An epoch's global batches of row numbers: each row once, `batch_examples` rows a batch.

    One batch is smaller if the division leaves a rest. The result depends on the arguments alone,
    not on ranks, workers or the cache's layout.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    window = WINDOW_BATCHES * batch_examples
    batches: list[Rows] = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_examples] for i in range(0, len(rows), batch_examples)]
    return [batches[i] for i in random.permutation(len(batches))]


def micro_batches(
    rows: Rows, lengths: Rows, *, max_tokens: int, rank: int = 0, world_size: int = 1
) -> list[Rows]:
    """A rank's share of a global batch, in pieces of at most `max_tokens` padded tokens.

    Every rank gets at least one piece, possibly empty, so that all take part in each step. An
    example longer than the bound is a piece of its own.
    """
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    share = rows[rank::world_size]
    return list(split_by_tokens(share, lengths, max_tokens=max_tokens)) or [share]


def split_by_tokens(rows: Rows, lengths: Rows, *, max_tokens: int) -> Iterator[Rows]:
    """Cut rows that are sorted by length into pieces of at most `max_tokens` padded tokens.

    >>> lengths = np.array([3, 9, 4, 2, 8])
    >>> rows = np.argsort(lengths)
    >>> [piece.tolist() for piece in split_by_tokens(rows, lengths, max_tokens=12)]
    [[3, 0, 2], [4], [1]]
    """
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end - start + 1) * int(lengths[rows[end]]) > max_tokens:
            yield rows[start:end]
            start = end
