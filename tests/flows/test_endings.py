"""`stillhouse run` ended from outside in the middle of a stage: nothing of it lives on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tasks.versioning.asking import plan
from tests.flows.conftest import IGNORED, Project

pytestmark = pytest.mark.filterwarnings(IGNORED)

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


def end(project: Project, number: signal.Signals, **environment: str) -> tuple[int, str, str]:
    """Start a run, end it by a signal in the middle of a stage, wait until all of it is gone."""
    project.fail("fetch_sources", "hang")
    process = project.start("run", "tiny", **environment)
    stage, child = wait_for_stage(project)
    running = list_processes(project.root)
    assert {process.pid, stage, child} <= set(running)
    served_here = any("prefect" in command for command in running.values())
    assert served_here is not bool(environment)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + GONE_WITHIN_S
    while running := list_processes(project.root):
        assert time.monotonic() < deadline, running
        time.sleep(0.1)
    assert project.ran() == ["fetch_sources"]
    assert plan(project.root, "tiny")[0].reasons  # readable, no lock left, and to be run
    return process.returncode, said, errors


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "an interrupt"), (signal.SIGTERM, 143, "a termination")],
)
def test_a_run_that_is_ended_leaves_no_process_and_says_so(
    project: Project, prefect_url: str, number: signal.Signals, code: int, name: str
) -> None:
    returned, said, errors = end(project, number, PREFECT_API_URL=prefect_url)
    assert (returned, said) == (code, ""), errors
    assert "Traceback" not in errors
    assert f"Execution was aborted by {name} signal" in errors


def test_a_run_that_is_killed_takes_its_stage_and_its_own_server_along(project: Project) -> None:
    returned, said, _ = end(project, signal.SIGKILL)
    assert (returned, said) == (-signal.SIGKILL, "")
