"""From the start of the stage to the first step of its training, and how soon commands answer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from bench.caches import Bench
from bench.figures import Figure, Findings, Way, paragraphs, take_turns, turns
from bench.material import FOLDER, ROOT, run_stage_once

STAGE = "train_student"
FIRST_STEP = "start to first step"
COMMANDS = {
    "stillhouse --help": ("--help",),
    "stillhouse check": ("check",),
    "stillhouse run --help": ("run", "--help"),
}
_LOOK_EVERY_S, _AT_MOST_S = 0.005, 300.0
NOTES = """
From the start of `python -m tasks.stages.train_student` to the moment at which the record of its
first update stands in metrics.jsonl: imports, the recipe, the digests of inputs and code, every
byte of the cache verified, records compared with the teacher, the student, and the step itself.
The cache is of all R52 training texts, {mib} MiB, and in memory (warm). The stage is then killed;
what it left is removed, so that none resumes.

Commands are timed from start to end, as `python -m flows`, in the project's own folder.
"""


def measure(bench: Bench) -> Findings:
    """The stage and the commands, in turns."""
    rounds, name = bench.pick(5, 1), bench.material.name
    run_stage_once("cache_teacher", name, bench.watch.say)
    ways: dict[str, Way] = {FIRST_STEP: lambda _number: seconds_to_first_step(FOLDER, name)}
    for command, arguments in COMMANDS.items():
        ways[command] = lambda _number, given=arguments: seconds_of_command(given)  # type: ignore[misc]
    bench.watch.expect(turns(ways, rounds))
    found = take_turns(ways, rounds, advance=bench.watch.advance)
    size = sum(file.stat().st_size for file in (FOLDER / ".store").rglob("*") if file.is_file())
    return Findings(
        (
            Figure(f"{FIRST_STEP}, warm", tuple(found[FIRST_STEP]), "s", at_most=12.0),
            *(Figure(command, tuple(found[command]), "s") for command in COMMANDS),
        ),
        {"rounds": rounds, "store_bytes": size},
        paragraphs(NOTES, mib=round(size / 2**20)),
    )


def seconds_to_first_step(folder: Path, recipe: str) -> float:
    """Of the stage in a project folder; it is killed at its first record."""
    program = [sys.executable, "-m", f"tasks.stages.{STAGE}", f"params/{recipe}.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("STILLHOUSE_STORE", None)
    try:
        return seconds_to_record(program, folder, f"{STAGE}-{recipe}-*", environment)
    finally:
        for left in (folder / ".work").glob(f"{STAGE}-{recipe}-*"):
            shutil.rmtree(left)


def seconds_to_record(
    program: Sequence[str], folder: Path, work: str, environment: dict[str, str]
) -> float:
    """Until a whole line stands in `.work/<work>/metrics.jsonl`; the program is then ended."""
    for left in (folder / ".work").glob(work):
        shutil.rmtree(left)
    with TemporaryFile("w+") as said:
        began = time.perf_counter()
        child = subprocess.Popen(
            program, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            while not _has_record(folder / ".work", work):
                spent = time.perf_counter() - began
                if child.poll() is not None or spent > _AT_MOST_S:
                    said.seek(0)
                    raise SystemExit(f"no step after {spent:.0f} s:\n{said.read()}")
                time.sleep(_LOOK_EVERY_S)
            return time.perf_counter() - began
        finally:
            if child.poll() is None:  # its own session: nothing but the stage is in it
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _has_record(folder: Path, work: str) -> bool:
    return any(b"\n" in file.read_bytes() for file in folder.glob(f"{work}/metrics.jsonl"))


def seconds_of_command(arguments: Sequence[str]) -> float:
    """Of `stillhouse` with these arguments, which must succeed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    spent = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"stillhouse {' '.join(arguments)} failed:\n{done.stderr}")
    return spent
