"""A process as a cluster starts it: it joins its world, or says in one line why it can't.

`python -m tests.distributed.joining`, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import os

from tasks.kd.errors import KDError
from tasks.kd.processes.launch import run_training
from tests.makers.training_setup import make_compute

WAIT_S = 2.0


def say() -> None:
    print("joined", flush=True)


if __name__ == "__main__":
    try:
        run_training(say, compute=make_compute(peer_timeout_s=WAIT_S), environment=os.environ)
    except KDError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
