"""An entry to send away, and what looks at a store from outside."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.cache.store.remote import Remote

ENTRY = "9f2c"
SIZES = {"shard-00000.safetensors": 5000, "shard-00001.safetensors": 70_000, "slices": 0}


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str


def make_file(folder: Path, name: str, content: bytes) -> File:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return File(name, len(content), hashlib.sha256(content).hexdigest())


def make_content(name: str, size: int) -> bytes:
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def make_entry(folder: Path, sizes: dict[str, int]) -> list[File]:
    """A finished entry of files of these sizes."""
    made = [make_file(folder, name, make_content(name, size)) for name, size in sizes.items()]
    (folder / MANIFEST).write_bytes(b'{"format_version": 1}')
    return made


def raw(remote: Remote) -> tuple[Any, str]:
    """The store as anybody else sees it."""
    driver, root = fsspec.core.url_to_fs(remote._url)
    driver.invalidate_cache()
    return driver, f"{root}/{ENTRY}"


def run_at_once(acts: list[Callable[[], Any]]) -> list[BaseException]:
    """Call each in a thread of its own; what they raised."""
    faults: list[BaseException] = []

    def run(act: Callable[[], Any]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            faults.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return faults
