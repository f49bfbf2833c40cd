"""Digests of files, folders and values, and writing that is whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_folder(folder: Path, sha256: Callable[[Path], str] = sha256_file) -> str:
    """Hex digest of a folder: its files' relative paths and digests, in order of path.

    `sha256` digests one file.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_json([[path.relative_to(folder).as_posix(), sha256(path)] for path in files])


class Digests:
    """Digests of files and folders, each file read again only after it changed.

    A file counts as unchanged while its inode, size and times are the same.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def of(self, path: Path) -> str:
        """Hex digest of a file or a folder."""
        return sha256_folder(path, self._of_file) if path.is_dir() else self._of_file(path)

    def _of_file(self, path: Path) -> str:
        stat = path.stat()  # before reading: a write in between then shows next time
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = self._known.get(path)
        if known is None or known[0] != state:
            self._known[path] = known = state, sha256_file(path)
        return known[1]


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON value in canonical form (sorted keys, no blanks)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """A JSON value's one text: keys sorted, no blanks. Raises ValueError for NaN and infinity.

    >>> canonical_json({"b": [1, 2.5], "a": None})
    '{"a":null,"b":[1,2.5]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename, fsync of the folder.

    A write that fails leaves the old file, and nothing beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def commit_file(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name: fsync, rename, fsync of the folder."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def replace_folder(source: Path, target: Path) -> None:
    """Move a finished folder into place and replace what stood there."""
    for path in source.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    source.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
