"""Child servers: started on 127.0.0.1, awaited, and stopped with all their processes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import supervise
from tasks.kd.errors import KDError, ParamsError, TransientError

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
UI_PORT = 4200
_LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
_LEASES_MODULE = "prefect.server.concurrency.lease_storage"
_POLL_S = 0.2
_GRACE_S = 5.0
_STOP_TIMEOUT_S = 2 * _GRACE_S
_LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Server:
    """A running child: its name, its address, the URL that shows its health, and its log."""

    name: str
    address: str
    health: str
    process: subprocess.Popen[bytes]
    log: Path


def start_prefect(root: Path, port: int, *, schedules: bool) -> Server:
    """Start a Prefect server with its pages, over the user's own Prefect database.

    `schedules` is false for a server of a single run, which leaves deployments' schedules alone.
    """
    command = [sys.executable, "-m", "prefect", "server", "start", "--analytics-off"]
    command += ["--host", HOST, "--port", str(port)]
    command += ["--ui"] if schedules else ["--ui", "--no-scheduler", "--no-late-runs"]
    # Another server's address or profile must not leak into this one. Its pages ask the API at
    # the address given here.
    api = f"http://{HOST}:{port}/api"
    environment = {"PREFECT_API_URL": api, "PREFECT_UI_API_URL": api}
    if schedules:
        # A schedule's slot must be kept on disk: in memory, a slot held when the server ended
        # would stay taken for ever.
        environment[_LEASES] = f"{_LEASES_MODULE}.filesystem"
    return _start("Prefect", command, f"{api}/health", root, environment)


def start_mlflow(root: Path, port: int, *, database: str) -> Server:
    """Start an MLflow server over a database (a URI)."""
    store = root / ".mlflow"
    store.mkdir(exist_ok=True)
    # The URI may hold a password, and anyone on this machine can read arguments.
    environment = {"MLFLOW_BACKEND_STORE_URI": database}
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", (store / "artifacts").as_uri()]
    return _start("MLflow", command, f"http://{HOST}:{port}/health", root, environment)


def await_servers(servers: Sequence[Server], timeout_s: float = START_TIMEOUT_S) -> None:
    """Return once all servers answer. Raises KDError with the end of the log of one that fails."""
    deadline = time.monotonic() + timeout_s
    waiting = list(servers)
    while waiting:
        for server in waiting:
            if server.process.poll() is not None:
                raise _ended(server)
        waiting = [server for server in waiting if not answers(server.health)]
        if waiting and time.monotonic() > deadline:
            raise KDError(
                f"{waiting[0].name} did not answer within {timeout_s:.0f} s",
                where=waiting[0].address,
                advice=_tail(waiting[0].log),
                mend="stillhouse doctor",
            )
        time.sleep(_POLL_S)


def await_end(servers: Sequence[Server]) -> None:
    """Never return; raise KDError as soon as one of the servers has ended."""
    while True:
        for server in servers:
            if server.process.poll() is not None:
                raise _ended(server)
        time.sleep(_POLL_S)


def stop_server(server: Server) -> None:
    """End a server and all that it started, and return once it is gone."""
    if server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


@contextlib.contextmanager
def stopping(servers: list[Server]) -> Iterator[list[Server]]:
    """Stop every server in the list, which the block may extend, however the block ends."""
    try:
        yield servers
    finally:
        for server in servers:
            stop_server(server)


@contextlib.contextmanager
def prefect_api(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """A Prefect API for the block: the configured server's, else a temporary server's.

    Prefect would start a server by itself. But that one outlives a killed process, and if it fails
    to start, Prefect waits two minutes and does not say why.

    Raises TransientError if the configured server does not answer.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    if configured := get_current_settings().api.url:
        _check_reachable(configured)
        yield
        return
    say("Starting a temporary Prefect server ...")
    with stopping([start_prefect(root, free_port(), schedules=False)]) as servers:
        await_servers(servers)
        with temporary_settings(updates={PREFECT_API_URL: f"{servers[0].address}/api"}):
            try:
                yield
            finally:
                _send_what_waits()
    servers[0].log.unlink(missing_ok=True)


@contextlib.contextmanager
def standing_prefect_api() -> Iterator[str]:
    """The address of a lasting Prefect API: the configured server's, else that of `stillhouse ui`.

    Raises TransientError if there is none or it does not answer.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    address = get_current_settings().api.url or f"http://{HOST}:{UI_PORT}/api"
    if get_current_settings().api.url:
        _check_reachable(address)
    elif not answers(f"{address}/health"):
        raise TransientError(
            "there is no Prefect server that could keep a schedule",
            where=address,
            expected="a server that goes on running, there or at PREFECT_API_URL",
            mend="stillhouse ui (in another terminal, or as a service)",
        )
    with temporary_settings(updates={PREFECT_API_URL: address}):
        yield address


def _check_reachable(address: str) -> None:
    try:
        # Prefect has checked that this is an http(s) address.
        with urllib.request.urlopen(f"{address}/health", timeout=10):  # noqa: S310
            return
    except urllib.error.HTTPError:
        return  # it answers; Prefect reports whether it lets us in
    except OSError as error:
        raise TransientError(
            "the Prefect server does not answer",
            where=address,
            advice=f"({error})",
            mend="unset PREFECT_API_URL (a temporary server is used then), or stillhouse ui",
        ) from None


def _send_what_waits() -> None:
    """Send queued logs and states before their server ends."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    with contextlib.suppress(RuntimeError):  # nothing was ever logged
        APILogWorker.instance().drain()
    EventsWorker.drain_all()


def free_port() -> int:
    """A port on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def check_port(name: str, port: int, flag: str) -> None:
    """Raise ParamsError if something listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ParamsError(
                f"port {port} is in use",
                expected=f"a free port for {name}",
                found=f"another program listening on {HOST}:{port}",
                mend=f"stillhouse ui {flag} {free_port()}",
            ) from None


def _start(
    name: str,
    command: list[str],
    health: str,
    root: Path,
    environment: Mapping[str, str],
) -> Server:
    """Start a server below the supervisor, which ends it if this process dies."""
    address = urllib.parse.urlsplit(health)
    log = root / ".work" / "servers" / f"{name.lower()}-{address.port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    shim = [sys.executable, "-I", "-S", supervise.__file__]
    shim += ["--parent", str(os.getpid()), "--grace", str(_GRACE_S), "--"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*shim, *command],
            cwd=root,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(name, f"http://{address.netloc}", health, process, log)


def answers(address: str) -> bool:
    """Whether a server answers at the address with status 200."""
    # The environment's proxy is bypassed: it may not reach this machine.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _ended(server: Server) -> KDError:
    return KDError(
        f"{server.name} ended by itself",
        where=server.address,
        found=f"exit code {server.process.returncode}",
        advice=_tail(server.log),
        mend="stillhouse doctor",
    )


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return "\n".join(["The end of its log:", *(f"  {line}" for line in lines), ""])
