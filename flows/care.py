"""The work of `stillhouse cache ls`, `verify` and `gc`, as plain values."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.kd.cache.care.checking import Fault, choose, compare, prepare
from tasks.kd.cache.care.clearing import Waste, find_waste, remove
from tasks.kd.cache.care.entries import Entry, Kept, Needs, open_kept, read_entries, read_needs
from tasks.kd.cache.care.users import User, forget, read_users
from tasks.kd.cache.format.manifest import Live
from tasks.kd.cache.store.store import store_place
from tasks.kd.errors import CacheError, KDError


def kept_of(root: Path) -> Kept:
    """The repository's store, as this process's environment names it."""
    return open_kept(*store_place(os.environ, root))


def needs_of(root: Path) -> Needs:
    """The needs of a repository's recipes, read from their caches' manifests."""
    paths = {
        name: root / "artifacts" / name / "cache_teacher" / "manifest.json"
        for name in recipe_names(root)
    }
    return read_needs({name: path for name, path in paths.items() if path.is_file()})


def needed_by_others(root: Path, kept: Kept) -> dict[str, tuple[str, ...]]:
    """Recipes of other repositories that need an entry of the store's folder, by fingerprint.

    For a repository on this machine, its recipes' present manifests count; a recipe without a
    readable manifest counts by its note. For one on another machine, its notes count. Raises
    CacheCorruptError for a note that can't be read.
    """
    readers: dict[str, tuple[str, ...]] = {}
    for user in read_users(kept.store, apart_from=root):
        where = user.root if user.is_here else f"{user.root} on {user.machine}"
        for name in _entries_of(user):
            readers[name] = (*readers.get(name, ()), f"{user.recipe} of {where}")
    return readers


def _entries_of(user: User) -> Sequence[str]:
    if user.is_gone:
        return ()
    if not user.is_here:
        return user.entries
    needs = needs_of(Path(user.root))
    if user.recipe not in needs.manifests:
        return user.entries
    return [name for name, recipes in needs.recipes.items() if user.recipe in recipes]


def gone_users(root: Path, kept: Kept) -> list[User]:
    """Users of the store on this machine whose repository is gone."""
    return [user for user in read_users(kept.store, apart_from=root) if user.is_gone]


def recipe_names(root: Path) -> list[str]:
    """All recipes with a file, whether listed for DVC or not."""
    from tasks.kd.recipe.files import RECIPES_FILE

    files = sorted((root / RECIPES_FILE).parent.glob("*.yaml"))
    return [path.stem for path in files if path.name != RECIPES_FILE.name]


def mend(recipe: str) -> str:
    """The command that writes a recipe's damaged cache again."""
    return f"dvc repro -s -f cache_teacher@{recipe}"


# --- ls ------------------------------------------------------------------------------------------


def list_store(root: Path) -> dict[str, Any]:
    """The store's content: `entries`, each cache before its members; `recipes` with what they lack.

    `bytes` counts this machine's, `remote_bytes` the URL's, and `unneeded_bytes` those that no
    recipe needs (None if a recipe's manifest can't be read).
    """
    kept, needs = kept_of(root), needs_of(root)
    entries, others = read_entries(kept, needs), needed_by_others(root, kept)
    finished = {entry.fingerprint for entry in entries if entry.state == "finished"}
    recipes = {
        name: {
            "mode": "live" if isinstance(needs.manifests.get(name), Live) else "cache",
            "lacks": [
                doc.fingerprint for doc in needs.read_by(name) if doc.fingerprint not in finished
            ],
            "fault": str(needs.faults[name]) if name in needs.faults else None,
        }
        for name in sorted({*needs.manifests, *needs.faults})
    }
    here = [entry for entry in entries if not entry.remote]
    return {
        "store": kept.place,
        "entries": [_describe(entry, entries, others) for entry in entries],
        "bytes": sum(entry.bytes for entry in here),
        "remote_bytes": sum(entry.bytes for entry in entries if entry.remote),
        "unneeded_bytes": None
        if needs.faults
        else sum(e.bytes for e in here if not e.recipes and e.fingerprint not in others),
        "recipes": recipes,
    }


def _describe(
    entry: Entry, entries: Sequence[Entry], others: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    caches = [e.fingerprint for e in entries if entry.fingerprint in e.members]
    used = [e for e in entries if e.fingerprint in {entry.fingerprint, *entry.members}]
    last_use = max((e.last_use for e in used if e.last_use is not None), default=None)
    examples, tokens = entry.counts or (None, None)
    return {
        "fingerprint": entry.fingerprint,
        "kind": entry.document.kind if entry.document is not None else None,
        "what": entry.what,
        "teacher_sha256": entry.teacher or None,
        "examples": examples,
        "tokens": tokens,
        "bytes": entry.bytes,
        "state": entry.state,
        "fault": entry.fault,
        "remote": entry.remote,
        "recipes": list(entry.recipes),
        "others": [] if entry.remote else list(others.get(entry.fingerprint, ())),
        "caches": sorted(set(caches)),
        "last_use": _when(last_use),
        "in_use": any(e.in_use for e in used),
    }


def _when(seconds: float | None) -> str | None:
    """A time in ISO 8601, UTC, to the second."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="seconds")


# --- verify --------------------------------------------------------------------------------------


def verify_store(root: Path, names: Sequence[str], bar: Callable[[int], Any]) -> dict[str, Any]:
    """The result of a check: `faults`, each with its mend, `unfinished` entries, `files`, `bytes`.

    `names` are recipes (or their paths) and beginnings of fingerprints; without names, all is
    checked. `bar` makes a progress bar over a number of bytes. Raises ParamsError for an unknown
    name.
    """
    kept, needs = kept_of(root), needs_of(root)
    entries = read_entries(kept, needs)
    wanted = [Path(name).stem if name.endswith((".yaml", ".yml")) else name for name in names]
    check = prepare(entries, needs, choose(entries, needs, wanted, recipe_names(root)))
    with bar(check.bytes) as progress:
        faults = [*check.faults, *compare(kept, check, on_bytes=progress.update)]
    return {
        "store": kept.place,
        "faults": [
            {
                "entry": fault.fingerprint,
                "fault": fault.what,
                "recipes": list(fault.recipes),
                "mend": _mend_fault(kept, fault),
            }
            for fault in faults
        ],
        "unfinished": [
            {"entry": entry.fingerprint, "bytes": entry.bytes, "being_written": entry.in_use}
            for entry in check.unfinished
        ],
        "files": check.files,
        "bytes": check.bytes,
    }


def _mend_fault(kept: Kept, fault: Fault) -> str:
    """The command that mends a fault: writing anew, or removing what no recipe needs."""
    if not fault.recipes:
        return f"stillhouse cache gc{' --remote' if fault.remote else ''}"
    if fault.remote:  # the writer trusts the digests beside the files and would not send them
        return f"delete {kept.place}/{fault.fingerprint}, then: {mend(fault.recipes[0])}"
    return mend(fault.recipes[0])


# --- gc ------------------------------------------------------------------------------------------


def find_unneeded(root: Path, kept: Kept, *, remote: bool) -> list[Waste]:
    """Everything that no recipe of this repository needs, marked if other repositories need it.

    Raises CacheError if a recipe's manifest or another repository's note can't be read, and if a
    recipe has a teacher and no cache yet.
    """
    needs = needs_of(root)
    for recipe in recipe_names(root):
        trained = root / "artifacts" / recipe / "train_teacher"
        if trained.is_dir() and recipe not in {*needs.manifests, *needs.faults}:
            raise CacheError(
                f"recipe {recipe} has a teacher and no cache yet, so nothing is removed",
                where=trained,
                advice="A cache that was begun would be lost: end it, or remove this folder.",
                mend=f"dvc repro -s cache_teacher@{recipe}",
            )
    for recipe, fault in needs.faults.items():
        raise CacheError(
            f"what recipe {recipe} needs can't be told, so nothing is removed",
            advice=str(fault),
            mend=mend(recipe),
        )
    return find_waste(kept, needs, remote=remote, others=needed_by_others(root, kept))


def clear(root: Path, kept: Kept, wanted: Sequence[Waste], *, remote: bool) -> dict[str, Any]:
    """Remove what was shown, unless a recipe needs it by now or it is in use.

    Returns `removed`, `kept` with reasons, `bytes`, and whether the system refused something
    (`failed`). Notes of repositories that are gone are removed too.
    """
    now = {(one.kind, one.name): one for one in find_unneeded(root, kept, remote=remote)}
    removed, stays, failed = [], [], False
    for one in wanted:
        present = now.get((one.kind, one.name))
        if present is None:
            stays.append({**describe_waste(one), "kept": "needed by now, or gone"})
            continue
        try:
            if remove(kept, present):
                removed.append(describe_waste(present))
            else:
                stays.append({**describe_waste(present), "kept": why_kept(present)})
        except KDError as error:
            failed = True
            stays.append({**describe_waste(present), "kept": str(error)})
    if wanted:
        forget(gone_users(root, kept))
    return {
        "removed": removed,
        "kept": stays,
        "bytes": sum(one["bytes"] for one in removed),
        "failed": failed,
    }


def why_kept(waste: Waste) -> str:
    """The reason why something unneeded by this repository stays."""
    return f"needed by {', '.join(waste.needed_by)}" if waste.needed_by else "in use"


def describe_waste(waste: Waste) -> dict[str, Any]:
    """Something unneeded, as JSON."""
    return {"name": waste.name, "kind": waste.kind, "why": waste.why, "bytes": waste.bytes}
