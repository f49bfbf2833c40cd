"""Manifests: what a cache and its entries hold, what they were made of, each file's digest.

An entry's manifest is written last: an entry without one is unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.kd.cache.format.fingerprint import (
    FORMAT_VERSION,
    differences,
    fingerprint,
    piece_fields,
    stream_fields,
)
from tasks.kd.digests import canonical_json, sha256_file, sha256_json, write_json
from tasks.kd.errors import CacheCorruptError, CacheFormatError, CacheIncompleteError
from tasks.kd.recipe.streams import in_order, kind_of, plan_streams

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


_KINDS: dict[str, type[Stream | Piece | Manifest | Live]] = {
    "stream": Stream,
    "piece": Piece,
    "cache": Manifest,
    "live": Live,
}


def read_document(path: Path) -> Stream | Piece | Manifest | Live:
    """Read a manifest of any kind and check it against itself.

    Raises CacheIncompleteError, CacheFormatError or CacheCorruptError.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise CacheIncompleteError("the teacher cache has no manifest", where=path) from None
    return parse_document(text, path)


def read_recipe_manifest(path: Path, *, mend: str | None = None) -> Manifest | Live:
    """The manifest of a recipe's cache, or of the live teacher that stands in its place.

    Raises CacheCorruptError for the manifest of a stream or a piece.
    """
    document = read_document(path)
    if not isinstance(document, Manifest | Live):
        raise CacheCorruptError(
            "not the manifest of a recipe's cache",
            where=path,
            expected="kind cache or live",
            found=document.kind,
            mend=mend,
        )
    return document


def parse_document(text: bytes, where: object) -> Stream | Piece | Manifest | Live:
    """Parse a manifest of any kind, as `read_document` does; `where` is named in errors."""
    try:
        document = json.loads(text)
        canonical_json(document)  # refuses NaN and infinity, which JSON does not have
    except ValueError as error:
        raise CacheCorruptError("the manifest is not JSON", where=where, found=error) from None
    if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
        raise CacheFormatError(
            "not a teacher cache that this version reads",
            where=where,
            expected=f"format_version {FORMAT_VERSION}",
            found=document.get("format_version") if isinstance(document, dict) else "no object",
        )
    digest = document.pop("content_sha256", None)
    if digest != sha256_json(document):
        raise CacheCorruptError(
            "the manifest was edited or damaged",
            where=where,
            expected=f"content_sha256 {sha256_json(document)}",
            found=digest,
        )
    kind = _KINDS.get(str(document.get("kind")))
    if kind is None:
        raise CacheFormatError(
            "a manifest of unknown kind",
            where=where,
            expected=", ".join(_KINDS),
            found=document.get("kind"),
        )
    try:
        manifest = kind.model_validate_json(canonical_json(document))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise CacheCorruptError(f"the manifest's {place}: {fault['msg']}", where=where) from None
    if fingerprint(manifest.made_of) != manifest.fingerprint:
        raise CacheCorruptError(
            "the manifest's fingerprint is not that of its fields",
            where=where,
            expected=fingerprint(manifest.made_of),
            found=manifest.fingerprint,
        )
    if isinstance(manifest, Manifest) and (wrong := _wrong_part(manifest)):
        raise CacheCorruptError("the manifest contradicts itself", where=where, found=wrong)
    return manifest


def _wrong_part(manifest: Manifest) -> str | None:
    """The first stream or piece that is not as the cache's own fields say; None if all are."""
    own = dict(manifest.made_of)
    try:
        planned = plan_streams(own.pop("streams"), own.pop("recompute"))
        codec, bound = own.pop("codec"), own.pop("max_relative_error")
        made_of: dict[str, list[dict[str, object]]] = {
            name: [
                stream_fields(own, name, codec=each, max_relative_error=bound)
                for each in (codec, "float32")  # where the recipe's was too coarse
            ]
            for name in planned.stored
        }
        made_of |= {name: [piece_fields(own, name)] for name in planned.pieces}
    except (KeyError, TypeError, ValueError) as error:
        return f"fields that no cache is made of: {error!r}"
    entries: dict[str, Stream | Piece] = {**manifest.streams, **manifest.pieces}
    names = {*manifest.streams, *manifest.pieces, *manifest.computed}
    if names != {*planned.stored, *planned.pieces, *planned.computed}:
        return f"parts {', '.join(sorted(names))}"
    for name, entry in entries.items():
        if entry.made_of not in made_of.get(name, ()) or entry.fingerprint != fingerprint(
            entry.made_of
        ):
            return f"another entry as {name}"
        if isinstance(entry, Stream) and (entry.statistics is None) != (name == "logits"):
            return f"{name} with the statistics of another kind of stream"
    sizes = {
        size
        for stream in manifest.streams.values()
        for size in (
            (stream.examples, stream.tokens),
            (sum(s.examples for s in stream.shards), sum(s.tokens for s in stream.shards)),
        )
    }
    return "streams or shards of different examples" if len(sizes) > 1 else None


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
