"""Several machines for real: own addresses, own cables, one of which is pulled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.kd.training.loop import train
from tests.distributed.machines import MACHINES, STEPS_BEFORE_THE_CUT
from tests.makers.training_setup import (
    make_habits,
    make_parts,
    make_settings,
    records_of,
    weights_of,
    without_dropout,
)

TRY = """mount -t tmpfs tmpfs /run && ip netns add machine
    && ip link add name switch type bridge
    && ip link add name cable type veth peer name eth0 netns machine""".replace("\n", " ")


@pytest.fixture
def apart() -> list[str]:
    """What runs a program in namespaces of its own; skips where the machine forbids them."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs the programs unshare and ip")
    apart = ["unshare", "--map-root-user", "--net", "--mount"]
    tried = subprocess.run([*apart, "sh", "-c", TRY], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this machine forbids network namespaces: {tried.stderr.strip()}")
    return apart


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_cut_off_ends_the_others_clearly_and_the_training_goes_on(
    apart: list[str], root: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*apart, sys.executable, "-m", "tests.distributed.machines", str(tmp_path)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found["cut"]) == MACHINES
    for ended in found["cut"]:
        assert ended.startswith("TransientError: another process of the training does not answer")
        assert f"of {MACHINES}" in ended
        assert "goes on from its last checkpoint" in ended
    assert STEPS_BEFORE_THE_CUT <= found["lines"] < 18  # in the middle of the run
    assert found["again"] == ["done"] * MACHINES
    assert [r["step"] for r in records_of(tmp_path, "train")] == list(range(1, 19))

    parts = without_dropout(make_parts())
    train(make_settings(), parts, make_habits(tmp_path / "alone"))
    weights = load_file(tmp_path / "weights.safetensors")
    for name, value in weights_of(parts.objective).items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-3)
