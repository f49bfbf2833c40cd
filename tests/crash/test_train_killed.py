"""A training that is killed again and again ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_training_killed_at_random_moments_ends_bit_identical(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.train_killed", str(tmp_path)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ended, whole = found["whole"]
    assert ended == 0
    ended, writing, killed = found["killed"]
    assert ended[-1] == 0
    assert set(ended[:-1]) == {-signal.SIGKILL}
    assert len(ended) - 1 >= 50
    assert writing >= 10  # of them in the middle of a checkpoint
    assert killed == whole
