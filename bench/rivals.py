"""Examples a second against TextBrewer: the same teacher, student, layers, texts and batch size."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.caches import Bench, cache_of, job_of, opened, settings_of
from bench.figures import Figure, Findings, Way, paragraphs, ratio, take_turns, turns
from bench.loops import WARM_UP_STEPS, Loop, whole_batches
from bench.steps import base_shaped
from bench.students import distilled, one_phase, student_like_teacher, student_of
from bench.textbrewer_loop import VERSION, Rival, Spec, fetch, pairs_of
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache
from tasks.kd.data.examples.prepared import Split
from tasks.kd.encoders.shape import depth
from tasks.kd.recipe.levels import Level
from tasks.kd.recipe.phases import streams_read
from tasks.kd.recipe.student import Student

OURS, THEIRS, WRITING = "ours", "TextBrewer", "writing the cache"
EPOCHS = 8
TEMPERATURE = 2.0
NOTES = """
`ours` is the training loop itself over one epoch of the sample, with the cache: batches bucketed
by length, its records, clipping, schedule and checkpoints. `TextBrewer` is {version}'s own
`GeneralDistiller.train` as its README and its MNLI example use it, in a process of its own:
shuffled batches from a DataLoader (each padded to its longest text, which is kinder to it than that
example's padding of all to the maximum), torch's AdamW, the teacher run in each step. Both learn
from labels, the teacher's softened predictions and its hidden states at every mapped layer, with a
linear projection where widths differ. Dev evaluation and the saving of weights after an epoch are
counted on neither side, and of each training the first steps are left out ({warm_up} of ours).

TextBrewer imports a tensorboard writer, which is put aside: it logs nothing without a folder to
log to. Nothing else of it is changed. Its standard AdamW (not fused) and its reading of each loss
after every step are its own.

The total time over {epochs} epochs is computed from parts measured in the same round on the same
sample: all of `write_cache` once, and {epochs} times the seconds that one epoch takes at the
measured examples a second, ÷ {epochs} of TextBrewer's.

The BERT-base-shaped teacher has random weights (12×768, 12 heads).
"""


@dataclass(frozen=True)
class Case:
    """A student, the goal, and how much of it is measured a round."""

    name: str
    student: Student
    at_least: float
    texts: int
    their_steps: int
    projected: bool = True
    base_shaped: bool = False
    total_at_most: float | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """Labels, softened predictions, hidden states."""
        return distilled(projected=self.projected)


CASES = (
    Case("6×384 to 3×192", student_of(3, 192, 12), 3.0, 1600, 30, total_at_most=0.42),
    Case("6×384 to 3×384", student_like_teacher(3), 1.6, 1600, 18, projected=False),
    Case("BERT-base to 4×312", student_of(4, 312, 12), 5.0, 960, 10, base_shaped=True),
)


def measure(bench: Bench) -> Findings:
    """All cases, one after the other."""
    rounds, sources = bench.pick(4, 1), fetch(bench.folder)
    figures: list[Figure] = []
    settings: dict[str, Any] = {}
    for case in CASES:
        found, settings[case.name] = _case(bench, case, sources, rounds)
        figures += found
    notes = paragraphs(NOTES, version=VERSION, warm_up=WARM_UP_STEPS, epochs=EPOCHS)
    size = bench.material.recipe.train_student.optimizer.batch_examples
    return Findings(
        tuple(figures), {"rounds": rounds, "batch_examples": size, "cases": settings}, notes
    )


def _case(
    bench: Bench, case: Case, sources: Path, rounds: int
) -> tuple[list[Figure], dict[str, Any]]:
    material, data = bench.material, bench.material.short
    size = material.recipe.train_student.optimizer.batch_examples
    teacher = base_shaped(material.teacher) if case.base_shaped else material.teacher
    split = whole_batches(data.sample(bench.pick(case.texts, 192)), size, 10**9)
    job = _job(bench, case, teacher, split)
    cached = cache_of(job, bench.store)
    loop = Loop(bench, case.student, case.levels, (teacher, cached, cached, split))
    spec = Spec(
        material=material.name,
        texts=len(split),
        base_shaped=case.base_shaped,
        student=case.student.model_dump(mode="json"),
        pairs=pairs_of(case.levels, case.student.layers, depth(teacher)),
        temperature=TEMPERATURE,
        batch_examples=size,
    )
    steps = bench.pick(case.their_steps, 2)
    with Rival(spec, sources) as rival:
        ways: dict[str, Way] = {
            OURS: lambda number: loop.speed(number).examples_per_s,
            THEIRS: lambda number: rival.examples_per_s(steps if number else 1, seed=number),
        }
        if case.total_at_most is not None:
            ways[WRITING] = lambda _number: seconds_of_writing(job, bench.folder)
        bench.watch.expect(turns(ways, rounds))
        found = take_turns(ways, rounds, advance=bench.watch.advance)
    described = {"texts": len(split), "their_steps": steps, "pairs": spec.pairs}
    return figures_of(case, found, len(split)), {**described, "student": spec.student}


def _job(bench: Bench, case: Case, teacher: torch.nn.Module, split: Split) -> CacheJob:
    streams = streams_read(one_phase(case.levels), case.student.layers, depth(teacher))
    marks = {"teacher_sha256": "random, seed 0"} if case.base_shaped else {}
    params = settings_of(bench.material, streams)
    return job_of(teacher, bench.material.short, split, params, **marks)


def seconds_of_writing(job: CacheJob, folder: Path) -> float:
    """Of making the cache anew, statistics and codec errors included, and of opening it."""
    with TemporaryDirectory(dir=folder, prefix="writing-") as place:
        store = Store(Path(place))
        began = time.perf_counter()
        opened(job, write_cache(job, store, on_tokens=lambda _tokens: None), store)
        return time.perf_counter() - began


def figures_of(case: Case, found: Mapping[str, list[float]], texts: int) -> list[Figure]:
    """Speeds, their ratio, and the computed total where the case has a goal for it."""
    ours, theirs = found[OURS], found[THEIRS]
    figures = [ratio(f"{OURS} ÷ {THEIRS}, {case.name}", ours, theirs, at_least=case.at_least)]
    if WRITING in found:
        writing = found[WRITING]
        totals = [w + EPOCHS * texts / o for w, o in zip(writing, ours, strict=True)]
        whole = [EPOCHS * texts / t for t in theirs]
        name = f"seconds of {EPOCHS} epochs and the cache, {OURS} ÷ {THEIRS}, {case.name}"
        figures += [
            ratio(name, totals, whole, at_most=case.total_at_most),
            Figure(f"{WRITING}, {texts} texts, {case.name}", tuple(writing), "s"),
        ]
    return figures + [
        Figure(f"examples a second, {way}, {case.name}", tuple(found[way]))
        for way in (OURS, THEIRS)
    ]
