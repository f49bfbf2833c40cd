"""The files of a stream's entry: each is whole or not there, and found again by the next writer."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tasks.kd.cache.format.codec import Encoded
from tasks.kd.cache.format.manifest import File
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.digests import commit_file, read_json, sha256_file, write_json


def find_shard(folder: Path, number: int, raw_keys: bytes) -> File | None:
    """A shard of an earlier run; None unless it is whole and holds those records."""
    path = folder / shard_name(number)
    try:
        note = File.model_validate(read_json(folder / note_name(path.name)))
        if path.stat().st_size != note.bytes or sha256_file(path) != note.sha256:
            return None
        with safe_open(path, framework="pt") as file:  # other keys: another shard size
            same = bytes(file.get_tensor("keys").numpy().tobytes()) == raw_keys
            held = len(raw_keys) // 16, int(file.get_tensor("offsets")[-1])
    except (OSError, ValueError, SafetensorError):
        return None
    told = note.name, note.examples, note.tokens  # it may be the note that is damaged
    return note if same and told == (path.name, *held) else None


def shard_tensors(
    raw_keys: bytes, texts: Sequence[Ids], encoded: Encoded
) -> dict[str, torch.Tensor]:
    """A shard's tensors, as FORMAT.md specifies them."""
    lengths = np.asarray([len(ids) for ids in texts], dtype=np.int64)
    tensors = {
        "keys": torch.frombuffer(bytearray(raw_keys), dtype=torch.uint8).reshape(-1, 16),
        "offsets": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
        "input_ids": torch.from_numpy(np.concatenate(texts).astype(np.int32)),
        "values": encoded.values,
    }
    return tensors if encoded.scale is None else {**tensors, "scale": encoded.scale}


def commit_shard(folder: Path, number: int, tensors: dict[str, torch.Tensor]) -> None:
    """Write a shard, then the note that makes it count."""
    file = commit_tensors(tensors, folder / shard_name(number))
    write_json(folder / note_name(file.name), file.model_dump(mode="json"))


def commit_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> File:
    """Write a safetensors file under a temporary name, then give it its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.touch()
    mode = temporary.stat().st_mode  # safetensors would leave a file for its owner alone
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
    temporary.chmod(mode)
    offsets = tensors.get("offsets")
    file = describe_file(temporary, offsets)
    commit_file(temporary, path)
    return file.model_copy(update={"name": path.name})


def describe_file(path: Path, offsets: torch.Tensor | None = None) -> File:
    """A file's size and digest, and the counts that its `offsets` give."""
    return File(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        examples=len(offsets) - 1 if offsets is not None else 0,
        tokens=int(offsets[-1]) if offsets is not None else 0,
    )


def give_back() -> None:
    """Return freed blocks that malloc keeps to the system; only glibc's can.

    Batches of ever different shapes leave holes in its heap: without this a writer's memory grows
    by a fifth over a hundred shards.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def shard_name(number: int) -> str:
    """File name of a shard by its number."""
    return f"shard-{number:05d}.safetensors"


def note_name(shard: str) -> str:
    """File name of a shard's note."""
    return f"{Path(shard).stem}.json"
