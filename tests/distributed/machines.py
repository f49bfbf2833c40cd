"""A program that trains on three machines: network namespaces with their own addresses and cables.

Run it in a user, network and mount namespace of its own: `unshare -rnm python -m ... folder`. The
third machine's cable is pulled in the middle of the run; then all are started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.kd.errors import KDError
from tasks.kd.processes.launch import run_training
from tasks.kd.recipe.files import load_recipe

QUICKSTART = Path(__file__).resolve().parents[2] / "params" / "quickstart.yaml"
MACHINES = 3
PORT = 29511
STEPS_BEFORE_THE_CUT = 4
WAIT_S = 20.0  # for each other
PATIENCE_S = 75.0  # of whoever watches them


def work_in(folder: str, pause_s: float) -> None:
    """One process of the training."""
    import torch
    from safetensors.torch import save_file

    from tasks.kd.processes import ranks
    from tasks.kd.training import gradients
    from tasks.kd.training.loop import train
    from tests.makers import training_setup as setup

    torch.set_num_threads(1)
    parts = setup.without_dropout(setup.make_parts())
    seed_step: Callable[[int, int, int], None] = gradients.seed_step

    def seed(seed: int, step: int, rank: int) -> None:
        time.sleep(pause_s)
        seed_step(seed, step, rank)

    gradients.seed_step = seed
    habits = setup.make_habits(Path(folder), checkpoint_every_s=1e-9)
    train(setup.make_settings(), parts, habits)
    if ranks.rank() == 0:
        weights = setup.weights_of(parts.objective)
        save_file(weights, Path(folder) / "weights.safetensors")


def one_machine(number: int, folder: Path, pause_s: float) -> None:
    """What a machine runs; it leaves how it ended."""
    compute = load_recipe(QUICKSTART).compute.model_copy(
        update={
            "machines": MACHINES,
            "machine_rank": number,
            "rendezvous": f"{address(0)}:{PORT}",
            "peer_timeout_s": WAIT_S,
        }
    )
    ended = "done"
    try:
        run_training(work_in, str(folder), pause_s, compute=compute, environment=os.environ)
    except KDError as error:
        ended = f"{type(error).__name__}: {error}"
    (folder / f"ended-{number}.txt").write_text(ended)


def address(number: int) -> str:
    return f"10.77.0.{number + 1}"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def lay_cables() -> None:
    """Three namespaces on one bridge."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    ip("link", "add", "switch", "type", "bridge")
    ip("link", "set", "switch", "up")
    for number in range(MACHINES):
        name, cable = f"machine{number}", f"cable{number}"
        ip("netns", "add", name)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", cable, "master", "switch", "up")
        ip("-n", name, "addr", "add", f"{address(number)}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")


def start(folder: Path, pause_s: float, *, as_cluster: bool) -> list[subprocess.Popen[bytes]]:
    """All machines at once: each starts its process, or is one that a cluster has started."""
    program = [sys.executable, "-m", "tests.distributed.machines", "one"]
    started = []
    for number in range(MACHINES):
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        if as_cluster:
            environment |= {"RANK": str(number), "WORLD_SIZE": str(MACHINES)}
            environment |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            environment |= {"MASTER_ADDR": address(0), "MASTER_PORT": str(PORT + 1)}
        inside = ["ip", "netns", "exec", f"machine{number}"]
        arguments = [str(number), str(folder), str(pause_s)]
        started.append(subprocess.Popen([*inside, *program, *arguments], env=environment))
    return started


def finish(folder: Path, machines: list[subprocess.Popen[bytes]]) -> list[str]:
    """How each ended; TimeoutExpired if one does not."""
    until = time.monotonic() + PATIENCE_S
    for machine in machines:
        machine.wait(max(0.1, until - time.monotonic()))
    return [(folder / f"ended-{number}.txt").read_text() for number in range(MACHINES)]


def main(folder: Path) -> None:
    """Print, as JSON, how the machines ended with the cable pulled, and after that."""
    lay_cables()
    machines = start(folder, 0.2, as_cluster=False)
    metrics, until = folder / "metrics.jsonl", time.monotonic() + PATIENCE_S
    while not metrics.exists() or len(metrics.read_text().splitlines()) < STEPS_BEFORE_THE_CUT:
        assert time.monotonic() < until, "the training does not begin"
        time.sleep(0.02)
    ip("link", "set", f"cable{MACHINES - 1}", "down")
    found: dict[str, Any] = {"cut": finish(folder, machines)}
    found["lines"] = len(metrics.read_text().splitlines())
    ip("link", "set", f"cable{MACHINES - 1}", "up")
    found["again"] = finish(folder, start(folder, 0.0, as_cluster=True))
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "one":
        one_machine(int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
    else:
        main(Path(sys.argv[1]))
