"""Errors of remote stores' drivers, turned into the `KDError` tree and freed of secrets."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from tasks.kd.errors import CacheError, CacheQuotaError, KDError, ParamsError, TransientError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_BUSY = {
    errno.EBUSY,  # s3fs: SlowDown, ServiceUnavailable
    errno.EREMOTEIO,  # s3fs: InternalError
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ESTALE,
}
# Drivers have error trees of their own, outside OSError, and may not be installed: they are told by
# name.
_UNREACHABLE = {
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "ConnectionError",  # requests, botocore
    "HTTPClientError",  # botocore
    "IncompleteRead",  # http.client
    "Timeout",  # requests
}
_DENIED = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}


def redact(text: str) -> str:
    """The text without the parts of its URLs that may be secret: user, password, query, fragment.

    An unescaped secret may hold a slash or an at-sign (those of AWS do), so all up to a URL's last
    at-sign is cut out.
    """
    return re.sub(r"(?<=\S)[?#]\S*", "", re.sub(r"://\S*@", "://", text))


def one_line(error: Exception, url: str = "") -> str:
    """A driver's message in one line, without secrets, those of the store's URL included."""
    text = " ".join(str(error).split())
    for secret in _secrets(url):
        text = text.replace(secret, "***")
    return redact(text)[:200].rstrip(".") or type(error).__name__


def _secrets(url: str) -> list[str]:
    """The parts of a URL that `redact` cuts out, longest first.

    A driver may repeat them out of place.
    """
    rest, _, query = url.partition("://")[2].partition("?")
    user, _, _ = rest.rpartition("@")
    values = (pair.partition("=")[2] for pair in query.split("&"))
    secrets = {user, user.partition(":")[2], query, *values}
    secrets |= {unquote(secret) for secret in secrets}
    return sorted(secrets - {""}, key=len, reverse=True)


def _name_fault(error: Exception, url: str) -> KDError | None:
    """The error of our tree for a driver's; None for one that is no fault of the store."""
    names = {kind.__name__ for kind in type(error).__mro__}
    number = error.errno if isinstance(error, OSError) else None
    no_bucket = _code(error) == "NoSuchBucket"
    if isinstance(error, FileNotFoundError) and not no_bucket:
        return None
    unreachable = isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    rules: tuple[tuple[object, type[KDError], str], ...] = (
        (no_bucket, ParamsError, "the remote store's bucket is not there"),
        (
            isinstance(error, PermissionError) or names & _DENIED,
            CacheError,
            "the remote store denies access",
        ),
        (number in _FULL, CacheQuotaError, "no space is left to copy the teacher cache"),
        (
            unreachable or number in _BUSY or names & _UNREACHABLE,
            TransientError,
            "the remote store can't be reached or is busy",
        ),
        (
            isinstance(error, OSError) or "BotoCoreError" in names,
            CacheError,
            "the remote store refused",
        ),
    )
    for holds, kind, what in rules:
        if holds:
            return kind(what, where=redact(url), found=one_line(error, url))
    return None


def _code(error: Exception) -> str | None:
    """The code in an S3 server's answer, which s3fs keeps as the cause of a Python error."""
    answer = getattr(error.__cause__, "response", None)
    return answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None


@contextmanager
def named_faults(url: str) -> Iterator[None]:
    """Turn a driver's error about the store at a URL into a named one.

    FileNotFoundError passes where only a file is missing, and so do our own bugs.
    """
    try:
        yield
    except Exception as error:
        fault = _name_fault(error, url)
        if fault is None:
            raise
        raise fault from None


@contextmanager
def local_faults(folder: Path) -> Iterator[None]:
    """Turn an error of this machine's own disk into a named one."""
    try:
        yield
    except OSError as error:
        kind = CacheQuotaError if error.errno in _FULL else CacheError
        raise kind(
            "this machine's files of the teacher cache can't be read or written",
            where=folder,
            found=one_line(error),
        ) from None
