"""The pinned set of packages: complete, plain, and able to start a Prefect server."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PIN = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==(?P<version>[0-9][A-Za-z0-9.!]*)")
START_TIMEOUT_S = 150


def read_pins(text: str) -> dict[str, str]:
    """Name to version of a constraints file; ValueError for a line that is anything else."""
    pins: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = PIN.fullmatch(line)
        if match is None or match["name"] in pins:
            raise ValueError(f"constraints.txt:{number}: expected a new name==version: {line!r}")
        pins[match["name"]] = match["version"]
    return pins


def read_requirements(root: Path) -> list[Requirement]:
    """What pyproject.toml asks for, the development tools included."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def find_unpinned(requirements: list[Requirement], pins: dict[str, str]) -> list[str]:
    """Requirements that no pin meets."""
    return [
        str(requirement)
        for requirement in requirements
        if (version := pins.get(canonicalize_name(requirement.name))) is None
        or Version(version) not in requirement.specifier
    ]


def test_constraints_are_names_and_versions_only(root: Path) -> None:
    assert len(read_pins((root / "constraints.txt").read_text())) > 100


@pytest.mark.parametrize(
    "line",
    [
        "torch @ https://example.invalid/torch.whl",
        "--index-url https://example.invalid",
        "torch>=2.13",
        "torch==2.13.0+cpu",
        "# torch",
        "",
        "numpy==1.0",
    ],
)
def test_anything_but_a_new_name_and_version_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"constraints\.txt:2"):
        read_pins(f"numpy==2.4.6\n{line}\n")


def test_every_direct_dependency_is_pinned_within_its_range(root: Path) -> None:
    pins = read_pins((root / "constraints.txt").read_text())
    assert find_unpinned(read_requirements(root), pins) == []


def test_a_missing_pin_and_one_out_of_range_are_found() -> None:
    requirements = [Requirement("fastapi<0.151"), Requirement("click>=8"), Requirement("rich")]
    assert find_unpinned(requirements, {"fastapi": "0.165.0", "click": "8.5.1"}) == [
        "fastapi<0.151",
        "rich",
    ]


def test_what_is_installed_is_what_is_pinned(root: Path) -> None:
    pins = read_pins((root / "constraints.txt").read_text())
    names = [canonicalize_name(requirement.name) for requirement in read_requirements(root)]
    # A local label, as in 2.13.0+cpu, names a build of the same release.
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in names}
    assert installed == {name: pins[name] for name in names}


def test_fastapi_stays_below_the_release_that_prefect_cannot_start_with(root: Path) -> None:
    fastapi = {r.name: r.specifier for r in read_requirements(root)}["fastapi"]
    assert "0.150.0" in fastapi
    assert "0.151.0" not in fastapi


@pytest.mark.slow
@pytest.mark.timeout(START_TIMEOUT_S + 30)
def test_a_prefect_server_starts_and_answers(tmp_path: Path, free_port: int) -> None:
    server = start_server(tmp_path, free_port)
    try:
        assert wait_for_health(server, free_port) == "true", server_log(tmp_path)
    finally:
        stop_group(server)


@pytest.mark.slow
def test_a_server_that_dies_is_noticed_with_its_reason(tmp_path: Path, free_port: int) -> None:
    """The wait above ends early, and says why, for a pair such as fastapi 0.165's."""
    broken = tmp_path / "broken" / "fastapi"
    broken.mkdir(parents=True)
    broken.joinpath("__init__.py").write_text('raise TypeError("no min_items")\n')
    server = start_server(tmp_path, free_port, PYTHONPATH=str(broken.parent))
    try:
        assert wait_for_health(server, free_port) is None
    finally:
        stop_group(server)
    assert "no min_items" in server_log(tmp_path)


def start_server(home: Path, port: int, **environment: str) -> subprocess.Popen[bytes]:
    """A Prefect server of its own home, in its own process group."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--analytics-off"]
    with (home / "server.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "PREFECT_HOME": str(home / "prefect"), **environment},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_health(server: subprocess.Popen[bytes], port: int) -> str | None:
    """What /api/health answers, or None if the server ends or stays silent."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.25)
    return None


def stop_group(server: subprocess.Popen[bytes]) -> None:
    """End the server and all that it started; it is ours alone, so its group may be killed."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, ending)
        except ProcessLookupError:
            break
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def server_log(home: Path) -> str:
    """All that the server said."""
    return (home / "server.log").read_text(errors="replace")
