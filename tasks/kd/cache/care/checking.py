"""Whether a store is whole: what recipes name must be there, and every byte as it was written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks.kd.cache.care.entries import TRIAL, Entry, Kept, Needs, files_of
from tasks.kd.cache.format.manifest import File, Manifest, verify_file
from tasks.kd.cache.store.store import Document, Store
from tasks.kd.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    DataError,
    ParamsError,
)


@dataclass(frozen=True)
class Fault:
    """A fault of an entry or, without a fingerprint, of a recipe's own manifest."""

    fingerprint: str
    what: str
    recipes: tuple[str, ...]
    remote: bool = False


@dataclass(frozen=True)
class Wanted:
    """An entry as it should be, by a recipe's manifest or by that of a cache in the store."""

    document: Document
    recipe: str | None


@dataclass(frozen=True)
class Check:
    """The entries to be compared byte for byte, and what their manifests alone have shown."""

    whole: tuple[Entry, ...]
    unfinished: tuple[Entry, ...]
    faults: tuple[Fault, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files to be read."""
        return sum(entry.bytes for entry in self.whole)

    @property
    def files(self) -> int:
        """Number of files to be read."""
        return sum(len(files_of(entry.document)) for entry in self.whole if entry.document)


def choose(
    entries: Sequence[Entry], needs: Needs, names: Sequence[str], known: Iterable[str]
) -> tuple[set[str], set[str]]:
    """The recipes and fingerprints that names and beginnings of fingerprints mean.

    `known` are all recipes. Raises ParamsError for a name that means nothing or several things,
    DataError for a recipe that has no cache yet.
    """
    recipes, known, fingerprints = set(), list(known), {entry.fingerprint for entry in entries}
    meant: set[str] = set()
    for name in names:
        if name in known:
            if name not in needs.manifests and name not in needs.faults:
                raise DataError(
                    f"recipe {name} has no teacher cache yet",
                    mend=f"dvc repro cache_teacher@{name}",
                )
            recipes.add(name)
            continue
        matches = {one for one in fingerprints if len(name) >= 4 and one.startswith(name)}
        if len(matches) != 1:
            raise ParamsError(
                f"{name!r} means no recipe and no entry of the store"
                if not matches
                else f"{name!r} means several entries of the store",
                expected=_one_of(sorted(matches) or _near(name, known, fingerprints)),
                mend="stillhouse cache ls",
            )
        meant |= matches
    return recipes, meant


def _near(name: str, known: list[str], fingerprints: set[str]) -> list[str]:
    starts = {one[: max(len(name), 8)]: one for one in sorted(fingerprints)}
    near = get_close_matches(name, [*known, *starts], n=3, cutoff=0.5)
    return near or known


def _one_of(names: list[str]) -> str | None:
    return f"one of {', '.join(names)}" if names else None


def prepare(entries: Sequence[Entry], needs: Needs, chosen: tuple[set[str], set[str]]) -> Check:
    """The check of the recipes and entries chosen, or of all if none is.

    An entry that a recipe's manifest names must be there and finished, or being written. An entry
    that no recipe names may be unfinished.
    """
    recipes, meant = chosen
    everything = not recipes and not meant
    if everything:
        recipes = {*needs.manifests, *needs.faults}
    required = _required(entries, needs, recipes, meant)
    if everything:
        meant = {entry.fingerprint for entry in entries}
    selected = [
        entry
        for entry in entries
        if entry.fingerprint in {*meant, *required} or recipes & {*entry.recipes}
    ]
    faults = [Fault("", str(needs.faults[r]), (r,)) for r in sorted(recipes & {*needs.faults})]
    faults += [
        Fault(entry.fingerprint, entry.fault, entry.recipes, entry.remote)
        for entry in selected
        if entry.fault is not None
    ]
    for name, wanted in required.items():
        faults += _unmet(wanted, [entry for entry in selected if entry.fingerprint == name])
    return Check(
        whole=tuple(entry for entry in selected if entry.state == "finished"),
        unfinished=tuple(entry for entry in selected if entry.state == "unfinished"),
        faults=tuple(faults),
    )


def _required(
    entries: Sequence[Entry], needs: Needs, recipes: set[str], meant: set[str]
) -> dict[str, list[Wanted]]:
    """Entries that must be finished, by fingerprint: those that recipes read, members of caches."""
    caches = [e.document for e in entries if e.fingerprint in meant and e.members]
    members = [doc for one in caches if isinstance(one, Manifest) for doc in one.entries]
    read = [document for recipe in recipes for document in needs.read_by(recipe)]
    names = {*meant, *(document.fingerprint for document in (*members, *read))}
    wanted = [
        Wanted(document, recipe)
        for recipe in sorted(needs.manifests)
        for document in needs.read_by(recipe)
        if document.fingerprint in names
    ]
    wanted += [Wanted(document, None) for document in members]
    required: dict[str, list[Wanted]] = {}
    for one in wanted:
        required.setdefault(one.document.fingerprint, []).append(one)
    return required


def _unmet(wanted: list[Wanted], entries: list[Entry]) -> Iterator[Fault]:
    """Faults of the entries of one fingerprint that their files have no part in."""
    document = wanted[0].document
    for entry in entries:
        others = [w for w in wanted if entry.document not in (None, w.document)]
        if others:
            what = f"{document.title} was written again since: its manifest is another"
            recipes = tuple(w.recipe for w in others if w.recipe is not None)
            yield Fault(entry.fingerprint, what, recipes, entry.remote)
    if all(entry.state == "unfinished" and not entry.in_use for entry in entries):
        recipes = tuple(w.recipe for w in wanted if w.recipe is not None)
        what = f"{document.title} is not there, or not finished"
        yield Fault(document.fingerprint, what, recipes)


def compare(kept: Kept, check: Check, *, on_bytes: Callable[[int], None]) -> Iterator[Fault]:
    """Compare every byte; yield a fault for each file that is missing or differs.

    Files at a URL are fetched for it, one at a time. `on_bytes` is called with the size of each
    file when it is done. Raises TransientError and CacheError where the store can't be asked.
    """
    for entry in check.whole:
        for file in files_of(entry.document) if entry.document is not None else ():
            what = _fetch(kept, entry, file) if entry.remote else _read(kept.store, entry, file)
            if what is not None:
                yield Fault(entry.fingerprint, what, entry.recipes, entry.remote)
            on_bytes(file.bytes)


def _read(store: Store, entry: Entry, file: File) -> str | None:
    path = store.entry(entry.fingerprint) / file.name
    try:
        verify_file(path, file)
    except CacheError as error:
        return str(error)
    except OSError as error:
        return f"a file of the teacher cache can't be read: {path}. Found {error.strerror}."
    return None


def _fetch(kept: Kept, entry: Entry, file: File) -> str | None:
    assert kept.remote is not None
    kept.store.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=kept.store.folder, prefix=TRIAL) as folder:
        try:
            kept.remote.fetch(entry.fingerprint, file, Path(folder) / file.name)
        except (CacheCorruptError, CacheIncompleteError) as error:
            return str(error)
    return None
