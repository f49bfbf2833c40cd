"""Padding: examples of different lengths as one rectangle.

B examples, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tasks.kd.data.examples.prepared import Ids


@dataclass(frozen=True)
class Batch:
    """Padded examples: `input_ids_BT` int64, `mask_BT` bool (true at real tokens), `labels_B`."""

    input_ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    labels_B: torch.Tensor


@dataclass(frozen=True)
class Padded:
    """`rows` of a list of examples, padded on the right: ids and mask int64 [B, T]."""

    rows: npt.NDArray[np.int64]
    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]


def pad(input_ids: Sequence[Ids], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] int64, padded on the right to the longest, and the mask [B, T] bool."""
    ids_BT, mask_BT = _pad(input_ids, pad_id)
    return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT)


def pad_rows(examples: Sequence[Ids], rows: Sequence[int], pad_id: int) -> Padded:
    """The given rows of a list of examples as one batch, in numpy.

    >>> examples = [np.array([5, 6, 7], dtype=np.int32), np.array([8], dtype=np.int32)]
    >>> batch = pad_rows(examples, [1, 0], pad_id=0)
    >>> batch.input_ids.tolist(), batch.attention_mask.tolist()
    ([[8, 0, 0], [5, 6, 7]], [[1, 0, 0], [1, 1, 1]])
    """
    ids_BT, mask_BT = _pad([examples[row] for row in rows], pad_id)
    return Padded(np.asarray(rows, dtype=np.int64), ids_BT, mask_BT.astype(np.int64))


def _pad(
    input_ids: Sequence[Ids], pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    lengths = np.asarray([len(ids) for ids in input_ids], dtype=np.int64)
    ids_BT = np.full((len(lengths), lengths.max()), pad_id, dtype=np.int64)
    mask_BT = np.arange(lengths.max()) < lengths[:, None]
    for row, ids in enumerate(input_ids):
        ids_BT[row, : len(ids)] = ids
    return ids_BT, mask_BT
