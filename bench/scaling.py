"""Two processes against one, each with one thread, as the product itself starts them.

Each is measured in a program of its own, which calls `run_training` as the stage does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.caches import HIDDEN, Bench, cache_of, job_of, opened, settings_of
from bench.figures import Figure, Findings, Way, paragraphs, ratio, take_turns, turns
from bench.loops import WARM_UP_STEPS, Speeds, whole_batches
from bench.material import ROOT, Material
from bench.students import distilled, objective_of, one_phase, student_like_teacher
from tasks.kd.cache.format.fingerprint import fingerprint
from tasks.kd.cache.format.manifest import MANIFEST, Manifest
from tasks.kd.cache.format.parsing import read_document
from tasks.kd.cache.store.store import Store
from tasks.kd.documents.history import HISTORY, read_history
from tasks.kd.processes.launch import run_training
from tasks.kd.training.course import Parts
from tasks.kd.training.loop import Habits, train
from tasks.kd.training.sinks import JsonLines

_NEVER_S = 1e9
_LARGER = 4  # how many times the recipe's batch
# Not `python -m`: the processes must find what they do by the name of this module.
_PROGRAM = "import sys; from bench.scaling import main; main(sys.argv[1])"
NOTES = """
A 3×384 student with labels, softened predictions and 4 hidden levels from the cache. Each program
is started with OMP_NUM_THREADS=1 and has `compute.processes` 1 or 2; the launch is `run_training`'s
own (torchrun's elastic agent, gloo). Examples a second are those of the first process's records of
the same {steps} steps, after the first {warm_up}; a step has {batch} examples over all processes.

`side by side` are two trainings of one process each at once, which say nothing to each other: what
the machine's two cores give at most. Gradients are exchanged and weights updated once in a step,
whatever its size: with {larger} examples (of {few} steps) that is a smaller part of it.
"""


@dataclass(frozen=True)
class Spec:
    """What a child does: so many processes make so many steps on the texts of a cache."""

    material: str
    texts: int
    steps: int
    batch_examples: int
    processes: int
    store: str
    work: str


def measure(bench: Bench) -> Findings:
    """One process, two, and two trainings side by side, in turns."""
    rounds, steps, material = bench.pick(4, 1), bench.pick(24, 2), bench.material
    size = material.recipe.train_student.optimizer.batch_examples
    larger, few = _LARGER * size, bench.pick(5, 1)
    texts = max((WARM_UP_STEPS + steps) * size, (WARM_UP_STEPS + few) * larger)
    split = material.short.sample(texts)
    params = settings_of(material, HIDDEN)
    cache_of(job_of(material.teacher, material.short, split, params), bench.store)

    def once(processes: int, batch_examples: int, steps: int) -> float:
        with TemporaryDirectory(dir=bench.folder, prefix="scaling-") as work:
            place = str(bench.store.folder)
            _run(Spec(material.name, texts, steps, batch_examples, processes, place, work))
            return speed_of(Path(work), batch_examples)

    def of(processes: int, *, batch: int = size, steps: int = steps, at_once: int = 1) -> Way:
        def run(number: int) -> float:
            each = (processes, batch, WARM_UP_STEPS + (steps if number else 1))
            with ThreadPoolExecutor(at_once) as threads:
                return sum(threads.map(once, *zip(*[each] * at_once, strict=True)))

        return run

    one, two, both = "1 process", "2 processes", "2 side by side"
    ways = {
        one: of(1),
        two: of(2),
        both: of(1, at_once=2),
        f"{one}, {larger} a step": of(1, batch=larger, steps=few),
        f"{two}, {larger} a step": of(2, batch=larger, steps=few),
    }
    bench.watch.expect(turns(ways, rounds))
    found = take_turns(ways, rounds, advance=bench.watch.advance)
    alike = ", one thread each, 3×384"
    ones, twos = found[f"{one}, {larger} a step"], found[f"{two}, {larger} a step"]
    return Findings(
        (
            ratio(f"{two} ÷ 1{alike}", found[two], found[one], at_least=1.8),
            ratio(f"{two} ÷ 1{alike}, {larger} examples a step", twos, ones),
            ratio(f"limit: {both} ÷ 1{alike}", found[both], found[one]),
            *(
                Figure(f"examples a second, {name}{alike}", tuple(speeds))
                for name, speeds in found.items()
            ),
        ),
        {"rounds": rounds, "texts": len(split), "steps": steps},
        paragraphs(NOTES, steps=steps, warm_up=WARM_UP_STEPS, batch=size, larger=larger, few=few),
    )


def speed_of(folder: Path, batch_examples: int) -> float:
    """Examples a second after the warm-up, by a training's records."""
    speeds = Speeds(batch_examples)
    for record in read_history(folder):
        speeds.write(record)
    return speeds.speed.examples_per_s


def _run(spec: Spec) -> None:
    program = [sys.executable, "-c", _PROGRAM, json.dumps(asdict(spec))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{spec.processes} processes: a child failed:\n{done.stderr}")


# --- in the child, and in each process of the training -------------------------------------------


def work(spec: Spec) -> None:
    """Train on the cache that is there, and leave records."""
    material, store = Material(spec.material), Store(Path(spec.store))
    settings = material.recipe.train_student.optimizer.model_copy(
        update={"batch_examples": spec.batch_examples}
    )
    split = material.short.sample(spec.texts)
    params = settings_of(material, HIDDEN)
    job = job_of(material.teacher, material.short, split, params)
    manifest = read_document(store.entry(fingerprint(job.made_of)) / MANIFEST)
    assert isinstance(manifest, Manifest)
    cached = opened(job, manifest, store)
    objective = objective_of(
        student_like_teacher(3), material.teacher, one_phase(distilled()), (cached, split)
    )
    own = whole_batches(split, settings.batch_examples, spec.steps)
    dev = material.short.dev.take(np.arange(32, dtype=np.int64))
    parts = Parts(objective, cached, own, dev, material.short.pad_id)
    folder = Path(spec.work)
    compute = material.recipe.compute.model_copy(
        update={"checkpoint_every_s": _NEVER_S, "profile_step": None}
    )
    habits = Habits(
        folder, folder, compute, lambda step: [JsonLines(folder / HISTORY, resume_at=step)]
    )
    train(settings, parts, habits)


def main(argument: str) -> None:
    """Start the processes of a spec."""
    spec = Spec(**json.loads(argument))
    compute = Material(spec.material).recipe.compute.model_copy(
        update={"processes": spec.processes, "threads": 1}
    )
    run_training(work, spec, compute=compute, environment={})
