"""What every test runs under: no network, no telemetry, no server or store but its own."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from flows.environment import TELEMETRY_OFF
from tests.isolation import ROOT, find_strays, is_loopback
from tests.schedule import order_groups

# A test is right or wrong whatever machine and shell it runs in.
FIXED = {
    **TELEMETRY_OFF,
    "GIT_AUTHOR_EMAIL": "tests@example.invalid",
    "GIT_AUTHOR_NAME": "Tests",
    "GIT_COMMITTER_EMAIL": "tests@example.invalid",
    "GIT_COMMITTER_NAME": "Tests",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "TOKENIZERS_PARALLELISM": "false",
}
UNSET = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", "STILLHOUSE_STORE")
HOMES = {
    "DVC_GLOBAL_CONFIG_DIR": "dvc-global",
    "DVC_SITE_CACHE_DIR": "dvc-site",
    "DVC_SYSTEM_CONFIG_DIR": "dvc-system",
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
    "PREFECT_HOME": "prefect",
}

# Shared, slow cores: a deadline would test the machine. The same examples in every run.
settings.register_profile(
    "stillhouse",
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("stillhouse")


# Here, not in a hook: the folders' own conftest.py are imported before any hook runs, and Prefect
# reads its home when it is imported. A process that shares the tests out hands its own homes down.
_homes = Path(tempfile.mkdtemp(prefix="stillhouse-tests-"))
os.environ.update(FIXED)
os.environ.update({name: str(_homes / folder) for name, folder in HOMES.items()})
for _name in UNSET:
    os.environ.pop(_name, None)


def pytest_configure(config: pytest.Config) -> None:
    """Remove this process's homes when it ends."""
    config.add_cleanup(lambda: shutil.rmtree(_homes, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, name each test's group, the longest groups first."""
    if config.getoption("numprocesses", None):
        order_groups(items)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Let a socket of this process reach this machine only, as if the cable were out."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not is_loopback(address[0]):
            raise OSError(f"tests have no network: {address[0]}")
        connect(self, address)

    def look_up_here(host: Any, *args: Any, **named: Any) -> Any:
        if host is not None and not is_loopback(host):
            raise socket.gaierror(socket.EAI_NONAME, f"tests have no network: {host}")
        return look_up(host, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket, "getaddrinfo", look_up_here)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_strays() -> Iterator[None]:
    """Fail the run if a test wrote an MLflow store where it stood."""
    before = find_strays(ROOT)
    yield
    assert find_strays(ROOT) <= before, "a test wrote outside tmp_path"
