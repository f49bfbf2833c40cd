"""A writer that is killed at any moment loses nothing: the next one ends with the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crash.cache_writer import (
    NUMBERS,
    PLACES,
    RANDOM_KILLS,
    RANDOM_SHARE_KILLS,
    SHARE_PLACES,
)

pytestmark = pytest.mark.slow

KILLED, SHARE_KILLED = -signal.SIGKILL, 3


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How every case ended."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.cache_writer", str(tmp_path_factory.mktemp("crash"))],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def require_same(case: Any) -> None:
    """Finished, with the bytes of a writer that nobody killed; finished shards left alone."""
    assert case["ended"] == 0
    assert case["same"]
    assert case["kept"]


def test_an_uninterrupted_writer_leaves_a_cache_and_nothing_else(found: Any) -> None:
    names = {name.partition("/")[2] for name in found["whole"]}
    assert {name for name in names if name.startswith(".")} == set()
    assert {"manifest.json", "statistics.safetensors", "weights.safetensors"} <= names
    assert len([name for name in found["whole"] if "/shard-" in name]) > 30


def test_two_processes_write_the_same_bytes_as_one(found: Any) -> None:
    assert found["two"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("place", PLACES)
def test_a_writer_killed_at_a_boundary_is_resumed_to_the_same_bytes(
    place: str, number: int, after: bool, found: Any
) -> None:
    case = found["boundaries"][f"{place} {number} {after}"]
    few = place == "piece" and number > 2  # there are two
    assert case["killed"] == (0 if few else KILLED)
    require_same(case)


def test_writers_killed_at_random_moments_again_and_again_get_there(found: Any) -> None:
    for case in found["random"]:
        require_same(case)
    assert sum(case["kills"] for case in found["random"]) >= RANDOM_KILLS
    shards = {case["shards"] for case in found["random"]}
    assert len(shards) > 3  # killed while they were written, not only before or after


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("place", SHARE_PLACES)
def test_one_of_two_processes_killed_is_resumed_to_the_same_bytes(
    place: str, number: int, rank: int, found: Any
) -> None:
    case = found["one of two"][f"two {place} {number} {rank}"]
    assert case["killed"] == SHARE_KILLED
    assert case["shards"] > 0  # the other process went on
    require_same(case)


def test_one_of_two_processes_killed_at_a_random_moment_is_resumed(found: Any) -> None:
    for case in found["one of two at random"]:
        require_same(case)
    assert sum(case["kills"] for case in found["one of two at random"]) >= RANDOM_SHARE_KILLS


def test_a_rank_that_is_killed_is_told_by_the_launcher_and_resumed(found: Any) -> None:
    case = found["launched"]
    assert "process 1 of 2 failed" in case["said"]
    assert "SIGKILL" in case["said"]
    assert case["same"]
    assert case["kept"]
    assert case["shards"] > 0


def test_a_hundred_random_kills_are_no_fewer(found: Any) -> None:
    at_random = [*found["random"], *found["one of two at random"]]
    assert sum(case["kills"] for case in at_random) >= 100
