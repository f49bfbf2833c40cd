"""`stillhouse doctor`: faults of this machine that would stop a run, each with its mend."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from flows import runbook
from flows.environment import TELEMETRY_OFF
from tasks.kd.errors import KDError

FREE_GIB_WANTED = 5.0
FREE_GIB_NEEDED = 1.0
_GIB = 2**30
_MLFLOW_URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_OFF = {"DO_NOT_TRACK": ("true",)}  # MLflow accepts only the literal `true`


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: part, status, what was seen, mend, and the runbook's heading."""

    name: str
    status: Literal["ok", "warn", "fail"]
    seen: str
    mend: str = ""
    anchor: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding as a JSON object; `more` is the place in the runbook."""
        told = asdict(self)
        anchor = told.pop("anchor")
        return {**told, "more": runbook.show_place(anchor) if anchor else ""}


def examine(root: Path | None) -> list[Finding]:
    """All findings, in the order in which a run would meet them."""
    checks: list[Callable[[], Finding]] = [
        _check_python,
        _check_prefect_server,
        _check_git,
        lambda: _check_root(root),
        lambda: _check_disk(root or Path.cwd()),
        lambda: _check_port("Prefect", 4200, "--prefect-port"),
        lambda: _check_port("MLflow", 5000, "--mlflow-port"),
        lambda: _check_mlflow(root),
        _check_telemetry,
    ]
    return [check() for check in checks]


def _check_python() -> Finding:
    seen = f"{sys.version.split()[0]} in {sys.prefix}"
    if (3, 11) <= sys.version_info < (3, 13):
        return Finding("python", "ok", seen)
    return Finding(
        "python", "fail", seen, "install Python 3.11 or 3.12, then: rm -rf .venv && make setup"
    )


def _check_prefect_server() -> Finding:
    pair = ", ".join(f"{name} {_version(name)}" for name in ("prefect", "fastapi"))
    trial = subprocess.run(
        [sys.executable, "-c", "import prefect.server.api.server"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if trial.returncode == 0:
        return Finding("prefect server", "ok", pair)
    cause = (trial.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding(
        "prefect server", "fail", f"{pair}: {cause}", "rm .venv/.installed && make setup",
        runbook.PREFECT_DOES_NOT_START,
    )  # fmt: skip


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _check_git() -> Finding:
    if (git := shutil.which("git")) is None:
        return Finding("git", "fail", "not found", "install git")
    seen = subprocess.run([git, "--version"], capture_output=True, text=True, check=False)
    return Finding("git", "ok", seen.stdout.strip())


def _check_root(root: Path | None) -> Finding:
    if root is None:
        return Finding(
            "repository", "fail", f"no dvc.yaml and params/ in {Path.cwd()} or above",
            "cd into a stillhouse repository",
        )  # fmt: skip
    if not (root / ".dvc").is_dir():
        return Finding("repository", "fail", f"{root} has no .dvc", "dvc init")
    if not (root / ".git").exists():
        return Finding("repository", "warn", f"{root} is not under git: no lineage", "git init")
    return Finding("repository", "ok", str(root))


def _check_disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / _GIB
    seen = f"{free:.1f} GiB free"
    if free >= FREE_GIB_WANTED:
        return Finding("disk", "ok", seen)
    status: Literal["warn", "fail"] = "warn" if free >= FREE_GIB_NEEDED else "fail"
    wanted = f"{seen}, {FREE_GIB_WANTED:.0f} wanted"
    return Finding("disk", status, wanted, "make room", runbook.DISK_FULL)


def _check_port(name: str, port: int, flag: str) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(2)
        in_use = probe.connect_ex(("127.0.0.1", port)) == 0
    if not in_use:
        return Finding(f"port {port}", "ok", f"free for {name}")
    return Finding(
        f"port {port}", "warn", f"in use, by {name} or another program",
        f"if it is not {name}: stillhouse ui {flag} <another port>",
        runbook.PORT_IN_USE,
    )  # fmt: skip


def _check_mlflow(root: Path | None) -> Finding:
    from tasks.registry import open_registry

    given = [name for name in _MLFLOW_URIS if os.environ.get(name)]
    if root is None:
        return Finding("mlflow", "warn", "not looked at, without a repository")
    if not given and not (root / ".mlflow" / "mlflow.db").exists():
        return Finding("mlflow", "ok", ".mlflow/mlflow.db, made by the first run")
    registry = open_registry(root)
    store = registry.store
    try:
        registry.greet()
    except KDError as error:
        mend = f"start that server, or unset {' or '.join(given)}" if given else "see the message"
        return Finding("mlflow", "fail", str(error), mend, runbook.MLFLOW_REFUSED)
    shown = ".mlflow/mlflow.db" if store.local else store.shown_uri
    if store.divided:
        shown += f", registry {store.shown_registry_uri}"
    return Finding("mlflow", "ok", shown)


def _check_telemetry() -> Finding:
    loud = [
        name
        for name, off in TELEMETRY_OFF.items()
        if os.environ.get(name, "").lower() not in _OFF.get(name, (off, "true", "1", "yes"))
        or (name == "PREFECT_SERVER_ANALYTICS_ENABLED" and os.environ[name].lower() != off)
    ]
    if not loud:
        return Finding("telemetry", "ok", "switched off in Prefect, MLflow, DVC and Hugging Face")
    wanted = " ".join(f"{name}={TELEMETRY_OFF[name]}" for name in loud)
    return Finding(
        "telemetry", "warn", f"your environment sets {', '.join(loud)}", f"export {wanted}"
    )
