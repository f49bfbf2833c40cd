"""Local copies of a remote store's files, within a bound; the least recently used go first."""

from __future__ import annotations

import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.kd.cache.store.faults import local_faults
from tasks.kd.cache.store.remote import FileLike, Remote, check_name
from tasks.kd.digests import commit_file, sha256_file
from tasks.kd.errors import CacheFormatError, CacheQuotaError, ParamsError

_SHA256 = re.compile(r"[0-9a-f]{64}")


class LocalCopies:
    """A bounded folder of files of a remote store, each at `<sha256>/<name>`.

    A file is fetched when it is read; the least recently used one goes when the bound is passed.
    The digest is part of the path because an entry that was written again has other bytes under the
    same names, and one process may still follow the old manifest while another follows the new.

    Processes may share the folder. They place and evict files under one lock and download in
    parallel; each file is downloaded by one process while the others that want it wait. Locks are
    `flock`, which the kernel releases on death, so the folder has to be on this machine's own disk.

    The bound holds for finished copies; a download adds its own file until it is placed. An evicted
    file that is memory-mapped stays readable to whoever mapped it: Linux removes the name at once
    and frees the bytes with the last map.
    """

    def __init__(self, folder: Path, remote: Remote, *, limit_bytes: int) -> None:
        """Open the folder, or make it; clean up after dead processes; keep to the limit.

        Raises ParamsError for a folder that holds anything else, as files in it get evicted.
        """
        self._folder, self._remote, self._limit_bytes = folder, remote, limit_bytes
        self._lock, self._coming = folder / ".copies.lock", folder / ".coming"
        self._verified: set[Path] = set()
        with local_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in folder.iterdir()}
            if names and self._lock.name not in names:
                raise ParamsError(
                    "the folder for copies of the remote store holds other things",
                    where=folder,
                    expected="an empty folder, or one that was made for this",
                )
            self._lock.touch()
            self._coming.mkdir(exist_ok=True)
            self._sweep()
            with _locked(self._lock):
                self._make_room(0)

    def path(self, entry: str, file: FileLike) -> Path:
        """The verified copy of a file of an entry, fetched if need be, and marked as just used.

        Open it at once: another process may evict it (then ask again). A copy is trusted if its
        size is right and this process fetched it or has compared it with its digest once; one that
        is damaged is fetched again.

        Raises CacheQuotaError for a file that alone passes the limit, and what `Remote.fetch` does.
        """
        for name in (entry, file.name):
            check_name(name, self._remote.where)
        if not _SHA256.fullmatch(file.sha256):
            raise CacheFormatError("not a digest", where=file.name, found=repr(file.sha256))
        if file.bytes > self._limit_bytes:
            raise CacheQuotaError(
                "a file of the teacher cache is larger than all the room for local copies",
                where=f"{self._remote.where}/{entry}/{file.name}",
                expected=f"at most {self._limit_bytes} bytes",
                found=f"{file.bytes} bytes",
            )
        path = self._folder / file.sha256 / file.name
        with local_faults(self._folder):
            while not self._use(path, file):
                self._fetch(entry, file, path)
        return path

    def _use(self, path: Path, file: FileLike) -> bool:
        """Mark a good copy as used. False if there is none, or none any more."""
        try:
            good = path.stat().st_size == file.bytes
            if good and path not in self._verified:
                good = sha256_file(path) == file.sha256
            if not good:
                path.unlink()
                return False
            self._verified.add(path)
            _touch(path)
        except FileNotFoundError:
            return False
        return True

    def _fetch(self, entry: str, file: FileLike, path: Path) -> None:
        with _locked(self._coming / f"{file.sha256}.lock"):
            if self._use(path, file):  # whoever held the lock has fetched it
                return
            part = self._coming / f"{file.sha256}.{uuid.uuid4().hex}.part"
            try:
                with _locked(self._lock):  # so that the download finds room on the disk
                    self._make_room(file.bytes)
                self._remote.fetch(entry, file, part)
                with _locked(self._lock):  # others have placed files meanwhile
                    self._make_room(file.bytes)
                    path.parent.mkdir(exist_ok=True)
                    _touch(part)
                    commit_file(part, path)
                self._verified.add(path)
            finally:
                part.unlink(missing_ok=True)

    def _make_room(self, wanted_bytes: int) -> None:
        """Evict the least recently used copies until so much fits. The caller holds the lock."""
        copies = []
        for path in self._folder.glob("[!.]*/*"):
            with suppress(FileNotFoundError):  # another process found it damaged
                status = path.stat()
                copies.append((status.st_mtime_ns, status.st_size, path))
        total = wanted_bytes + sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self._limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
            with suppress(OSError):  # the same content has another name too
                path.parent.rmdir()

    def _sweep(self) -> None:
        """Remove the files of processes that died while fetching."""
        for part in self._coming.glob("*.part"):
            with (
                suppress(BlockingIOError),  # alive
                _locked(self._coming / f"{part.name.partition('.')[0]}.lock", wait=False),
            ):
                part.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a file's lock. Without waiting, BlockingIOError if another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile holds the descriptor too
        os.close(descriptor)


def _touch(path: Path) -> None:
    """Set the time of use to now, in nanoseconds: the kernel's own clock moves in milliseconds."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))
