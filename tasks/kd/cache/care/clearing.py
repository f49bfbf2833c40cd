"""Clearing a store of entries and files that no recipe needs and nobody uses."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from tasks.kd.cache.care.entries import TRIAL, Entry, Kept, Needs, read_entries, sizes_of
from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.cache.store.store import LOCK, USE, Store
from tasks.kd.errors import CacheError

# A trial has no lock: one that changed within this time may still be at work.
TRIAL_S = 3600.0
_NOBODY: Mapping[str, tuple[str, ...]] = MappingProxyType({})
COPIES, COPIES_LOCK = "copies", ".copies.lock"


@dataclass(frozen=True)
class Waste:
    """Something that may be removed, and why.

    `paths` are its files here; an entry at the URL has none.

    `in_use` is as it was found: `remove` looks again. `needed_by` are recipes of other repositories
    that share the store: it stays.
    """

    name: str
    kind: Literal["entry", "temporary", "trial", "copies", "remote"]
    why: str
    bytes: int
    in_use: bool = False
    paths: tuple[Path, ...] = ()
    members: tuple[str, ...] = ()
    needed_by: tuple[str, ...] = ()


def find_waste(
    kept: Kept, needs: Needs, *, remote: bool, others: Mapping[str, tuple[str, ...]] = _NOBODY
) -> list[Waste]:
    """All that no recipe needs: entries, leftovers and copies here; with `remote` entries there.

    `others` are who else needs an entry of this folder, by its fingerprint.

    Raises the fault of a recipe's manifest that can't be read: what it needs is not known.
    """
    for error in needs.faults.values():
        raise error
    store = kept.store
    entries = read_entries(kept if remote else Kept(store), needs)
    waste = [_as_waste(store, entry, others) for entry in entries if not entry.recipes]
    waste += _temporaries(store, {one.name for one in waste})
    waste += [_trial(folder) for folder in sorted(store.folder.glob(f"{TRIAL}*"))]
    if kept.remote is not None:
        digests = needs.digests
        copies = store.folder.glob(f"{COPIES}/[!.]*/*")
        unneeded = tuple(sorted(path for path in copies if path.parent.name not in digests))
        if unneeded:
            why = "copies of what no recipe needs"
            waste.append(Waste(COPIES, "copies", why, _bytes(unneeded), paths=unneeded))
    return waste


def remove(kept: Kept, waste: Waste) -> bool:
    """Remove waste and say True; False if it is in use or needed elsewhere, and stays as it is.

    An entry's locks are held meanwhile, so that no writer and no reader has it, and its manifest
    goes first, so that nobody finds half of one. Its folder stays, with the two lock files alone:
    a writer that waits for one of them goes on with it. Copies that are mapped stay readable to
    those who mapped them. Raises CacheError where the system refuses, TransientError where the URL
    can't be reached.
    """
    if waste.needed_by:
        return False
    if waste.kind == "remote":
        assert kept.remote is not None
        kept.remote.delete(waste.name)
        return True
    try:
        if waste.kind == "trial":
            return _remove_trial(kept.store.folder / waste.name)
        if any(kept.store.in_use(member) for member in waste.members):
            return False
        folder = kept.store.folder / waste.name
        with _alone(folder, (COPIES_LOCK,) if waste.kind == "copies" else (LOCK, USE)) as alone:
            if alone:
                _unlink(folder, waste)
            return alone
    except FileNotFoundError:  # somebody else has removed it
        return True
    except OSError as error:
        raise CacheError(
            "the store can't be cleared", where=error.filename or waste.name, found=error.strerror
        ) from None


def _as_waste(store: Store, entry: Entry, others: Mapping[str, tuple[str, ...]]) -> Waste:
    if entry.remote:
        return Waste(entry.fingerprint, "remote", "no recipe needs it", entry.bytes)
    why = {
        "finished": "no recipe needs it",
        "unfinished": "unfinished, and its writer is gone",
        "damaged": "damaged, and no recipe needs it",
    }[entry.state]
    in_use = entry.in_use or any(store.in_use(member) for member in entry.members)
    if entry.state == "unfinished" and in_use:
        why = "being written"
    folder = store.entry(entry.fingerprint)
    sizes = sizes_of(folder)
    return Waste(
        entry.fingerprint,
        "entry",
        why,
        sum(sizes.values()),
        in_use=in_use,
        paths=tuple(folder / name for name in sorted(sizes)),
        members=entry.members,
        needed_by=others.get(entry.fingerprint, ()),
    )


def _temporaries(store: Store, wasted: set[str]) -> Iterator[Waste]:
    for name in store.entries():
        paths = tuple(sorted(store.entry(name).glob(".*"))) if name not in wasted else ()
        if paths:
            in_use = store.in_use(name)
            why = "temporary files" + ("" if in_use else " of a writer that is gone")
            yield Waste(name, "temporary", why, _bytes(paths), in_use=in_use, paths=paths)


def _trial(folder: Path) -> Waste:
    paths = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    why = "left by a trial of the disk"
    return Waste(folder.name, "trial", why, _bytes(paths), in_use=_is_recent(folder), paths=paths)


def _is_recent(folder: Path) -> bool:
    return max(p.stat().st_mtime for p in (folder, *folder.rglob("*"))) > time.time() - TRIAL_S


def _remove_trial(folder: Path) -> bool:
    if _is_recent(folder):
        return False
    shutil.rmtree(folder)
    return True


@contextmanager
def _alone(folder: Path, locks: Iterable[str]) -> Iterator[bool]:
    """Hold those locks of a folder, exclusively; False at once if somebody has one."""
    with ExitStack() as stack:
        try:
            for name in locks:
                file = stack.enter_context((folder / name).open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _unlink(folder: Path, waste: Waste) -> None:
    """Unlink its files, the manifest first. Of an entry, files that came since go too."""
    paths = waste.paths
    if waste.kind == "entry":
        paths = tuple(folder / name for name in sizes_of(folder))
    for path in sorted(paths, key=lambda path: (path.name != MANIFEST, path.name)):
        path.unlink(missing_ok=True)
    if waste.kind == "copies":
        for parent in {path.parent for path in paths}:
            with suppress(OSError):  # the same content has another name too
                parent.rmdir()


def _bytes(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
