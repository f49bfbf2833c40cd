"""Manifests: what a cache and its entries hold, what they were made of, each file's digest.

An entry's manifest is written last: an entry without one is unfinished.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.kd.cache.format.fingerprint import (
    differences,
)
from tasks.kd.digests import sha256_file, sha256_json, write_json
from tasks.kd.errors import CacheCorruptError, CacheIncompleteError
from tasks.kd.recipe.streams import in_order, kind_of

MANIFEST = "manifest.json"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(_Model):
    """One file of an entry. A shard also says how many examples and tokens it holds."""

    name: str
    bytes: int
    sha256: str
    examples: int = 0
    tokens: int = 0


class _Document(_Model):
    """The fields that all manifests share. `fingerprint` is the digest of `made_of`."""

    format_version: int
    fingerprint: str
    made_of: dict[str, Any]

    @property
    def title(self) -> str:
        """The entry in words, such as `stream hidden.2`."""
        kind = getattr(self, "kind", "")
        return f"{kind} {self.made_of.get(kind)}"

    def write(self, path: Path) -> None:
        """Write the manifest atomically, with the digest of its own content."""
        document = self.model_dump(mode="json")
        write_json(path, {**document, "content_sha256": sha256_json(document)})


class Stream(_Document):
    """An entry of the store: one stored stream, in shards, with the measured error of its codec.

    `attention_kl` is the mean divergence, in nats, of the next layer's attention computed from the
    decoded states; None where it can't be computed.
    """

    kind: Literal["stream"]
    codec: Literal["float32", "float16", "bfloat16", "int8"]
    relative_error: float
    attention_kl: float | None
    width: int
    examples: int
    tokens: int
    statistics: File | None
    shards: tuple[File, ...]

    @property
    def files(self) -> tuple[File, ...]:
        """All but the manifest."""
        return (*([self.statistics] if self.statistics else []), *self.shards)


class Piece(_Document):
    """An entry of the store: one frozen piece of a teacher."""

    kind: Literal["piece"]
    weights: File

    @property
    def files(self) -> tuple[File, ...]:
        """All but the manifest."""
        return (self.weights,)


class Manifest(_Document):
    """A cache as a recipe needs it: its streams, stored or computed (with the error measured).

    `layers` is the teacher's depth. See FORMAT.md.
    """

    kind: Literal["cache"]
    streams: dict[str, Stream]
    computed: dict[str, float]
    pieces: dict[str, Piece]
    layers: int

    @property
    def entries(self) -> Iterator[Stream | Piece]:
        """All streams and pieces that it needs of the store."""
        yield from self.streams.values()
        yield from self.pieces.values()

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Its own name, and those of all that it needs of the store."""
        return (self.fingerprint, *(entry.fingerprint for entry in self.entries))

    @property
    def served(self) -> tuple[str, ...]:
        """Names of all streams that it serves."""
        return in_order({*self.streams, *self.computed} - self.internal)

    @property
    def internal(self) -> set[str]:
        """Stored streams that no level reads. Others are computed from them."""
        return {name for name in self.streams if name not in self.made_of["streams"]}

    @property
    def examples(self) -> int:
        """Number of distinct texts."""
        return max((stream.examples for stream in self.streams.values()), default=0)

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return max((stream.tokens for stream in self.streams.values()), default=0)

    @property
    def bytes(self) -> int:
        """Bytes on disk, pieces included."""
        return sum(file.bytes for entry in self.entries for file in entry.files)

    @property
    def codec_errors(self) -> dict[str, float]:
        """Relative error of each stream that it serves."""
        stored = {name: stream.relative_error for name, stream in self.streams.items()}
        return {name: {**stored, **self.computed}[name] for name in self.served}

    @property
    def coarser(self) -> dict[str, str]:
        """Hidden streams kept in another codec than the recipe's, as it was too coarse for them."""
        return {
            name: stream.codec
            for name, stream in self.streams.items()
            if kind_of(name) == "hidden" and stream.codec != self.made_of["codec"]
        }


class Live(_Document):
    """The manifest that stands in place of a cache's where the teacher itself is run."""

    kind: Literal["live"]
    why: str
    layers: int


def verify_file(path: Path, file: File, *, mend: str | None = None) -> None:
    """Raise CacheIncompleteError or CacheCorruptError unless a file is there, byte for byte."""
    verify_size(path, file, mend=mend)
    if (digest := sha256_file(path)) != file.sha256:
        raise CacheCorruptError(
            "a file of the teacher cache is damaged",
            where=path,
            expected=f"sha256 {file.sha256}",
            found=digest,
            mend=mend,
        )


def verify_size(path: Path, file: File, *, mend: str | None = None) -> None:
    """Raise CacheIncompleteError or CacheCorruptError unless a file of that size is there."""
    if not path.is_file():
        raise CacheIncompleteError("a file of the teacher cache is missing", where=path, mend=mend)
    if path.stat().st_size != file.bytes:
        raise CacheCorruptError(
            "a file of the teacher cache has the wrong size",
            where=path,
            expected=f"{file.bytes} bytes",
            found=path.stat().st_size,
            mend=mend,
        )


def describe_difference(expected: dict[str, Any], manifest: Manifest | Live) -> str:
    """The fields in which a cache differs from what is expected, in one line."""
    return "; ".join(differences(expected, manifest.made_of))
