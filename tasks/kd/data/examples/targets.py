"""The teacher's streams: one interface, served from a cache or by a live teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from tasks.kd.data.examples.prepared import Ids


class Targets(Protocol):
    """A source of the teacher's streams for given examples, padded to the longest."""

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """Streams by name, float32, in CPU memory whatever device computed them.

        `logits` [B, C], `hidden.<l>` [B, T, D], `attention.<l>` [B, H, T, T] (scores before the
        softmax), `relation.<l>` [B, T, 3, D] (queries, keys, values). Hidden states and relations
        are zero at padding; attention's values there are meaningless.
        """
        ...


class NoTargets:
    """Targets of a training on labels alone."""

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """An empty mapping."""
        return {}
