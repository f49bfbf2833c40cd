"""The negatives of a contrastive level: vectors of other texts than the example's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tasks.kd.data.examples.batching import split_by_tokens
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.data.examples.targets import Targets
from tasks.kd.levels.losses.numerics import pool

_BATCH_TOKENS = 8192


def banks(
    targets: Targets, input_ids: Sequence[Ids], layers: Sequence[int], *, count: int, seed: int
) -> dict[int, torch.Tensor]:
    """Means [N, D] float32 of the teacher's states over the tokens of N distinct texts, by layer.

    N is `count`, or the number of distinct texts if that is smaller. The seed alone decides which
    texts are drawn, so that every process has the same. Without layers nothing is read.
    """
    if not layers:
        return {}
    first: dict[bytes, int] = {}
    for row, ids in enumerate(input_ids):
        first.setdefault(ids.tobytes(), row)
    rows = np.random.default_rng(seed).permutation(list(first.values()))[:count]
    lengths = np.asarray([len(input_ids[row]) for row in rows])
    by_length = np.argsort(lengths, kind="stable")  # batches then keep to their bound of tokens
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for part in split_by_tokens(by_length, lengths, max_tokens=_BATCH_TOKENS):
        texts = [input_ids[rows[place]] for place in part]
        streams = targets.fetch(texts)
        mask_BT = (
            torch.arange(max(map(len, texts))) < torch.tensor([len(x) for x in texts])[:, None]
        )
        for layer in layers:
            parts[layer].append(pool(streams[f"hidden.{layer}"].float(), mask_BT))
    drawn = torch.from_numpy(np.argsort(by_length))  # a level uses the first rows as drawn
    return {layer: torch.cat(means)[drawn] for layer, means in parts.items()}
