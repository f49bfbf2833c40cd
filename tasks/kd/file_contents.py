"""The content of files that users give: checked to be real, read as text or as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tasks.kd.errors import DataError

_POINTER = b"version https://git-lfs"


def require_content(path: Path) -> None:
    """Raise DataError for an unreadable or empty file, a Git LFS pointer and a web page."""
    try:
        with path.open("rb") as file:
            begin = file.read(512)
    except OSError as error:
        raise DataError("a file that can't be read", where=path, found=error.strerror) from error
    if not begin:
        raise DataError("an empty file", where=path)
    refuse_pointer(begin, path)
    if path.suffix != ".txt" and re.match(rb"\s*<(!doctype|html|\?xml)", begin, re.IGNORECASE):
        raise DataError(
            "a page of a web server in the place of the file",
            where=path,
            found=" ".join(begin.decode(errors="replace").split())[:80],
            advice="Download it again; it may ask for a login.",
        )


def refuse_pointer(begin: bytes, where: object) -> None:
    """Raise DataError if a file's first bytes are a Git LFS pointer's."""
    if begin.startswith(_POINTER):
        raise DataError(
            "a Git LFS pointer in the place of the file",
            where=where,
            expected="its content",
            found="the name under which Git LFS keeps it",
            advice="The repository was cloned without git-lfs.",
            mend="git lfs pull",
        )


def read_text(path: Path) -> str:
    """The text of a file. Raises DataError as `require_content` does, and unless it is UTF-8."""
    require_content(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError("not a text in UTF-8", where=path, found=error) from None


def read_object(path: Path) -> dict[str, Any]:
    """The fields of a JSON object. Raises DataError for a file that holds anything else."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", where=path, found=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise DataError("not a JSON object", where=path, found=" ".join(text.split())[:60])
    return value
