"""`stillhouse doctor`: each fault is made here, and seen."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows import doctor
from flows.cli import main
from tasks.registry import Registry
from tests.flows.conftest import Project


def look(name: str, root: Path | None) -> doctor.Finding:
    """One finding of a whole examination."""
    return next(finding for finding in doctor.examine(root) if finding.name == name)


@pytest.fixture
def no_server_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check that takes seconds."""
    fine = doctor.Finding("prefect server", "ok", "")
    monkeypatch.setattr(doctor, "_check_prefect_server", lambda: fine)


def test_a_sound_machine_is_found_sound(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    result = CliRunner().invoke(main, ["doctor", "--json"])
    findings = {one["name"]: one for one in json.loads(result.stdout)["findings"]}
    assert result.exit_code == 0, findings
    assert findings["prefect server"]["status"] == "ok"
    assert "fastapi" in findings["prefect server"]["seen"]
    assert findings["telemetry"]["status"] == "ok"
    assert findings["mlflow"]["seen"] == ".mlflow/mlflow.db"


def test_a_pair_of_prefect_and_fastapi_that_can_not_serve_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "def Body(**_): raise TypeError(\"unexpected keyword argument 'min_items'\")\n"
    (tmp_path / "fastapi.py").write_text(f"{broken}Body()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor._check_prefect_server()
    assert finding.status == "fail"
    assert "min_items" in finding.seen
    assert finding.mend == "rm .venv/.installed && make setup"


@pytest.mark.usefixtures("no_server_check")
def test_outside_a_repository_it_still_answers_and_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "fail  repository: no dvc.yaml and params/" in result.stdout
    assert "mend: cd into a stillhouse repository" in result.stdout


@pytest.mark.usefixtures("no_server_check")
def test_a_fault_is_shown_with_its_place_in_the_runbook(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**28))
    monkeypatch.chdir(project.root)
    shown = CliRunner().invoke(main, ["doctor"]).stdout.replace("\n", "")
    assert "mend: make room      more: " in shown
    assert "flows/RUNBOOK.md#the-disk-is-full" in shown


@pytest.mark.usefixtures("no_server_check")
def test_each_fault_of_the_machine_is_seen(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**28))
    assert look("disk", project.root).status == "fail"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**39, 2**31))
    assert look("disk", project.root).status == "warn"
    shutil.rmtree(project.root / ".git")
    assert look("repository", project.root).status == "warn"
    shutil.rmtree(project.root / ".dvc")
    assert look("repository", project.root).mend == "dvc init"
    monkeypatch.setenv("PATH", "")
    assert look("git", project.root).status == "fail"


@pytest.mark.usefixtures("no_server_check")
def test_an_mlflow_that_can_not_be_asked_is_a_failure(
    project: Project, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.root / ".mlflow" / "mlflow.db").write_text("no database")
    finding = look("mlflow", project.root)
    assert (finding.status, "can't be read" in finding.seen) == ("fail", True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    finding = look("mlflow", project.root)
    assert finding.status == "fail"
    assert "unset MLFLOW_TRACKING_URI" in finding.mend


def test_a_port_in_use_is_a_warning_with_the_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = doctor._check_port("Prefect", port, "--prefect-port")
    assert (finding.status, "--prefect-port" in finding.mend) == ("warn", True)
    assert finding.as_dict()["more"].endswith("flows/RUNBOOK.md#a-port-is-in-use")
    assert doctor._check_port("Prefect", port, "--prefect-port").status == "ok"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("DO_NOT_TRACK", "1", "warn"),  # Prefect takes it, MLflow does not
        ("PREFECT_SERVER_ANALYTICS_ENABLED", "true", "warn"),
        ("HF_HUB_DISABLE_TELEMETRY", "0", "warn"),
        ("HF_HUB_DISABLE_TELEMETRY", "true", "ok"),
        ("DVC_NO_ANALYTICS", "true", "ok"),
    ],
)
def test_a_telemetry_switch_that_is_not_off_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, status: str
) -> None:
    assert doctor._check_telemetry().status == "ok"
    monkeypatch.setitem(os.environ, name, value)
    finding = doctor._check_telemetry()
    assert finding.status == status
    assert (name in finding.seen) is (status == "warn")


def test_a_password_in_the_server_s_address_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:p@ss@mlflow.example")
    monkeypatch.setattr(Registry, "greet", lambda *_: None)
    assert doctor._check_mlflow(tmp_path).seen == "https://mlflow.example"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "https://user:p@ss@models.example")
    seen = doctor._check_mlflow(tmp_path).seen
    assert seen == "https://mlflow.example, registry https://models.example"


@pytest.mark.usefixtures("no_server_check")
@pytest.mark.parametrize("down", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_of_two_mlflows_the_one_that_is_down_is_named(
    project: Project, free_port: int, monkeypatch: pytest.MonkeyPatch, down: str
) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    local = f"sqlite:///{project.root / '.mlflow' / 'mlflow.db'}"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, local)
    monkeypatch.setenv(down, f"http://127.0.0.1:{free_port}")
    finding = look("mlflow", project.root)
    assert finding.status == "fail"
    assert finding.seen == f"MLflow does not answer: http://127.0.0.1:{free_port}."
    assert down in finding.mend
