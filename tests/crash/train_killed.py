"""A program that trains in forked children and kills them at random moments until one is done.

It forks before torch has started a thread, and imports once for all of them. Half of the children
are killed by the clock, half at a random call through which a checkpoint touches the disk. Nothing
is flushed to the disk: a killed process loses nothing that the kernel already has.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tasks.kd import digests
from tasks.kd.digests import sha256_file
from tasks.kd.training import checkpoint
from tasks.kd.training.checkpoint import Checkpoints
from tasks.kd.training.loop import train
from tests.makers.training_setup import PHASES, make_habits, make_parts, make_settings, records_of

# Everything through which a checkpoint touches the disk; a step has about 18 such calls.
TOUCHES = (
    (checkpoint, "save_file"),
    (checkpoint, "sha256_file"),
    (checkpoint, "write_json"),
    (checkpoint, "replace_folder"),
    (digests, "sync_folder"),
    (shutil, "rmtree"),
)
CALLS = 40
SECONDS = 0.02
EPOCHS = 7


def prepare() -> None:
    """One thread, and nobody waits for the disk."""
    torch.set_num_threads(1)
    os.fsync = _forget


def _forget(fd: object) -> None:
    """In place of a flush."""


def work_in(folder: Path) -> None:
    """The whole training, with a checkpoint after each step."""
    inner = PHASES[0].model_copy(update={"balance_every": 4, "trained_layers": (0, 2)})
    going_on = {"epochs": EPOCHS, "optimizer": "continued", "balance_every": 5}
    parts = make_parts((inner, PHASES[1].model_copy(update=going_on)))
    settings = make_settings(ema_decay=0.9, max_non_finite=3)
    report = train(settings, parts, make_habits(folder, checkpoint_every_s=1e-9))
    save_file(dict(parts.objective.student.state_dict()), folder / "student.safetensors")
    (folder / "report.json").write_text(json.dumps([report.steps, report.best_epoch]))


def dying(call: Callable[..., object], left: list[int], *, after: bool) -> Callable[..., object]:
    """The same function, until no call is left: then it kills this process."""

    def wrapped(*args: object, **named: object) -> object:
        left[0] -= 1
        is_last = left[0] == 0  # now: calls within this one count as well
        if is_last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **named)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def in_a_fork(folder: Path, kill_after_calls: int = 0, kill_after_s: float | None = None) -> int:
    """Train in a child process; returns how it ended: 0, or minus the signal."""
    began, begins = os.pipe()
    child = os.fork()
    if child == 0:
        ended = 1
        try:
            left = [kill_after_calls]
            for module, name in TOUCHES if kill_after_calls else ():
                after = bool(kill_after_calls % 2)
                setattr(module, name, dying(getattr(module, name), left, after=after))
            load = Checkpoints.load
            loading: Any = Checkpoints
            loading.load = lambda own: (os.write(begins, b"!"), load(own))[1]
            work_in(folder)
            ended = 0
        finally:
            os._exit(ended)
    if kill_after_s is not None:
        os.read(began, 1)
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    os.close(began)
    os.close(begins)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def content(folder: Path) -> list[Any]:
    """What a finished training left: weights, state, losses."""
    *_, last = sorted(folder.glob("checkpoint-*"))
    state = json.loads((last / "state.json").read_text())
    return [
        sha256_file(folder / "student.safetensors"),
        json.loads((folder / "report.json").read_text()),
        {name: value for name, value in state.items() if name != "seconds"},
        [[record["step"], record["split"], record["loss"]] for record in records_of(folder)],
    ]


def main(root: Path) -> None:
    """Print, as JSON, both trainings' content and how the children of the second ended."""
    prepare()
    whole = in_a_fork(root / "whole")
    chance = random.Random(5)
    ended: list[int] = []
    writing = 0
    while 0 not in ended and len(ended) < 400:
        if chance.random() < 0.5:
            ended.append(in_a_fork(root / "killed", kill_after_calls=chance.randint(1, CALLS)))
        else:
            kill_after_s = chance.uniform(0, SECONDS)
            ended.append(in_a_fork(root / "killed", kill_after_s=kill_after_s))
        writing += (root / "killed" / ".checkpoint").exists()
    found = {
        "whole": [whole, content(root / "whole")],
        "killed": [ended, writing, content(root / "killed")],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
