"""A writer that is killed at any moment loses nothing: the next one ends with the same cache."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crash.cache_writer import BOUNDARIES, NUMBERS


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How every case ended."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.cache_writer", str(tmp_path_factory.mktemp("crash"))],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_uninterrupted_writer_leaves_a_cache_and_nothing_else(found: Any) -> None:
    ended, content = found["whole"]
    assert ended == 0
    assert len(content) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_writer_killed_at_a_boundary_is_resumed_to_the_same_bytes(
    boundary: str, number: int, after: bool, found: Any
) -> None:
    killed, resumed, content = found[f"{boundary}-{number}-{after}"]
    once = boundary in ("_write_slices", "_finished")
    assert killed == (0 if once and number > 1 else -signal.SIGKILL)
    assert resumed == 0
    assert content == found["whole"][1]


def test_a_writer_that_is_killed_again_and_again_gets_there(found: Any) -> None:
    tries, content = found["again"]
    assert 2 < tries < 50
    assert content == found["whole"][1]
