"""Child servers: ports, waiting, endings; and `stillhouse ui` with the real pair."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows import servers, ui
from flows.cli import main
from flows.servers import Server, await_servers, check_port, free_port, prefect_api, stopping
from tasks.kd.errors import KDError, ParamsError, TransientError
from tests.flows.conftest import Project
from tests.flows.test_endings import list_processes

SERVE = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port={port})"
FAIL = "import sys, time; time.sleep(0.5); sys.exit('no such option: --loud')"


def start(root: Path, name: str, program: str) -> Server:
    port = free_port()
    command = [sys.executable, "-c", program.format(port=port)]
    return servers._start(name, command, f"http://127.0.0.1:{port}/", root, {})


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_in_use_is_named_with_what_it_is_for_and_the_flag() -> None:
    check_port("Prefect", free_port(), "--prefect-port")
    with listening() as port, pytest.raises(ParamsError) as caught:
        check_port("Prefect", port, "--prefect-port")
    assert f"port {port} is in use. Expected a free port for Prefect" in str(caught.value)
    assert "Run: stillhouse ui --prefect-port " in str(caught.value)


@pytest.mark.parametrize("flag", ["--prefect-port", "--mlflow-port"])
def test_ui_starts_nothing_if_one_port_is_in_use(
    project: Project, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.chdir(project.root)
    ports = {"--prefect-port": free_port(), "--mlflow-port": free_port()}
    with listening() as port:
        ports[flag] = port
        given = [text for name, number in ports.items() for text in (name, str(number))]
        result = CliRunner().invoke(main, ["ui", *given])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"port {port} is in use" in result.stderr
    assert flag in result.stderr
    assert list_processes(project.root) == {}


def test_a_server_that_ends_is_told_with_the_end_of_its_log_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with stopping([]) as running:
        running += [start(tmp_path, "Good", SERVE), start(tmp_path, "Bad", FAIL)]
        with pytest.raises(KDError) as caught:
            await_servers(running, timeout_s=60)
    assert time.monotonic() - began < 30
    for part in ("Bad ended by itself", "exit code 1", "no such option: --loud"):
        assert part in str(caught.value)
    assert list_processes(tmp_path) == {}


def test_a_server_that_never_answers_is_told_and_stopped(tmp_path: Path) -> None:
    mute = start(tmp_path, "Mute", "import time; time.sleep(600)")
    with (
        pytest.raises(KDError, match="Mute did not answer within 1 s"),
        stopping([mute]) as running,
    ):
        await_servers(running, timeout_s=1)
    assert list_processes(tmp_path) == {}


def test_if_one_server_dies_the_other_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = [start(tmp_path, "Prefect", SERVE), start(tmp_path, "MLflow", SERVE)]
    monkeypatch.setattr(ui, "start_prefect", lambda *_, **__: started[0])
    monkeypatch.setattr(ui, "start_mlflow", lambda *_, **__: started[1])
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("Ctrl-C"):
            os.kill(started[1].process.pid, signal.SIGTERM)

    with pytest.raises(KDError, match="MLflow ended by itself"):
        ui.serve(tmp_path, prefect_port=free_port(), mlflow_port=free_port(), say=say)
    assert f"Prefect  {started[0].address}" in said
    assert list_processes(tmp_path) == {}


def test_a_remote_mlflow_is_pointed_to_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org")
    monkeypatch.setattr(ui, "start_prefect", lambda *_, **__: start(tmp_path, "Prefect", SERVE))
    said: list[str] = []

    def end(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ui, "await_end", end)
    with pytest.raises(KeyboardInterrupt):
        ui.serve(tmp_path, prefect_port=free_port(), mlflow_port=free_port(), say=said.append)
    assert "MLflow   https://mlflow.example.org" in said
    assert list_processes(tmp_path) == {}


def test_ui_serves_both_until_ctrl_c_and_leaves_nothing(project: Project) -> None:
    ports = [str(free_port()), str(free_port())]
    process = project.start("ui", "--prefect-port", ports[0], "--mlflow-port", ports[1])
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    assert lines[1:3] == [
        f"Prefect  http://127.0.0.1:{ports[0]}\n",
        f"MLflow   http://127.0.0.1:{ports[1]}\n",
    ]
    for port, title in zip(ports, ("Prefect", "MLflow"), strict=True):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
            assert title in page.read().decode()
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, errors) == (0, "Stopped.\n", "")
    assert list_processes(project.root) == {}


def test_a_configured_server_that_is_down_is_named(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = f"http://127.0.0.1:{free_port()}/api"
    with (
        temporary_settings(updates={PREFECT_API_URL: address}),
        pytest.raises(TransientError, match=f"does not answer: {address}"),
        prefect_api(tmp_path, lambda _: None),
    ):
        pytest.fail("there is no server")
