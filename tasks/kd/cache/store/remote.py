"""The store elsewhere: entries of the teacher cache behind a URL.

A remote store is laid out as the local one is, so that a mirror made by any tool is a store too:

    <entry>/<name>           a file of the entry
    <entry>/<name>.sha256    its digest, as `sha256sum -c` reads it; written after the file
    <entry>/manifest.json    written last: an entry without it is unfinished and not offered

Digests lie beside the files so that an upload can tell which files an interrupted one has left. A
size does not tell a stale file from the right one, reading back costs as much as uploading again,
and drivers differ in the digests that they keep (S3's ETag of a file that was uploaded in parts is
none). A side object is the same everywhere, and as it is written last it never vouches for half a
file. It decides only what is uploaded again: every file that comes down is compared with the
manifest's digest.

Errors are of the `KDError` tree, in one line, with passwords and tokens cut out of URLs. Retries
are the drivers' own; so are credentials, which they find in their usual places, such as
AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec

from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.cache.store.faults import local_faults, named_faults, one_line, redact
from tasks.kd.digests import sha256_file
from tasks.kd.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    ParamsError,
    TransientError,
)

SIDE = ".sha256"

# Schemes where a file needs its folder first and is written in place, byte by byte. Elsewhere an
# object appears whole or not at all, and a request for a folder may create a bucket (s3fs does).
_FOLDERS = {"file", "local", "sftp", "ssh"}
_EXTRAS = {"s3": "s3", "s3a": "s3"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class FileLike(Protocol):
    """A file as a manifest names it."""

    @property
    def name(self) -> str:
        """Its name in the entry's folder."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """The hex digest of its content."""


class Remote:
    """A store behind a URL that fsspec reads. Holds no connection: may be pickled and forked."""

    def __init__(self, url: str) -> None:
        """Name the store, `s3://bucket/prefix` or `file:///folder`. No connection is made yet.

        Raises ParamsError for a URL that is none, or whose driver is not installed.
        """
        self._url = url.rstrip("/") if url.partition("://")[2].strip("/") else url
        self.where = redact(self._url)
        scheme, separator, rest = url.partition("://")
        if not (scheme and separator) or not (rest.strip("/") or scheme == "memory"):
            raise ParamsError(
                "a remote store needs a URL",
                where=self.where,
                expected="scheme://place, such as s3://bucket/prefix or file:///folder",
            )
        self._written_in_place = scheme in _FOLDERS
        try:
            self._open()
        except (ImportError, ValueError) as error:
            raise ParamsError(
                f"no driver for {scheme}:// is installed",
                where=self.where,
                found=one_line(error, self._url),
                mend=f"pip install 'stillhouse[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else None,
            ) from None

    def __repr__(self) -> str:
        return f"Remote({self.where!r})"

    def manifest(self, entry: str) -> bytes | None:
        """The bytes of an entry's manifest.json; None for an entry that is unfinished or absent."""
        files, folder = self._place(entry)
        try:
            with named_faults(self._url):
                content: bytes = files.cat_file(f"{folder}/{MANIFEST}")
        except FileNotFoundError:
            return None
        return content

    def entries(self) -> list[str]:
        """Names of the finished entries, sorted."""
        files, root = self._open()
        try:
            with named_faults(self._url):
                rows = files.ls(root, detail=True)
        except FileNotFoundError:
            return []
        names = sorted(PurePosixPath(row["name"]).name for row in rows if _is_folder(row))
        return [name for name in names if _NAME.fullmatch(name) and MANIFEST in self._sizes(name)]

    def upload(self, folder: Path, files: Sequence[FileLike]) -> None:
        """Upload a finished entry: the named files first, `folder/manifest.json` last.

        A file that is there with the same size and digest is not sent again, so that an upload
        which was interrupted goes on where it was. A file is compared with its digest before it is
        sent. Several uploads of the same files at once do no harm: each puts whole files with the
        same content. Where an entry with another manifest is there, that manifest goes first.

        Raises CacheIncompleteError or CacheCorruptError for a local file that is not as it is
        named, ParamsError where the bucket is not there, TransientError and CacheError.
        """
        with local_faults(folder):
            manifest = _read_manifest(folder)
        there = self.manifest(folder.name)
        if there not in (None, manifest):
            self._remove(folder.name, MANIFEST)
        sizes = self._sizes(folder.name)
        named = [file for file in files if file.name != MANIFEST]
        for file in named:
            if not self._has(folder.name, file, sizes):
                self._send(folder, file, sizes)
        if there != manifest:
            self._commit(folder.name, named, manifest)

    def fetch(self, entry: str, file: FileLike, temporary: Path) -> None:
        """Download a file of an entry to `temporary`, and verify its size and digest.

        The caller renames the verified file, or removes what there is. Raises CacheIncompleteError
        for a file that is not there and CacheCorruptError for one that differs from its size or
        digest.
        """
        files, folder = self._place(entry, file.name)
        temporary.touch()  # a folder that can't be written is found before the store is asked
        try:
            with named_faults(self._url):
                files.get_file(f"{folder}/{file.name}", str(temporary))
        except FileNotFoundError:
            raise CacheIncompleteError(
                "the remote store lacks a file of the teacher cache",
                where=f"{self.where}/{entry}/{file.name}",
            ) from None
        _verify(temporary, file, where=f"{self.where}/{entry}/{file.name}")

    def delete(self, entry: str) -> None:
        """Remove an entry, its manifest first, so that nobody is offered half of one."""
        files, folder = self._place(entry)
        names = self._sizes(entry)
        for name in sorted(names, key=lambda name: name != MANIFEST):
            self._remove(entry, name)
        if names and self._written_in_place:
            with named_faults(self._url):
                files.rmdir(folder)

    def _open(self) -> tuple[Any, str]:
        """The driver and the path of the store. fsspec keeps one driver per process and thread."""
        files, root = fsspec.core.url_to_fs(self._url)
        files.invalidate_cache()  # others write there too
        return files, str(root).rstrip("/")

    def _place(self, *names: str) -> tuple[Any, str]:
        """The driver and the path of an entry. Every name is checked."""
        for name in names:
            check_name(name, self.where)
        files, root = self._open()
        return files, f"{root}/{names[0]}"

    def _sizes(self, entry: str) -> dict[str, int]:
        """Bytes by name of the files in an entry's folder, finished or not."""
        files, folder = self._place(entry)
        try:
            with named_faults(self._url):
                rows = files.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        return {PurePosixPath(r["name"]).name: int(r["size"]) for r in rows if not _is_folder(r)}

    def _has(self, entry: str, file: FileLike, sizes: dict[str, int]) -> bool:
        side = f"{file.name}{SIDE}"
        if sizes.get(file.name) != file.bytes or side not in sizes:
            return False
        files, folder = self._place(entry, file.name)
        try:
            with named_faults(self._url):
                said: bytes = files.cat_file(f"{folder}/{side}")
        except FileNotFoundError:
            return False
        return said == _side(file)

    def _send(self, folder: Path, file: FileLike, sizes: dict[str, int]) -> None:
        """Put a file, then its digest. The digest of an earlier file is removed first."""
        path, side = folder / file.name, f"{file.name}{SIDE}"
        check_name(file.name, folder)
        with local_faults(folder):
            if not path.is_file():
                raise CacheIncompleteError("a file of the teacher cache is not there", where=path)
            _verify(path, file, where=path)
        if side in sizes:
            self._remove(folder.name, side)
        self._write(folder.name, file.name, lambda files, to: files.put_file(str(path), to))
        self._write(folder.name, side, lambda files, to: files.pipe_file(to, _side(file)))

    def _commit(self, entry: str, named: Sequence[FileLike], manifest: bytes) -> None:
        """Put the manifest if all files that it names are there. Somebody may have deleted some."""
        sizes = self._sizes(entry)
        lost = [file.name for file in named if sizes.get(file.name) != file.bytes]
        if lost:
            raise TransientError(
                "the entry changed in the remote store while it was uploaded",
                where=f"{self.where}/{entry}",
                found=f"{', '.join(lost)} missing or of another size",
                advice="It was not finished; upload it again.",
            )
        self._write(entry, MANIFEST, lambda files, to: files.pipe_file(to, manifest))

    def _write(self, entry: str, name: str, put: Callable[[Any, str], None]) -> None:
        """Put one object whole or not at all."""
        files, folder = self._place(entry)
        try:
            with named_faults(self._url):
                if self._written_in_place:
                    files.makedirs(folder, exist_ok=True)
                    _put_renamed(files, f"{folder}/{name}", put)
                else:
                    put(files, f"{folder}/{name}")
        except FileNotFoundError as error:
            raise ParamsError(
                "the remote store has no such place",
                where=self.where,
                found=one_line(error, self._url),
            ) from None

    def _remove(self, entry: str, name: str) -> None:
        files, folder = self._place(entry)
        with suppress(FileNotFoundError), named_faults(self._url):
            files.rm_file(f"{folder}/{name}")


def _verify(path: Path, file: FileLike, *, where: object) -> None:
    """Raise CacheCorruptError unless a local file has the size and digest that it should."""
    actual: tuple[int, str | None] = path.stat().st_size, None
    if actual[0] == file.bytes:
        actual = file.bytes, sha256_file(path)
    if actual != (file.bytes, file.sha256):
        raise CacheCorruptError(
            "a file of the teacher cache differs from its manifest",
            where=where,
            expected=f"{file.bytes} bytes with sha256 {file.sha256}",
            found=f"{actual[0]} bytes" + (f" with sha256 {actual[1]}" if actual[1] else ""),
        )


def _put_renamed(files: Any, to: str, put: Callable[[Any, str], None]) -> None:
    """Put under a temporary name beside, then rename."""
    folder, _, name = to.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.part"
    try:
        put(files, temporary)
        files.mv(temporary, to)
    except BaseException:
        with suppress(OSError):
            files.rm_file(temporary)
        raise


def _read_manifest(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise CacheIncompleteError(
            "only a finished entry is uploaded", where=folder, expected=MANIFEST
        ) from None


def check_name(name: str, where: object) -> None:
    """Refuse a name that leads out of its folder or means many."""
    if not _NAME.fullmatch(name):
        raise CacheFormatError("not a name of an entry or a file", where=where, found=repr(name))


def _is_folder(row: dict[str, Any]) -> bool:
    return bool(row["type"] == "directory")


def _side(file: FileLike) -> bytes:
    """The content of a file's side object, in sha256sum's own format."""
    return f"{file.sha256}  {file.name}\n".encode()
