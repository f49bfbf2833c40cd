"""What a training asks of a teacher: one interface, served from a cache or by the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from tasks.kd.data.examples.prepared import Ids


class Targets(Protocol):
    """The teacher's streams for given examples, padded to the longest."""

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """Float32, by stream name, in the machine's memory whatever computed it.

        `logits` [B, C], `hidden.<l>` [B, T, D], `attention.<l>` [B, H, T, T] (scores before the
        softmax), `relation.<l>` [B, T, 3, D] (queries, keys, values). Hidden states and relations
        are zero at padding; what attention holds there means nothing.
        """
        ...


class NoTargets:
    """For training on labels alone."""

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Nothing."""
        return {}
