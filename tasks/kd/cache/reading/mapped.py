"""A cache's files, memory-mapped, each checked against what the manifest says of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from tasks.kd.cache.format.codec import DTYPES
from tasks.kd.cache.format.manifest import File, Piece, Stream
from tasks.kd.cache.store.store import Store
from tasks.kd.errors import CacheCorruptError

_TRIES = 3


@dataclass(frozen=True)
class Shard:
    """A shard's tensors, backed by the memory map."""

    keys: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    input_ids: npt.NDArray[np.int32]
    values: torch.Tensor
    scale: torch.Tensor | None


class MappedShards:
    """The open shards. Where the store has a bound, the least recently used are let go.

    On Linux a file that was removed keeps its blocks for as long as it is mapped.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._bound = store, store.open_bytes
        self._shards: OrderedDict[tuple[str, str], tuple[int, Shard]] = OrderedDict()

    def shard(self, entry: Stream, file: File) -> Shard:
        """A shard, opened if it isn't yet."""
        name = (entry.fingerprint, file.name)
        if name not in self._shards:
            tensors = self.tensors(entry, file)
            _require_shard(tensors, entry, file)
            shard = Shard(
                tensors["keys"].numpy(),
                tensors["offsets"].numpy(),
                tensors["input_ids"].numpy(),
                tensors["values"],
                tensors.get("scale"),
            )
            self._shards[name] = (file.bytes, shard)
            while self._bound is not None and self._open_bytes() > self._bound:
                if len(self._shards) == 1:
                    break
                self._shards.popitem(last=False)
        self._shards.move_to_end(name)
        return self._shards[name][1]

    def tensors(self, entry: Stream | Piece, file: File) -> dict[str, torch.Tensor]:
        """All tensors of a file. Raises CacheCorruptError if it is no safetensors file."""
        for _ in range(_TRIES - 1 if self._bound is not None else 0):
            try:
                return self._tensors(entry, file)
            except FileNotFoundError:  # another process made room between fetching and opening
                continue
        return self._tensors(entry, file)

    def _tensors(self, entry: Stream | Piece, file: File) -> dict[str, torch.Tensor]:
        path = self._store.path(entry, file)
        try:
            with safe_open(path, framework="pt") as opened:
                names = opened.keys()
                return {name: opened.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise CacheCorruptError(
                "a file of the teacher cache is damaged", where=path, found=error
            ) from None

    def metadata(self, entry: Piece, file: File) -> dict[str, str]:
        """The metadata of a safetensors file."""
        with safe_open(self._store.path(entry, file), framework="pt") as opened:
            return dict(opened.metadata())

    def _open_bytes(self) -> int:
        return sum(size for size, _ in self._shards.values())


def _require_shard(tensors: Mapping[str, torch.Tensor], stream: Stream, file: File) -> None:
    """Raise CacheCorruptError unless a shard's tensors have the manifest's types and shapes."""
    examples, tokens = file.examples, file.tokens
    logits = stream.made_of["stream"] == "logits"
    expected = {
        "keys": (torch.uint8, (examples, 16)),
        "offsets": (torch.int64, (examples + 1,)),
        "input_ids": (torch.int32, (tokens,)),
        "values": (DTYPES[stream.codec], (examples if logits else tokens, stream.width)),
    }
    if stream.codec == "int8":
        expected["scale"] = (torch.float16, (tokens, 1))
    require_tensors(tensors, expected, file)


def require_tensors(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    file: File,
) -> None:
    """Raise CacheCorruptError unless a file holds just those tensors, by type and shape."""
    held = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    if held != expected:
        raise CacheCorruptError(
            "a file of the teacher cache holds other tensors than its manifest says",
            where=file.name,
            expected=expected,
            found=held,
        )
