"""Reading a cache: memory-mapped, any example at any time, each verified by its token ids."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.kd.cache.format.codec import Statistics, decode
from tasks.kd.cache.format.fingerprint import example_key, fingerprint
from tasks.kd.cache.format.manifest import Live, Manifest, Piece, Stream, describe_difference
from tasks.kd.cache.reading.mapped import MappedShards, Shard, require_tensors
from tasks.kd.cache.store.store import Store, Verify
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.pieces import skeleton
from tasks.kd.errors import CacheCorruptError, CacheIncompleteError, CacheStaleError
from tasks.kd.recipe.streams import kind_of, layer_of
from tasks.kd.targets.targets import derive, zero_padding


def open_cache(
    manifest: Manifest,
    store: Store,
    *,
    expected: dict[str, Any],
    pad_id: int,
    mend: str,
    verify: Verify = True,
) -> CachedTargets:
    """Open the cache that a manifest names, after comparing every byte, or sizes alone.

    With `verify` (i, n), the i-th of n processes compares its part of the files; none may use the
    cache before all have said that theirs is whole (`agreement.agreed`).

    `expected` are the fingerprint's fields as they must be now. Raises CacheStaleError with the
    fields that differ, CacheIncompleteError for what is not in the store, CacheCorruptError for
    what differs from its digest.
    """
    require_fresh(manifest, expected, mend=mend)
    store.require(manifest, verify=verify, mend=mend)
    return CachedTargets(manifest, store, pad_id=pad_id)


def require_fresh(document: Manifest | Live, expected: dict[str, Any], *, mend: str) -> None:
    """Raise CacheStaleError, with the fields that differ, for a cache that was made of others."""
    if fingerprint(expected) != document.fingerprint:
        raise CacheStaleError(
            "the teacher cache is stale",
            where=f"fingerprint {document.fingerprint}",
            advice=f"It differs in {describe_difference(expected, document)}.",
            mend=mend,
        )


class CachedTargets:
    """`Targets` from disk. Shards stay memory-mapped; each stream of a batch has one buffer.

    All streams hold the same records in the same order (by length, then key), so one index of one
    stream finds them all; each stream's own copy of the token ids is compared on every read.
    """

    def __init__(self, manifest: Manifest, store: Store, *, pad_id: int) -> None:
        self.manifest = manifest
        self.streams = manifest.served
        self._pad_id = pad_id
        leave = store.use(entry.fingerprint for entry in manifest.entries)
        weakref.finalize(self, leave)
        mapped = MappedShards(store)
        self._stored = {
            name: _StoredStream(name, stream, mapped) for name, stream in manifest.streams.items()
        }
        smallest = min(self._stored.values(), key=_StoredStream.size, default=None)
        self._index = _Index(smallest) if smallest is not None else None
        self._frozen = _frozen(manifest.pieces, mapped)

    def on(self, device: torch.device) -> CachedTargets:
        """The same targets; computed streams are computed on that device."""
        self._frozen.to(device)
        return self

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """Each stream of the given examples.

        Raises CacheIncompleteError for an example that is not in the cache and CacheCorruptError
        for a record whose token ids are not the example's.
        """
        ids_BT, mask_BT = pad(input_ids, self._pad_id)
        served: dict[str, torch.Tensor] = {}
        if self._index is not None:
            records = self._index.find(input_ids)
            for name, stored in self._stored.items():
                served[name] = stored.gather(records, input_ids, mask_BT)
        if self.manifest.computed:
            states = {layer_of(s): x for s, x in served.items() if kind_of(s) == "hidden"}
            served.update(derive(self._frozen, self.manifest.computed, states, ids_BT, mask_BT))
        return {name: served[name] for name in self.streams}


class _StoredStream:
    """The shards of one stream."""

    def __init__(self, name: str, stream: Stream, mapped: MappedShards) -> None:
        self.name, self.stream, self._mapped = name, stream, mapped
        self.firsts = np.cumsum([0, *(shard.examples for shard in stream.shards)])
        self._statistics: Statistics | None = None
        if stream.statistics is not None:
            tensors = mapped.tensors(stream, stream.statistics)
            expected = dict.fromkeys(("mean", "deviation"), (torch.float32, (stream.width,)))
            require_tensors(tensors, expected, stream.statistics)
            self._statistics = Statistics(tensors["mean"], tensors["deviation"])

    def size(self) -> int:
        """Bytes of all its shards."""
        return sum(file.bytes for file in self.stream.shards)

    def shard(self, number: int) -> Shard:
        """The shard of that number."""
        return self._mapped.shard(self.stream, self.stream.shards[number])

    def gather(
        self, records: npt.NDArray[np.int64], input_ids: Sequence[Ids], mask_BT: torch.Tensor
    ) -> torch.Tensor:
        """The records' values, decoded: logits [B, C], hidden [B, T, D] with zeros at padding."""
        places = [
            self._place(int(record), ids) for record, ids in zip(records, input_ids, strict=True)
        ]
        if self.name == "logits":
            return torch.stack([shard.values[row] for shard, row, _, _ in places])
        if self.stream.codec != "int8":
            padded = torch.zeros((*mask_BT.shape, self.stream.width))
            for row, (shard, _, start, end) in enumerate(places):
                padded[row, : end - start] = shard.values[start:end]
            return padded
        values = torch.zeros((*mask_BT.shape, self.stream.width), dtype=torch.int8)
        scale = torch.zeros((*mask_BT.shape, 1), dtype=torch.float16)
        for row, (shard, _, start, end) in enumerate(places):
            assert shard.scale is not None
            values[row, : end - start] = shard.values[start:end]
            scale[row, : end - start] = shard.scale[start:end]
        return zero_padding(decode(values, scale, self._statistics), mask_BT)

    def _place(self, record: int, ids: Ids) -> tuple[Shard, int, int, int]:
        """A record's shard, row, first and last token. Its ids must be the example's."""
        number = int(np.searchsorted(self.firsts, record, side="right")) - 1
        shard = self.shard(number)
        row = record - int(self.firsts[number])
        start, end = int(shard.offsets[row]), int(shard.offsets[row + 1])
        if end - start != len(ids) or not np.array_equal(shard.input_ids[start:end], ids):
            raise CacheCorruptError(
                "a record's token ids are not those of the example",
                where=f"{self.name}, {self.stream.shards[number].name}, record {row}",
            )
        return shard, row, start, end


class _Index:
    """Where an example's record is: records are sorted by length and then by key."""

    def __init__(self, stored: _StoredStream) -> None:
        parts = []
        for number in range(len(stored.stream.shards)):
            shard = stored.shard(number)  # copied from, not held: it may have to go again
            keys = np.ascontiguousarray(shard.keys).view(">u8")[:, 0].astype(np.uint64)
            parts.append((np.diff(shard.offsets), keys))
        lengths = np.concatenate([part[0] for part in parts])
        self._keys = np.concatenate([part[1] for part in parts])
        present, firsts = np.unique(lengths, return_index=True)
        ends = np.append(firsts[1:], len(lengths))
        self._groups = {
            int(n): (int(a), int(b)) for n, a, b in zip(present, firsts, ends, strict=True)
        }

    def find(self, input_ids: Sequence[Ids]) -> npt.NDArray[np.int64]:
        """The examples' record numbers. Raises CacheIncompleteError, naming a text that has none.

        Half of the key is compared here, the token ids themselves when the record is read.
        """
        records = np.empty(len(input_ids), dtype=np.int64)
        for row, ids in enumerate(input_ids):
            first, end = self._groups.get(len(ids), (0, 0))
            raw = np.ascontiguousarray(ids, dtype="<i4").tobytes()
            key = np.uint64(int.from_bytes(example_key(raw)[:8], "big"))
            at = first + int(np.searchsorted(self._keys[first:end], key))
            if at >= end or self._keys[at] != key:
                raise CacheIncompleteError(
                    "an example is not in the teacher cache",
                    where=f"text of {len(ids)} tokens that begins {ids[:8].tolist()}",
                    advice="The cache was made of other data.",
                )
            records[row] = at
        return records


def _frozen(pieces: Mapping[str, Piece], mapped: MappedShards) -> torch.nn.Module:
    """The teacher's frozen pieces, as a model that has nothing else."""
    if not pieces:
        return torch.nn.Module()
    tensors = {name: mapped.tensors(piece, piece.weights) for name, piece in pieces.items()}
    first = next(iter(pieces.values()))
    config = mapped.metadata(first, first.weights)["config"]
    return skeleton(config, tensors)
