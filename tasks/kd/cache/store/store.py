"""The store: where entries lie, who writes them, who uses them.

An entry is a folder named by its fingerprint. One writer at a time (`lock`), any number of users
(`use`, whose time of change is the last use); the kernel drops both locks when a process dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from tasks.kd.cache.format.manifest import (
    MANIFEST,
    File,
    Live,
    Manifest,
    Piece,
    Stream,
    verify_file,
    verify_size,
)
from tasks.kd.cache.format.parsing import parse_document, read_document
from tasks.kd.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheQuotaError,
)

if TYPE_CHECKING:
    from tasks.kd.cache.store.copies import LocalCopies
    from tasks.kd.cache.store.remote import Remote

LOCK, USE = "lock", "use"
Document = Stream | Piece | Manifest | Live
# All files, none, or (i, n) for the i-th of n processes' part of them.
Verify = bool | tuple[int, int]


class Store:
    """A folder of entries, and the store elsewhere that it reads from and shares with.

    `remote` is the store elsewhere, `copies` the files of it that are kept on this machine, and
    `open_bytes` how much of the store a reader may have open at a time (None: any amount).
    """

    def __init__(
        self,
        folder: Path,
        *,
        remote: Remote | None = None,
        copies: LocalCopies | None = None,
        open_bytes: int | None = None,
    ) -> None:
        self.folder = folder
        self._remote, self._copies = remote, copies
        self.open_bytes = open_bytes
        self._here: dict[str, bool] = {}

    def entry(self, fingerprint: str) -> Path:
        """An entry's folder, there or not."""
        return self.folder / fingerprint

    def holds(self, entry: Stream | Piece | Manifest) -> bool:
        """Whether this machine has that very entry, finished. Its files are not looked at."""
        try:
            return read_document(self.entry(entry.fingerprint) / MANIFEST) == entry
        except CacheError:
            return False

    def finished(self, fingerprint: str) -> Document | None:
        """The manifest of a finished entry, every byte verified; None if there is none.

        A damaged entry loses its manifest. That makes it an unfinished one, which its writer mends.
        """
        folder = self.entry(fingerprint)
        try:
            document = read_document(folder / MANIFEST)
            for file in getattr(document, "files", ()):
                verify_file(folder / file.name, file)
        except CacheError:
            with suppress(FileNotFoundError):
                (folder / MANIFEST).unlink()
            return self._finished_elsewhere(fingerprint)
        return document

    def share(self, manifest: Manifest) -> None:
        """Put a cache's entries into the store that is elsewhere, if there is one."""
        if self._remote is not None:
            for entry in manifest.entries:
                if self.holds(entry):
                    self._remote.upload(self.entry(entry.fingerprint), entry.files)
                elif self._finished_elsewhere(entry.fingerprint) != entry:
                    raise CacheIncompleteError(
                        "an entry of the cache is neither here nor elsewhere",
                        where=self.entry(entry.fingerprint),
                        expected=entry.title,
                        found="nothing finished",
                    )
            self._remote.upload(self.entry(manifest.fingerprint), ())

    def _finished_elsewhere(self, fingerprint: str) -> Document | None:
        text = self._remote.manifest(fingerprint) if self._remote is not None else None
        return parse_document(text, fingerprint) if text is not None else None

    def discard(self, manifest: Manifest) -> None:
        """Remove a wrong cache from this machine, with all entries that it is made of."""
        with self.writing(manifest.fingerprints):
            for name in manifest.fingerprints:
                (self.entry(name) / MANIFEST).unlink(missing_ok=True)
                for path in self.entry(name).iterdir():
                    if path.name not in (LOCK, USE):
                        path.unlink()

    def path(self, entry: Stream | Piece, file: File) -> Path:
        """Path of an entry's file on this machine. Raises CacheIncompleteError if it is nowhere."""
        here = self.entry(entry.fingerprint) / file.name
        if self._copies is None or self._is_here(entry):
            return here
        return self._copies.path(entry.fingerprint, file)

    def _is_here(self, entry: Stream | Piece) -> bool:
        """`holds`, asked once for each entry: shards are opened again and again."""
        if entry.fingerprint not in self._here:
            self._here[entry.fingerprint] = self.holds(entry)
        return self._here[entry.fingerprint]

    def require(self, manifest: Manifest, *, verify: Verify, mend: str) -> None:
        """Raise CacheIncompleteError or CacheCorruptError unless all that a cache needs is there.

        With `verify` every byte is compared; with `verify` (i, n) the bytes of every n-th file from
        the i-th on. Of other files the sizes are compared, and the bytes of a stream's statistics,
        which are few and of one size for all layers. Files of a remote store are compared when they
        arrive.
        """
        first, step = verify if isinstance(verify, tuple) else (0, 1)
        number = 0
        for entry in manifest.entries:
            folder = self.entry(entry.fingerprint)
            if not self.holds(entry) and self._finished_elsewhere(entry.fingerprint) == entry:
                continue
            if not (folder / MANIFEST).exists():
                raise CacheIncompleteError(
                    "this machine's store lacks a part of the teacher cache",
                    where=folder,
                    expected=f"{len(entry.files)} files of {entry.title}",
                    found="no finished entry",
                    mend=mend,
                )
            if read_document(folder / MANIFEST) != entry:
                raise CacheCorruptError(
                    "the store's manifest is not the stage's", where=folder, mend=mend
                )
            for file in entry.files:
                small = isinstance(entry, Stream) and file == entry.statistics
                own = verify is not False and number % step == first
                check = verify_file if own or small else verify_size
                check(folder / file.name, file, mend=mend)
                number += 1

    @contextmanager
    def writing(self, fingerprints: Iterable[str]) -> Iterator[None]:
        """Be the only writer of those entries, after waiting for any other.

        Temporary files of a killed writer are removed. Raises CacheError for a store that
        can't be written, CacheQuotaError for a disk that fills up.
        """
        with ExitStack() as stack:
            stack.enter_context(disk_faults(self.folder))
            for fingerprint in sorted(fingerprints):  # in one order, so that no two wait in a ring
                self.entry(fingerprint).mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.entry(fingerprint) / LOCK).open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)
                for left in self.entry(fingerprint).glob(".*"):
                    left.unlink()
            yield

    def use(self, fingerprints: Iterable[str]) -> Callable[[], None]:
        """Mark entries as in use until the returned function is called, or this process ends."""
        marks: list[int] = []
        for fingerprint in fingerprints:
            if self.entry(fingerprint).is_dir():
                with suppress(OSError):  # a store that can only be read is not cleared
                    mark = os.open(self.entry(fingerprint) / USE, os.O_RDWR | os.O_CREAT, 0o666)
                    fcntl.flock(mark, fcntl.LOCK_SH)
                    os.utime(mark)
                    marks.append(mark)

        def leave() -> None:
            while marks:
                os.close(marks.pop())

        return leave

    def in_use(self, fingerprint: str) -> bool:
        """Whether somebody reads or writes the entry at this moment."""
        return any(
            _is_locked(path)
            for path in (self.entry(fingerprint) / LOCK, self.entry(fingerprint) / USE)
        )

    def entries(self) -> list[str]:
        """Fingerprints of all entries, unfinished ones too."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if path.is_dir()
            and len(path.name) == 32
            and not set(path.name) - set("0123456789abcdef")
        )


def store_place(environment: Mapping[str, str], root: Path) -> tuple[str, Path]:
    """The place and the local folder of a repository's teacher caches, for `open_cache_store`.

    The place is `.store`, or the folder (from the root) or fsspec URL of STILLHOUSE_STORE.
    """
    local = root / ".store"
    place = environment.get("STILLHOUSE_STORE") or str(local)
    return (place if "://" in place else str(root / place)), local


def open_cache_store(place: str, local: Path, *, copies_bytes: int) -> Store:
    """The store at a folder, or at an fsspec URL with this machine's part of it in `local`.

    Of a URL at most `copies_bytes` of what is only read are kept, in `local/copies`.
    """
    if "://" not in place:
        return Store(Path(place))
    from tasks.kd.cache.store.copies import LocalCopies
    from tasks.kd.cache.store.remote import Remote

    remote = Remote(place)
    copies = LocalCopies(local / "copies", remote, limit_bytes=copies_bytes)
    return Store(local, remote=remote, copies=copies, open_bytes=copies_bytes)


@contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Name a full disk (CacheQuotaError) and a store that can't be written (CacheError)."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = re.search(r"\(os error (\d+)\)", str(error))  # safetensors gives it in words only
        number = error.errno if isinstance(error, OSError) else said and int(said[1])
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise CacheQuotaError(
                "the disk filled up while the teacher cache was written",
                where=folder,
                advice="What is finished was kept. Make room and run it again, or set "
                "STILLHOUSE_STORE to a folder on another disk.",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CacheError(
                "the store can't be written",
                where=folder,
                found=error,
                advice="Set STILLHOUSE_STORE to a folder that can.",
            ) from error
        raise


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
