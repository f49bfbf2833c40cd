"""Notes of who uses a store, so that nobody clears what others need.

There is one for each repository and recipe: `users/<repository>-<recipe>.json` in the store's
folder says which repository it is, where, and which entries the recipe's cache is made of. A
repository writes it when it begins a cache, when it has made one and when it trains from one. A
store behind a URL has no notes, as nobody can see from there whether a repository still exists.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.kd.cache.store.store import Store
from tasks.kd.digests import read_json, write_json
from tasks.kd.errors import CacheCorruptError

USERS = "users"
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class User:
    """A recipe of a repository on some machine, and the entries that its cache was made of.

    `seen_at` is the last time that it wrote its note, ISO 8601.
    """

    machine: str
    root: str
    recipe: str
    entries: tuple[str, ...]
    seen_at: str
    note: Path

    @property
    def is_here(self) -> bool:
        """Whether the repository is on this machine, so that its present needs can be read."""
        return self.machine == socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Whether the repository was on this machine and is gone. Of others nobody can tell."""
        return self.is_here and not Path(self.root).is_dir()


def register(store: Store, root: Path, recipe: str, entries: Iterable[str]) -> None:
    """Note that a recipe of the repository at `root` needs these entries, by fingerprint.

    Nothing is written to a store that can only be read: it is not cleared either.
    """
    root, machine = root.resolve(), socket.gethostname()
    repository = hashlib.sha256(f"{machine}:{root}".encode()).hexdigest()[:16]
    said = {
        "machine": machine,
        "root": str(root),
        "recipe": recipe,
        "entries": sorted(entries),
        "seen_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        (store.folder / USERS).mkdir(parents=True, exist_ok=True)
        write_json(store.folder / USERS / f"{repository}-{recipe}.json", said)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise


def read_users(store: Store, *, apart_from: Path) -> list[User]:
    """All users that have registered, apart from the repository at that root.

    Raises CacheCorruptError for a note that can't be read, as nobody knows what it protects.
    """
    own = (socket.gethostname(), str(apart_from.resolve()))
    users = []
    for path in sorted((store.folder / USERS).glob("*.json")):
        try:
            said = read_json(path)
            user = User(
                machine=str(said["machine"]),
                root=str(said["root"]),
                recipe=str(said["recipe"]),
                entries=tuple(map(str, said["entries"])),
                seen_at=str(said["seen_at"]),
                note=path,
            )
        except FileNotFoundError:  # removed a moment ago
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise CacheCorruptError(
                "a note of who uses the store can't be read",
                where=path,
                found=repr(error),
                advice="It may protect what another repository needs: remove it if none does.",
            ) from None
        if (user.machine, user.root) != own:
            users.append(user)
    return users


def forget(users: Iterable[User]) -> None:
    """Remove the notes of repositories that are gone."""
    for user in users:
        user.note.unlink(missing_ok=True)
