"""Reading manifests: what a manifest says is checked against itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.kd.cache.format.fingerprint import (
    FORMAT_VERSION,
    fingerprint,
    piece_fields,
    stream_fields,
)
from tasks.kd.cache.format.manifest import Live, Manifest, Piece, Stream
from tasks.kd.digests import canonical_json, sha256_json
from tasks.kd.errors import CacheCorruptError, CacheFormatError, CacheIncompleteError
from tasks.kd.recipe.streams import plan_streams

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
    document = _parse_object(text, where)
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


def _parse_object(text: bytes, where: object) -> dict[str, Any]:
    """The fields of a manifest of this format version whose content fits its digest."""
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
    return document


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
    return _uneven(manifest)


def _uneven(manifest: Manifest) -> str | None:
    """Words for streams or shards that don't add up to the same examples and tokens."""
    sizes = {
        size
        for stream in manifest.streams.values()
        for size in (
            (stream.examples, stream.tokens),
            (sum(s.examples for s in stream.shards), sum(s.tokens for s in stream.shards)),
        )
    }
    return "streams or shards of different examples" if len(sizes) > 1 else None
