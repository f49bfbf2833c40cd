"""A program that writes a cache in forked children and kills them at given moments.

It forks before torch has started a thread, and imports once for all cases.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tasks.kd.cache import writer
from tasks.kd.cache.writer import write_cache
from tasks.kd.digests import sha256_folder
from tests.kd.cache.conftest import make_job, make_params
from tests.kd.conftest import make_split

# Everything through which a writer touches the disk, or is about to.
BOUNDARIES = ("save_file", "commit_file", "write_json", "sha256_file", "_write_slices", "_finished")
NUMBERS = (1, 2, 4)


def write(store: Path, kill_at: tuple[str, int, bool] | None) -> None:
    """Write the cache; die at the nth call of a boundary, before it or right after it."""
    torch.set_num_threads(1)
    if kill_at is not None:
        name, number, after = kill_at
        setattr(writer, name, dying(getattr(writer, name), number, after=after))
    writer.MEBIBYTE = 2**13
    write_cache(make_job(make_split(30), make_params()), store, on_tokens=lambda _: None)


def dying(call: Callable[..., object], number: int, *, after: bool) -> Callable[..., object]:
    """The same function, until its nth call, which kills this process."""
    calls = 0

    def wrapped(*args: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **named)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def in_a_fork(store: Path, kill_at: tuple[str, int, bool] | None = None) -> int:
    """Write in a child process; returns how it ended: 0, or minus the signal."""
    child = os.fork()
    if child == 0:
        ended = 1
        try:
            write(store, kill_at)
            ended = 0
        finally:
            os._exit(ended)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def content(store: Path) -> list[str]:
    """Digest of the finished cache, and whatever temporary file is left."""
    (folder,) = store.iterdir()
    return [sha256_folder(folder), *(path.name for path in folder.glob("*.tmp"))]


def main(root: Path) -> None:
    """Print, as JSON, how each case ended and what the writer after it left."""
    found: dict[str, object] = {"whole": [in_a_fork(root / "whole"), content(root / "whole")]}
    for boundary in BOUNDARIES:
        for number in NUMBERS:
            for after in (False, True):
                store = root / f"{boundary}-{number}-{after}"
                killed = in_a_fork(store, (boundary, number, after))
                found[store.name] = [killed, in_a_fork(store), content(store)]
    tries = 0
    while in_a_fork(root / "again", ("commit_file", 2, False)) and tries < 50:
        tries += 1
    found["again"] = [tries, content(root / "again")]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
