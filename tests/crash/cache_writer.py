"""A program that kills writers of a cache at given and at random moments, and lets others go on.

It forks before torch has started a thread, and imports once for all cases. Kinds of cases run side
by side. It prints, as JSON, what became of each case. Nothing is flushed to the disk: a killed
process loses nothing that the kernel already has.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from tasks.kd import digests
from tasks.kd.cache.format.codec import Codec
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing import calibration, encoding, shards, writer
from tasks.kd.cache.writing import job as jobs
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache, write_share
from tasks.kd.errors import StageError
from tasks.kd.processes.launch import run_processes
from tests.kd.conftest import make_split, make_teacher
from tests.makers.caches import content_of, finished_in, identities_in, make_job, make_params

# Everything through which a writer runs its teacher, touches the disk, or is about to.
PLACES: dict[str, tuple[Any, str]] = {
    "run_teacher for calibration": (calibration, "run_teacher"),
    "run_teacher": (encoding, "run_teacher"),
    "save_file": (shards, "save_file"),
    "commit_file": (shards, "commit_file"),
    "sha256_file": (shards, "sha256_file"),
    "write_bytes": (digests, "write_bytes"),
    "rename": (Path, "replace"),
    "piece": (writer, "write_piece"),
    "finish": (writer, "finish_stream"),
}
NUMBERS = (1, 3)
STREAMS = ("logits", "hidden.0", "hidden.2", "attention.2")
# A share neither calibrates nor finishes.
SHARE_PLACES = ("run_teacher", "save_file", "commit_file", "rename")
RANDOM_KILLS, RANDOM_SHARE_KILLS = 75, 25
Kill = tuple[str, int, bool]


@cache
def job() -> CacheJob:
    """The cache that all writers are at: every kind of stream and of file."""
    torch.set_num_threads(1)
    params = make_params(codec="int8", streams=STREAMS)
    return make_job(make_split(30), params, make_teacher(layers=2))


def prepare() -> None:
    """Several shards although the data are few, a short calibration, nobody waits for the disk."""
    jobs.MEBIBYTE = 2**13
    calibration.EXAMPLES = 12
    os.fsync = _forget


def _forget(fd: object) -> None:
    """In place of a flush."""


def write(store: Path) -> None:
    """All of it in this process."""
    write_cache(job(), Store(store), on_tokens=lambda _: None)


def write_in_two(store: Path, arm: Callable[[int], None] = lambda rank: None) -> None:
    """Its shards in two processes of its own; `arm` is called in each with its rank."""

    def spread(codecs: dict[str, Codec]) -> None:
        children = []
        for rank in (0, 1):
            child = os.fork()
            if child == 0:
                ended_by(partial(arm, rank), partial(share, store, codecs, rank))
            children.append(child)
        ends = [os.waitpid(child, 0)[1] for child in children]
        if any(ends):
            raise StageError("a process of two failed", found=ends)

    write_cache(job(), Store(store), on_tokens=lambda _: None, spread=spread)


def share(store: Path, codecs: dict[str, Codec], rank: int) -> None:
    """One of two processes' part."""
    write_share(job(), Store(store), codecs, on_tokens=lambda _: None, rank=rank, world_size=2)


# --- killing -------------------------------------------------------------------------------------


def arm_at(kill: Kill) -> None:
    """Die at the nth call of a place, before it or right after it."""
    name, number, after = kill
    holder, attribute = PLACES[name]
    call, calls = getattr(holder, attribute), 0

    def dying(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **named)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, attribute, dying)


def ended_by(*acts: Callable[[], object]) -> None:
    """Do them and end this process, at once, as nobody does who came from a fork."""
    ended = 1
    try:
        for act in acts:
            act()
        ended = 0
    except StageError:
        ended = 3
    finally:
        os._exit(ended)


def in_a_fork(
    *acts: Callable[[], object], when: Callable[[], bool] | None = None, after_s: float = 0.0
) -> int:
    """Do them in a child process; how that ended: its code, or minus the signal.

    With `when` it is killed so many seconds after that is true, if it lives so long.
    """
    child = os.fork()
    if child == 0:
        ended_by(*acts)
    if when is not None:
        while not when():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.0005)
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def go_on(store: Path, whole: dict[str, str], *, two: bool = False) -> dict[str, Any]:
    """Let another writer finish it; what that one left, and what it left alone."""
    kept = finished_in(store)
    ended = in_a_fork(partial(write_in_two if two else write, store))
    found = identities_in(store)
    return {
        "ended": ended,
        "same": content_of(store) == whole,
        "kept": {path: found.get(path) for path in kept} == kept,
        "shards": len(kept),
    }


def at_boundaries(root: Path, whole: dict[str, str]) -> dict[str, Any]:
    """One writer, killed at each place."""
    found = {}
    for name in PLACES:
        for number in NUMBERS:
            for after in (False, True):
                store = root / f"{name} {number} {after}"
                killed = in_a_fork(partial(arm_at, (name, number, after)), partial(write, store))
                found[store.name] = {"killed": killed, **go_on(store, whole)}
    return found


def at_random(root: Path, whole: dict[str, str], whole_s: float) -> list[dict[str, Any]]:
    """One writer after the other, killed at a random moment; then one that is not.

    At random moments of its progress rather than of time, which a busy machine stretches.
    """
    chance, found, kills = random.Random(1), list[dict[str, Any]](), 0
    total = sum("/shard-" in name for name in whole)
    while kills < RANDOM_KILLS and len(found) < 4 * RANDOM_KILLS:
        store, own = root / f"random {len(found)}", 0
        for _ in range(chance.randint(1, 4)):
            reached = partial(_has_shards, store, chance.randint(0, total - 1))
            after_s = chance.random() * whole_s / total
            own += in_a_fork(partial(write, store), when=reached, after_s=after_s) < 0
        kills += own
        found.append({"kills": own, **go_on(store, whole)})
    return found


def _has_shards(store: Path, count: int) -> bool:
    return sum(1 for _ in store.glob("*/shard-*.safetensors")) >= count


def one_of_two(root: Path, whole: dict[str, str]) -> dict[str, Any]:
    """One of two processes that share the work, killed at each place."""
    found = {}
    for name in SHARE_PLACES:
        for number in (1, 3):
            for rank in (0, 1):
                store = root / f"two {name} {number} {rank}"
                kill = (name, number, rank == 1)
                arm = partial(_arm_rank, rank, partial(arm_at, kill))
                ended = in_a_fork(partial(write_in_two, store, arm))
                found[store.name] = {"killed": ended, **go_on(store, whole, two=rank == 0)}
    return found


def one_of_two_at_random(root: Path, whole: dict[str, str], whole_s: float) -> list[dict[str, Any]]:
    """One of two processes, killed by a timer of its own at a random moment."""
    chance, found, kills = random.Random(2), list[dict[str, Any]](), 0
    share_s = whole_s / 3
    while kills < RANDOM_SHARE_KILLS and len(found) < 4 * RANDOM_SHARE_KILLS:
        store = root / f"two random {len(found)}"
        arm = partial(_arm_rank, chance.randint(0, 1), partial(_timer, chance.random() * share_s))
        killed = in_a_fork(partial(write_in_two, store, arm)) == 3
        kills += killed
        found.append({"kills": int(killed), **go_on(store, whole, two=len(found) % 2 == 0)})
    return found


def _arm_rank(which: int, act: Callable[[], None], rank: int) -> None:
    if rank == which:
        act()


def _timer(seconds: float) -> None:
    """Another process, with nothing else to do, kills this one."""
    parent = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        os._exit(0)


def _seconds(act: Callable[[], object]) -> float:
    """How long it takes in a child process."""
    began = time.monotonic()
    assert in_a_fork(act) == 0
    return time.monotonic() - began


# --- through the launcher ------------------------------------------------------------------------


def launched_share(store: str, codecs: dict[str, Codec]) -> None:
    """A rank as torch's launcher starts it; the second one is killed."""
    prepare()
    rank = torch.distributed.get_rank()
    if rank == 1:
        arm_at(("rename", 5, False))
    share(Path(store), codecs, rank)


def launched(root: Path, whole: dict[str, str]) -> dict[str, Any]:
    """Two ranks of which one is killed; then one process that is not."""
    store = root / "launched"

    def spread(codecs: dict[str, Codec]) -> None:
        run_processes(launched_share, str(store), codecs, processes=2)

    said = ""
    try:
        write_cache(job(), Store(store), on_tokens=lambda _: None, spread=spread)
    except StageError as error:
        said = str(error)
    kept = finished_in(store)
    write(store)
    found = identities_in(store)
    return {
        "said": said,
        "same": content_of(store) == whole,
        "kept": {path: found.get(path) for path in kept} == kept,
        "shards": len(kept),
    }


def begin(root: Path, name: str, run: Callable[[], object]) -> int:
    """Run one kind of cases in a child process, which leaves what became of them in a file."""
    child = os.fork()
    if child == 0:
        ended_by(lambda: (root / f"{name}.json").write_text(json.dumps(run())))
    return child


def main(root: Path) -> None:
    """Print how every case ended."""
    prepare()
    job()
    assert in_a_fork(partial(write, root / "whole")) == 0
    whole = content_of(root / "whole")
    whole_s = _seconds(partial(write, root / "again"))  # with all files of programs in memory
    assert in_a_fork(partial(write_in_two, root / "in two")) == 0
    kinds: dict[str, Callable[[], object]] = {
        "boundaries": partial(at_boundaries, root, whole),
        "random": partial(at_random, root, whole, whole_s),
        "one of two": partial(one_of_two, root, whole),
        "one of two at random": partial(one_of_two_at_random, root, whole, whole_s),
    }
    gc.freeze()  # a child's collector copies none of it
    children = [begin(root, name, run) for name, run in kinds.items()]
    found: dict[str, Any] = {
        "whole": sorted(whole),
        "two": content_of(root / "in two") == whole,
        "launched": launched(root, whole),  # it starts threads: nothing is forked from here on
    }
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0
    found |= {name: json.loads((root / f"{name}.json").read_text()) for name in kinds}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
