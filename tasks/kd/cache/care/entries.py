"""The entries of a store, and which recipes need them.

Nothing here loads torch or opens a shard: manifests say it all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks.kd.cache.format.manifest import MANIFEST, File, Live, Manifest, Piece, Stream
from tasks.kd.cache.format.parsing import parse_document, read_document, read_recipe_manifest
from tasks.kd.cache.store.store import LOCK, USE, Document, Store
from tasks.kd.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
)
from tasks.kd.recipe.streams import in_order

if TYPE_CHECKING:
    from tasks.kd.cache.store.remote import Remote

TRIAL = "trial-"  # begins the name of what `choice.measure` and `compare` put beside the entries


@dataclass(frozen=True)
class Kept:
    """A store to be listed, checked or cleared: this machine's folder, and the one at a URL if any.

    Unlike `open_cache_store`, which a stage reads and writes through, this makes nothing and
    evicts nothing.
    """

    store: Store
    remote: Remote | None = None

    @property
    def place(self) -> str:
        """The folder or the URL, without secrets."""
        return self.remote.where if self.remote is not None else str(self.store.folder)


def open_kept(place: str, local: Path) -> Kept:
    """The store of `store_place`. Raises ParamsError for a URL that fsspec can't open."""
    if "://" not in place:
        return Kept(Store(Path(place)))
    from tasks.kd.cache.store.remote import Remote

    return Kept(Store(local), Remote(place))


# --- what recipes need ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """The manifest of each recipe's cache; `faults` are those of manifests that can't be read."""

    manifests: Mapping[str, Manifest | Live]
    faults: Mapping[str, CacheError]

    def read_by(self, recipe: str) -> list[Stream | Piece]:
        """The streams and pieces that a recipe reads; none where it runs its teacher."""
        manifest = self.manifests.get(recipe)
        return list(manifest.entries) if isinstance(manifest, Manifest) else []

    @cached_property
    def recipes(self) -> dict[str, tuple[str, ...]]:
        """The recipes that need an entry, by its fingerprint."""
        recipes: dict[str, tuple[str, ...]] = {}
        for recipe, manifest in self.manifests.items():
            for name in (manifest.fingerprint, *(doc.fingerprint for doc in self.read_by(recipe))):
                recipes[name] = (*recipes.get(name, ()), recipe)
        return recipes

    @property
    def digests(self) -> set[str]:
        """Digests of all files that any recipe needs."""
        return {
            f.sha256 for recipe in self.manifests for doc in self.read_by(recipe) for f in doc.files
        }


def read_needs(manifests: Mapping[str, Path]) -> Needs:
    """Read the recipes' present manifests, given by path."""
    present: dict[str, Manifest | Live] = {}
    faults: dict[str, CacheError] = {}
    for recipe, path in manifests.items():
        try:
            present[recipe] = read_recipe_manifest(path)
        except CacheError as error:
            faults[recipe] = error
    return Needs(present, faults)


def files_of(document: Document) -> tuple[File, ...]:
    """The files of an entry itself. A cache has none: its streams and pieces are entries."""
    return document.files if isinstance(document, Stream | Piece) else ()


# --- what lies there -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """An entry on this machine, or (`remote`) at the store's URL.

    `document` is its manifest if it is finished, `fault` says what is wrong with the manifest that
    it has. `last_use` is in seconds since 1970; use on other machines can't be seen.
    """

    fingerprint: str
    remote: bool
    document: Document | None
    fault: str | None
    bytes: int
    recipes: tuple[str, ...]
    last_use: float | None
    in_use: bool

    @property
    def state(self) -> Literal["finished", "unfinished", "damaged"]:
        """`damaged` speaks of the manifest alone: files would have to be read."""
        if self.fault is not None:
            return "damaged"
        return "finished" if self.document is not None else "unfinished"

    @property
    def what(self) -> str:
        """A stream's name and codec, a piece's name, or how many of each a cache has."""
        made_of = self.document.made_of if self.document is not None else {}
        if isinstance(self.document, Stream):
            return f"{made_of.get('stream')} {self.document.codec}"
        if isinstance(self.document, Manifest):
            return f"{len(self.document.streams)} streams, {len(self.document.pieces)} pieces"
        return str(made_of.get("piece", ""))

    @property
    def teacher(self) -> str:
        """Digest of the teacher's weights; empty if there is no manifest to say it."""
        return str(self.document.made_of.get("teacher_sha256", "")) if self.document else ""

    @property
    def counts(self) -> tuple[int, int] | None:
        """Examples and tokens of a stream or a cache."""
        if isinstance(self.document, Stream | Manifest):
            return self.document.examples, self.document.tokens
        return None

    @property
    def members(self) -> tuple[str, ...]:
        """Fingerprints of a cache's streams and pieces."""
        if not isinstance(self.document, Manifest):
            return ()
        members: dict[str, Stream | Piece] = {**self.document.streams, **self.document.pieces}
        names = (*in_order(self.document.streams), *in_order(self.document.pieces))
        return tuple(members[name].fingerprint for name in names)


def read_entries(kept: Kept, needs: Needs) -> list[Entry]:
    """All entries, each cache before its streams and pieces. Only manifests are read."""
    here = [_read_here(kept.store, name, needs) for name in kept.store.entries()]
    there = [_read_there(kept.remote, name, needs) for name in _names(kept.remote)]
    entries = [entry for entry in (*here, *there) if entry is not None]
    order: dict[tuple[bool, str], int] = {}
    for entry in sorted(entries, key=lambda e: (e.remote, not e.recipes, e.fingerprint)):
        if entry.members:
            for name in (entry.fingerprint, *entry.members):
                order.setdefault((entry.remote, name), len(order))
    return sorted(
        entries, key=lambda e: (order.get((e.remote, e.fingerprint), len(order)), e.remote)
    )


def _names(remote: Remote | None) -> list[str]:
    return remote.entries() if remote is not None else []


def _read_here(store: Store, name: str, needs: Needs) -> Entry | None:
    """The entry in a folder; None if it holds nothing but locks.

    `remove` leaves such a folder, as a writer may wait there.
    """
    folder, fault = store.entry(name), None
    document: Document | None = None
    try:
        document = _named(read_document(folder / MANIFEST), name, folder)
    except CacheIncompleteError:
        pass
    except CacheError as error:
        fault = str(error)
    sizes = sizes_of(folder)
    in_use = store.in_use(name)
    if not sizes and not in_use:
        return None
    last_use = None
    with suppress(FileNotFoundError):
        last_use = (folder / USE).stat().st_mtime
    return Entry(
        fingerprint=name,
        remote=False,
        document=document,
        fault=fault,
        bytes=sum(f.bytes for f in files_of(document)) if document else sum(sizes.values()),
        recipes=needs.recipes.get(name, ()),
        last_use=last_use,
        in_use=in_use,
    )


def _read_there(remote: Remote | None, name: str, needs: Needs) -> Entry | None:
    text = remote.manifest(name) if remote is not None else None
    if text is None or remote is None:
        return None  # deleted a moment ago
    document, fault, where = None, None, f"{remote.where}/{name}/{MANIFEST}"
    try:
        document = _named(parse_document(text, where), name, where)
    except CacheError as error:
        fault = str(error)
    return Entry(
        fingerprint=name,
        remote=True,
        document=document,
        fault=fault,
        bytes=sum(file.bytes for file in files_of(document)) if document else 0,
        recipes=needs.recipes.get(name, ()),
        last_use=None,
        in_use=False,
    )


def _named(document: Document, name: str, where: object) -> Document:
    """Raise CacheCorruptError for the manifest of another entry."""
    if document.fingerprint != name:
        raise CacheCorruptError(
            "an entry holds the manifest of another",
            where=where,
            expected=f"fingerprint {name}",
            found=document.fingerprint,
        )
    return document


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes by name of the files in an entry's folder, locks left out."""
    sizes = {}
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                if path.name not in (LOCK, USE) and path.is_file():
                    sizes[path.name] = path.stat().st_size
    return sizes
