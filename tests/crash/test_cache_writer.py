"""A writer that is killed at any moment loses nothing: the next one ends with the same cache."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.kd.cache.manifest import MANIFEST
from tasks.kd.digests import sha256_folder

WRITER = """
import sys, time
from pathlib import Path
from tasks.kd.cache import writer
from tasks.kd.cache.writer import write_cache
from tests.kd.cache.conftest import make_job, make_params
from tests.kd.conftest import make_split
writer.MEBIBYTE = 2**12
print("ready", flush=True)
write_cache(make_job(make_split(60), make_params()), Path(sys.argv[1]), on_tokens=lambda _: None)
print("done", flush=True)
"""


def start(store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store)], stdout=subprocess.PIPE, text=True
    )


def finish(store: Path) -> str:
    process = start(store)
    assert process.wait(timeout=120) == 0
    (folder,) = store.iterdir()
    assert not list(folder.glob("*.tmp"))
    return sha256_folder(folder)


@pytest.mark.slow
def test_a_writer_killed_at_random_moments_ends_with_the_same_cache(tmp_path: Path) -> None:
    began = time.monotonic()
    whole = finish(tmp_path / "whole")
    assert time.monotonic() - began < 120
    chance, killed, store = random.Random(7), 0, tmp_path / "killed"
    for _ in range(6):
        process = start(store)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * 0.4)
        os.kill(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if store.exists() and list(store.glob(f"*/{MANIFEST}")):
            break
    assert killed >= 1
    assert finish(store) == whole
