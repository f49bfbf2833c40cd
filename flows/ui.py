"""`stillhouse ui`: the Prefect and the MLflow pages on this machine, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flows.servers import (
    await_end,
    await_servers,
    check_port,
    start_mlflow,
    start_prefect,
    stopping,
)
from tasks.registry import open_registry


def serve(root: Path, *, prefect_port: int, mlflow_port: int, say: Callable[[str], None]) -> None:
    """Start both servers, print their addresses, and serve until interrupted.

    If MLFLOW_TRACKING_URI names a server, its address is printed and no MLflow is started. Raises
    ParamsError for a port in use, before anything starts, and KDError if a server ends by itself,
    after the other was stopped.
    """
    registry = open_registry(root)
    remote = registry.uri.startswith(("http://", "https://"))
    check_port("Prefect", prefect_port, "--prefect-port")
    if not remote:
        check_port("MLflow", mlflow_port, "--mlflow-port")
    with stopping([]) as servers:
        say("Starting (the very first time takes half a minute) ...")
        servers.append(start_prefect(root, prefect_port, schedules=True))
        if not remote:
            servers.append(start_mlflow(root, mlflow_port, database=registry.uri))
        await_servers(servers)
        shown = registry.store.shown_uri if remote else servers[1].address
        say(f"Prefect  {servers[0].address}")
        say(f"MLflow   {shown}")
        say(f"Runs show live with:  export PREFECT_API_URL={servers[0].address}/api")
        say("Ctrl-C stops both.")
        await_end(servers)
