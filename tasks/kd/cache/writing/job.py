"""What decides a cache's content, and how its texts are cut into shards.

The work list is a function of the texts and the settings alone, whoever does which part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from tasks.kd.cache.format.codec import Codec
from tasks.kd.cache.format.fingerprint import (
    example_key,
    fingerprint,
    piece_fields,
    stream_fields,
)
from tasks.kd.data.examples.batching import Rows
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.shape import width
from tasks.kd.recipe.streams import Plan, plan_streams, state_bytes
from tasks.kd.recipe.training import CacheTeacher

MEBIBYTE = 2**20


@dataclass(frozen=True)
class CacheInputs:
    """A teacher, the encoded texts, and the fields of `fingerprint.base_fields` that name both."""

    teacher: torch.nn.Module
    input_ids: Sequence[Ids]
    pad_id: int
    base: Mapping[str, object]


@dataclass(frozen=True)
class CacheJob(CacheInputs):
    """All that decides a cache's content.

    `exact` are the hidden streams that are kept in float32 because the recipe's codec was measured
    to be too coarse; whoever makes a job need not know them.
    """

    params: CacheTeacher
    exact: frozenset[str] = frozenset()

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """The fields that the cache's fingerprint is taken over."""
        params = self.params
        return {
            **self.base,
            "streams": sorted(params.streams),
            "codec": params.codec,
            "max_relative_error": params.max_relative_error,
            "recompute": params.recompute,
        }

    @cached_property
    def fingerprint(self) -> str:
        """The name of the cache's own entry."""
        return fingerprint(self.made_of)

    @cached_property
    def plan(self) -> Plan:
        """What is stored and what is computed."""
        return plan_streams(self.params.streams, self.params.recompute)

    @cached_property
    def streams(self) -> dict[str, str]:
        """Fingerprint of each stored stream's entry."""
        return {name: fingerprint(self.fields_of(name)) for name in self.plan.stored}

    @cached_property
    def pieces(self) -> dict[str, str]:
        """Fingerprint of each frozen piece's entry."""
        return {name: fingerprint(piece_fields(self.base, name)) for name in self.plan.pieces}

    @property
    def entries(self) -> list[str]:
        """Fingerprints of the cache's own entry and of all its streams and pieces."""
        return [self.fingerprint, *self.streams.values(), *self.pieces.values()]

    def codec_of(self, stream: str) -> Codec:
        """The codec that a stored stream is to be kept in."""
        return "float32" if stream in self.exact else self.params.codec

    def fields_of(self, stream: str) -> dict[str, object]:
        """The fields that a stored stream's fingerprint is taken over."""
        return stream_fields(
            self.base,
            stream,
            codec=self.codec_of(stream),
            max_relative_error=self.params.max_relative_error,
        )


class DistinctTexts(NamedTuple):
    """Texts that differ, with the key of each, sorted by length and key."""

    keys: list[bytes]
    texts: list[Ids]


def distinct(input_ids: Sequence[Ids]) -> DistinctTexts:
    """Each distinct text once with its key, sorted by length and key."""
    texts = {example_key(ids.astype("<i4").tobytes()): ids for ids in input_ids}
    order = sorted(texts, key=lambda key: (len(texts[key]), key))
    return DistinctTexts(order, [texts[key] for key in order])


def work_list(texts: Sequence[Ids], job: CacheJob) -> list[Rows]:
    """The rows of each shard: consecutive, of the recipe's size if they were float32."""
    lengths = np.asarray([len(ids) for ids in texts], dtype=np.int64)
    tokens = max(1, job.params.shard_mib * MEBIBYTE // state_bytes("float32", width(job.teacher)))
    ends = np.searchsorted(np.cumsum(lengths), np.arange(1, lengths.sum() // tokens + 1) * tokens)
    cuts = np.unique(np.clip(ends + 1, 0, len(texts)))
    return [part for part in np.split(np.arange(len(texts)), cuts) if len(part)]
