"""Reading a cache: memory-mapped, any example at any time, never a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from tasks.kd.cache.codec import decode
from tasks.kd.cache.fingerprint import example_key, fingerprint
from tasks.kd.cache.manifest import (
    MANIFEST,
    Manifest,
    describe_difference,
    read_manifest,
    verify_files,
)
from tasks.kd.data import Ids
from tasks.kd.errors import CacheCorruptError, CacheIncompleteError, CacheStaleError
from tasks.kd.targets import pad


def open_cache(
    manifest: Manifest, store: Path, *, expected: dict[str, Any], mend: str
) -> CachedTargets:
    """Open the cache that a manifest names, every byte verified.

    `expected` are the fingerprint's fields as they must be now. Raises CacheStaleError with the
    fields that differ, CacheIncompleteError for what is not in the store, CacheCorruptError for
    what differs from its digest.
    """
    if fingerprint(expected) != manifest.fingerprint:
        raise CacheStaleError(
            "the teacher cache is stale",
            where=f"fingerprint {manifest.fingerprint}",
            advice=f"It differs in {describe_difference(expected, manifest)}.",
            mend=mend,
        )
    folder = store / manifest.fingerprint
    if not (folder / MANIFEST).exists():
        raise CacheIncompleteError(
            "this machine's store lacks the teacher cache",
            where=folder,
            expected=f"{len(manifest.shards)} shards",
            found="no finished cache",
            mend=mend,
        )
    if read_manifest(folder / MANIFEST) != manifest:
        raise CacheCorruptError("the store's manifest is not the stage's", where=folder, mend=mend)
    verify_files(manifest, folder, mend=mend)
    return CachedTargets(manifest, folder)


class CachedTargets:
    """`Targets` from disk. Shards stay memory-mapped; a batch is gathered into one buffer each."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest = manifest
        self._shards = [_load(folder / shard.name) for shard in manifest.shards]
        self._slices = _load(folder / manifest.slices.name)
        self._embeddings: torch.nn.Module | None = None
        self._pad_id = 0
        self._where: dict[bytes, tuple[int, int]] = {}
        for number, shard in enumerate(self._shards):
            raw = shard["keys"].numpy().tobytes()
            for row in range(len(raw) // 16):
                self._where[raw[16 * row : 16 * row + 16]] = (number, row)

    @property
    def deviations(self) -> dict[int, torch.Tensor]:
        """Standard deviation [D] of each hidden stream's channels, by layer."""
        prefix = "deviation.hidden."
        return {
            int(name.removeprefix(prefix)): value.clone()
            for name, value in self._slices.items()
            if name.startswith(prefix)
        }

    def use_embeddings(self, embeddings: torch.nn.Module, *, pad_id: int) -> None:
        """Give the module that `hidden.0` is recomputed with; its weights become the teacher's."""
        prefix = "embeddings."
        weights = {
            name.removeprefix(prefix): value
            for name, value in self._slices.items()
            if name.startswith(prefix)
        }
        embeddings.load_state_dict(weights)
        self._embeddings, self._pad_id = embeddings.eval(), pad_id

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """Each stream of the given examples, zero at padding.

        Raises CacheIncompleteError for an example that is not in the cache and CacheCorruptError
        for a record whose token ids are not the example's.
        """
        records = [self._find(ids) for ids in input_ids]
        longest = max(len(ids) for ids in input_ids)
        streams = {}
        for name, stream in self.manifest.streams.items():
            if name == "logits":
                streams[name] = torch.stack([self._shards[s][name][r] for s, r, _, _ in records])
                continue
            padded = torch.zeros((len(records), longest, stream.width))
            for row, (shard, _, start, end) in enumerate(records):
                padded[row, : end - start] = decode(self._shards[shard][name][start:end])
            streams[name] = padded
        if self.manifest.computed:
            streams["hidden.0"] = self._embed(input_ids)
        return streams

    def _find(self, ids: Ids) -> tuple[int, int, int, int]:
        """Shard, record, first and last token of an example."""
        key = example_key(ids.astype("<i4").tobytes())
        if key not in self._where:
            raise CacheIncompleteError(
                "an example is not in the teacher cache",
                where=f"text of {len(ids)} tokens that begins {ids[:8].tolist()}",
                advice="The cache was made of other data.",
            )
        number, row = self._where[key]
        shard = self._shards[number]
        start, end = (int(value) for value in shard["offsets"][row : row + 2])
        if not np.array_equal(shard["input_ids"][start:end].numpy(), ids):
            raise CacheCorruptError(
                "a record's token ids are not those of the example",
                where=f"{self.manifest.shards[number].name}, record {row}",
            )
        return number, row, start, end

    @torch.no_grad()
    def _embed(self, input_ids: Sequence[Ids]) -> torch.Tensor:
        if self._embeddings is None:
            raise AssertionError("use_embeddings first: the cache recomputes hidden.0")
        ids_BT, mask_BT = pad(input_ids, self._pad_id)
        states: torch.Tensor = self._embeddings(input_ids=ids_BT)
        return states * mask_BT.unsqueeze(-1)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors, backed by the memory map."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
