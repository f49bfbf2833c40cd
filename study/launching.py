"""Runs as processes of their own, one thread each, so many at a time; and who prepares for all."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from study.runs import Key
from study.settings import ROOT

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM")


def launch(programs: Mapping[str, Sequence[str]], *, jobs: int) -> list[str]:
    """Run them all, at the lowest priority; names of those that failed.

    When this process ends, however it ends by itself, those that it started are ended too.
    """
    waiting, failed = list(programs.items()), list[str]()
    running: dict[str, subprocess.Popen[bytes]] = {}
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": str(ROOT)}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, program = waiting.pop(0)
                running[name] = subprocess.Popen(
                    ["nice", "-n", "19", *program], cwd=ROOT, env=environment
                )
            time.sleep(0.2)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    failed += [name] if process.returncode else []
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


@contextmanager
def one_at_a_time(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Of several processes one prepares what the others then find: corpora, a tuned teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "preparing.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process prepares data or a teacher: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def program_of(key: Key) -> list[str]:
    """The command that executes one run."""
    named = [word for name, value in vars(key).items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "study", "one", *named]
