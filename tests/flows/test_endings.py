"""`stillhouse run` ended from outside in the middle of a stage: nothing of it lives on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.flows.conftest import Project

GONE_WITHIN_S = 15.0


def list_processes(root: Path) -> dict[int, str]:
    """Processes that work in the repository, by id: servers, dvc, stages and what those started."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if (folder / "cwd").readlink() == root:
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue  # it ended while we looked, or is not ours
    return found


def wait_for_stage(project: Project) -> list[int]:
    """Ids of the stage that hangs and of its child, once they run."""
    pids = project.root / "control" / "pids"
    deadline = time.monotonic() + 90
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < deadline, "the stage never started"
        time.sleep(0.1)
    return [int(pid) for pid in pids.read_text().split()]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_run_that_is_ended_leaves_no_process(
    project: Project, number: signal.Signals, code: int
) -> None:
    project.fail("prepare_data", "hang")
    process = project.start("run", "tiny")
    stage, child = wait_for_stage(project)
    running = list_processes(project.root)
    assert {process.pid, stage, child} <= set(running)
    assert any("prefect" in command for command in running.values())
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    deadline = time.monotonic() + GONE_WITHIN_S
    while running := list_processes(project.root):
        assert time.monotonic() < deadline, running
        time.sleep(0.1)
    assert said == ""
    assert "Traceback" not in errors
    assert project.ran() == ["fetch_sources", "prepare_data"]
    assert not (project.root / "artifacts" / "tiny" / "prepare_data").exists()
