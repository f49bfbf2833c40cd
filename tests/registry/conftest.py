"""A real MLflow store on disk, a server of its own, and a small but complete set of artifacts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.registry import (
    Produced,
    Registry,
    open_registry,
)
from tests.makers.registered import (
    MODEL,
    Make,
    find_closed_port,
    write_artifacts,
)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's migrations take seconds: once, then copied."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert open_registry(root).champion(MODEL) is None
    return root / ".mlflow" / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "STILLHOUSE_STORE"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "checkout"
    (root / ".mlflow").mkdir(parents=True)
    shutil.copyfile(database, root / ".mlflow" / "mlflow.db")
    return root


@pytest.fixture
def registry(root: Path) -> Registry:
    return open_registry(root)


@pytest.fixture
def make(root: Path) -> Make:
    """Write all artifacts of a recipe whose student is wrong on the given examples."""

    def write(name: str = "tiny", *, wrong: Sequence[int] = range(5), **changes: Any) -> Produced:
        return write_artifacts(root, name, wrong, **changes)

    return write


@pytest.fixture
def server(tmp_path: Path, database: Path) -> Iterator[str]:
    """The address of a real MLflow server with a store of its own, seen by `open_registry`."""
    shutil.copyfile(database, tmp_path / "server.db")
    address = f"http://127.0.0.1:{find_closed_port()}"
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1",
             "--port", address.rpartition(":")[2], "--workers", "1",
             "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
             "--artifacts-destination", str(tmp_path / "served")],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(address, process, tmp_path / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.3)
    pytest.fail(f"no MLflow server:\n{log.read_text(encoding='utf-8')}")
