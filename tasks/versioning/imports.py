"""Imports whose source can't say that it changed: DVC is made to fetch them, and compares bytes.

Of an HTTP source DVC keeps the ETag or Content-MD5. Where the server gives neither, it keeps a
number made of address and length; while the length stays, `dvc update` finds nothing new, whatever
the source holds. A source that DVC knows nothing of is fetched, so what it noted is taken out of
the .dvc file for as long as `dvc update` runs.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from tasks.kd.digests import write_bytes

_NOTED = ("checksum", "size")


def is_vague(protocol: str, noted: str | None) -> bool:
    """Whether what DVC noted of a source says nothing of its content.

    An ETag is quoted, a Content-MD5 ends with `=`; a number is made of address and length.
    """
    return protocol in ("http", "https") and (noted or "").isdigit()


@contextmanager
def forgotten(files: Iterable[Path]) -> Iterator[None]:
    """While open, .dvc files say nothing of their sources.

    One that DVC does not write anew, or writes with the same content, is as before afterwards.
    """
    before = {file: file.read_bytes() for file in files}
    without = {file: _without_notes(content) for file, content in before.items()}
    try:
        for file, content in without.items():
            write_bytes(file, content)
        yield
    finally:
        for file, content in before.items():
            now = file.read_bytes()
            if now == without[file] or YAML().load(now) == YAML().load(content):
                write_bytes(file, content)


def _without_notes(content: bytes) -> bytes:
    yaml, stream = YAML(), io.BytesIO()
    document = yaml.load(content)
    for source in document["deps"]:
        for key in _NOTED:
            source.pop(key, None)
    yaml.dump(document, stream)
    return stream.getvalue()
