"""Peak anonymous memory of writing and of training, on some data and on ten times as much.

Each is measured in a process of its own: `python -m bench.memory '<spec>'`, started here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from bench.caches import Bench, job_of, settings_of
from bench.figures import Figure, Findings, paragraphs, ratio
from bench.material import ROOT, Material, Prepared
from bench.students import distilled, objective_of, one_phase, run_loop, student_like_teacher
from tasks.kd.cache.format.fingerprint import fingerprint
from tasks.kd.cache.format.manifest import MANIFEST, Manifest
from tasks.kd.cache.format.parsing import read_document
from tasks.kd.cache.reading.reader import open_cache
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache
from tasks.kd.data.examples.prepared import Split
from tasks.kd.documents.history import Record
from tasks.kd.training.course import Parts

TIMES = 10
EVERY_S = 0.005
WORKS = {"write": "writing", "train": "training"}


@dataclass(frozen=True)
class Spec:
    """What a child process does."""

    work: str
    material: str
    texts: int
    shard_mib: int
    steps: int
    store: str


# The allocator keeps freed blocks below a threshold that it moves by itself: how much, differs from
# run to run by several percent. With a fixed, low one it gives back what is freed at once.
HELD = {"MALLOC_MMAP_THRESHOLD_": "32768"}
MODES: dict[str, Mapping[str, str]] = {"held": HELD, "with what malloc keeps": {}}

NOTES = """
Counted is RssAnon of the one process (heap, stacks, the interpreter, torch, the models, the texts),
read by another process every 5 ms from its start to its end. Not counted: pages of mapped files
(RssFile: shards, libraries), which are the page cache's, and the page cache itself.

`held` is what the program holds: malloc gives freed blocks of 32 KiB and more back at once
(MALLOC_MMAP_THRESHOLD_). `with what malloc keeps` is the same under glibc's own settings, as the
stages run, which keep freed blocks for later; the writer has them given back after every shard.

Shards are closed at {shard_mib} MiB, were they float32, so that the small cache has several too.
Training is the training loop itself on a 3×384 student, stopped after {steps} steps.
"""


def measure(bench: Bench) -> Findings:
    """Both works, both sizes, in rounds."""
    available = len(bench.material.short.sample(10**9))
    texts = bench.pick(available // TIMES, 40)
    rounds = dict.fromkeys(MODES, bench.pick(2, 1))
    shard_mib, steps = bench.pick(12, 1), bench.pick(10, 2)
    sizes = (texts, TIMES * texts)
    bench.watch.expect(sum(rounds.values()) * len(sizes) * len(WORKS))
    figures: list[Figure] = []
    for mode, count in rounds.items():
        found: dict[tuple[str, int], list[float]] = {(w, n): [] for w in WORKS for n in sizes}
        for size in sizes * count:
            with TemporaryDirectory(dir=bench.folder, prefix="memory-") as folder:
                for work in WORKS:  # training reads what was just written
                    spec = Spec(work, bench.material.name, size, shard_mib, steps, folder)
                    found[work, size].append(_run(spec, MODES[mode]))
                    bench.watch.advance()
        figures += _figures(mode, sizes, found)
    return Findings(
        tuple(figures),
        {"rounds": rounds, "texts": sizes, "shard_mib": shard_mib, "steps": steps},
        paragraphs(NOTES, shard_mib=shard_mib, steps=steps),
    )


def _figures(
    mode: str, sizes: tuple[int, int], found: Mapping[tuple[str, int], list[float]]
) -> list[Figure]:
    figures = []
    for work, name in WORKS.items():
        small, large = found[work, sizes[0]], found[work, sizes[1]]
        title = f"peak memory of {name}, {mode}, {TIMES} × the data ÷ 1 ×"
        figures.append(ratio(title, large, small, at_most=1.05))
        figures += [
            Figure(f"peak memory of {name}, {mode}, {size} texts", tuple(found[work, size]), "MiB")
            for size in sizes
        ]
    return figures


def _run(spec: Spec, environment: Mapping[str, str]) -> float:
    """A child's peak, in MiB: watched from here, so that watching costs it nothing."""
    program = [sys.executable, "-m", "bench.memory", json.dumps(asdict(spec))]
    peak = 0.0
    with TemporaryFile("w+") as said:
        child = subprocess.Popen(
            program, cwd=ROOT, env={**os.environ, **environment}, stdout=said, stderr=said
        )
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            peak = max(peak, anonymous_mib(status.read_text()))
            time.sleep(EVERY_S)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"a child ended with {child.returncode}:\n{said.read()}")
    return peak


def anonymous_mib(status: str) -> float:
    """RssAnon of a process's status file; 0 for one that has just ended, which has no memory."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None and not re.search(r"^State:\s+Z", status, re.MULTILINE):
        raise SystemExit("this system does not tell RssAnon")
    return int(found[1]) / 1024 if found else 0.0


# --- in the child --------------------------------------------------------------------------------


class _EnoughError(Exception):
    """The steps that were asked for are done."""


class _Stop:
    """A sink that ends a training after some steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def write(self, record: Record) -> None:
        self._left -= record.split == "train"
        if not self._left:
            raise _EnoughError

    def close(self) -> None:
        """Nothing to close."""


def _job(spec: Spec) -> tuple[CacheJob, Prepared, Split]:
    material = Material(spec.material)
    split = material.short.sample(spec.texts)
    params = settings_of(material, shard_mib=spec.shard_mib)
    return job_of(material.teacher, material.short, split, params), material.short, split


def _write(spec: Spec) -> None:
    job, _, _ = _job(spec)
    write_cache(job, Store(Path(spec.store)), on_tokens=lambda _: None)


def _train(spec: Spec) -> None:
    """As the stage does: every byte is verified, the teacher dropped before the loop begins."""
    job, data, split = _job(spec)
    store = Store(Path(spec.store))
    manifest = read_document(store.entry(fingerprint(job.made_of)) / MANIFEST)
    assert isinstance(manifest, Manifest)
    cached = open_cache(
        manifest, store, expected=job.made_of, pad_id=job.pad_id, mend="python -m bench"
    )
    objective = objective_of(
        student_like_teacher(3), job.teacher, one_phase(distilled()), (cached, split)
    )
    del job
    parts = Parts(objective, cached, split, data.dev, data.pad_id)
    recipe = Material(spec.material).recipe
    with suppress(_EnoughError):
        run_loop(
            parts,
            _Stop(spec.steps),
            settings=recipe.train_student.optimizer,
            compute=recipe.compute,
            folder=store.folder,
        )
        raise SystemExit(f"the training ended before its step {spec.steps}")


_WORK = {"write": _write, "train": _train}

if __name__ == "__main__":
    asked = Spec(**json.loads(sys.argv[1]))
    _WORK[asked.work](asked)
