"""The manifest: what a cache holds, of what it was made, and the digest of every file.

It is written last: a cache without one is unfinished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.kd.cache.fingerprint import FORMAT_VERSION, differences, fingerprint
from tasks.kd.digests import canonical_json, read_json, sha256_file, sha256_json, write_json
from tasks.kd.errors import CacheCorruptError, CacheFormatError, CacheIncompleteError

MANIFEST = "manifest.json"


class Shard(BaseModel):
    """One file of records."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    examples: int
    tokens: int
    bytes: int
    sha256: str


class Stream(BaseModel):
    """One stored tensor per record: its codec, the codec's measured error, its last axis."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    codec: str
    relative_error: float
    width: int


class Manifest(BaseModel):
    """See FORMAT.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: int
    fingerprint: str
    made_of: dict[str, Any]
    streams: dict[str, Stream]
    computed: tuple[str, ...]
    examples: int
    tokens: int
    bytes: int
    shards: tuple[Shard, ...]
    slices: Shard

    def write(self, path: Path) -> None:
        """Write it atomically, with the digest of its own content."""
        document = self.model_dump(mode="json")
        write_json(path, {**document, "content_sha256": sha256_json(document)})


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest against itself.

    Raises CacheIncompleteError, CacheFormatError or CacheCorruptError.
    """
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise CacheIncompleteError("the teacher cache has no manifest", where=path) from None
    except ValueError as error:
        raise CacheCorruptError("the manifest is not JSON", where=path, found=error) from None
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise CacheFormatError(
            "not a teacher cache that this version reads",
            where=path,
            expected=f"format_version {FORMAT_VERSION}",
            found=version,
        )
    digest = document.pop("content_sha256", None)
    if digest != sha256_json(document):
        raise CacheCorruptError(
            "the manifest was edited or damaged",
            where=path,
            expected=f"content_sha256 {sha256_json(document)}",
            found=digest,
        )
    try:
        manifest = Manifest.model_validate_json(canonical_json(document))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise CacheCorruptError(f"the manifest's {place}: {fault['msg']}", where=path) from None
    if fingerprint(manifest.made_of) != manifest.fingerprint:
        raise CacheCorruptError(
            "the manifest's fingerprint is not that of its fields",
            where=path,
            expected=fingerprint(manifest.made_of),
            found=manifest.fingerprint,
        )
    return manifest


def verify_files(manifest: Manifest, folder: Path, *, mend: str | None = None) -> None:
    """Raise CacheIncompleteError or CacheCorruptError unless every file is there, byte for byte."""
    for shard in (*manifest.shards, manifest.slices):
        path = folder / shard.name
        if not path.is_file():
            raise CacheIncompleteError(
                "a file of the teacher cache is missing", where=path, mend=mend
            )
        if path.stat().st_size != shard.bytes:
            raise CacheCorruptError(
                "a file of the teacher cache has the wrong size",
                where=path,
                expected=f"{shard.bytes} bytes",
                found=path.stat().st_size,
                mend=mend,
            )
        if (digest := sha256_file(path)) != shard.sha256:
            raise CacheCorruptError(
                "a file of the teacher cache is damaged",
                where=path,
                expected=f"sha256 {shard.sha256}",
                found=digest,
                mend=mend,
            )


def describe_difference(expected: dict[str, Any], manifest: Manifest) -> str:
    """The fields in which a cache differs from what is wanted, in one line."""
    return "; ".join(differences(expected, manifest.made_of))
