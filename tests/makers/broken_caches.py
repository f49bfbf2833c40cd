"""Breaking caches: files changed, manifests forged, writers that stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.format.parsing import read_document
from tasks.kd.cache.reading.reader import CachedTargets
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.digests import sha256_json
from tasks.kd.errors import CacheCorruptError
from tests.makers.caches import open_written, write


def shards_of(copied: Any, stream: str) -> list[Path]:
    _, manifest, store = copied
    entry = manifest.streams[stream]
    return [store / entry.fingerprint / shard.name for shard in entry.shards]


def reopen(copied: Any, **options: Any) -> CachedTargets:
    job, manifest, store = copied
    return open_written(job, manifest, store, **options)


def change(path: Path, act: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a shard's tensors in a file of the same size."""
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    act(tensors)
    size = path.stat().st_size
    save_file(tensors, path)
    assert path.stat().st_size == size


def forge(path: Path, act: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest and give it the digest of what it says now."""
    document = json.loads(path.read_text())
    del document["content_sha256"]
    act(document)
    path.write_text(json.dumps({**document, "content_sha256": sha256_json(document)}))


def artifact(copied: Any, folder: Path) -> Path:
    """The manifest as the stage keeps it, apart from the store."""
    path = folder / "artifact.json"
    copied[1].write(path)
    return path


def open_artifact(copied: Any, path: Path) -> CachedTargets:
    """As a training does; the manifest of a stream or a piece is none of a cache."""
    document = read_document(path)
    if not isinstance(document, Manifest):
        raise CacheCorruptError("not the manifest of a cache", where=path)
    return open_written(copied[0], document, copied[2])


class Stopped(Exception):
    pass


def stop_after(job: CacheJob, store: Path, tokens: int) -> None:
    """Write until so many tokens are done, then die."""
    done = 0

    def count(found: int) -> None:
        nonlocal done
        done += found
        if done >= tokens:
            raise Stopped

    with pytest.raises(Stopped):
        write(job, store, on_tokens=count)
