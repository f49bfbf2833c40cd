"""Assembling a batch from the cache against a training step, and what read-ahead leaves of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bench.caches import CODECS, HIDDEN, Bench, cache_of, job_of, settings_of
from bench.figures import Figure, Findings, Way, paragraphs, ratio, take_turns, turns
from bench.students import (
    Stepping,
    batches_of,
    distilled,
    objective_of,
    one_phase,
    run_loop,
    student_like_teacher,
)
from tasks.kd.data.examples.batching import Rows
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.documents.history import Record, TrainRecord
from tasks.kd.training.course import Parts

STEP = "a step"
STEPS_TOGETHER = 5
BASE = "4 hidden levels, float16"
ATTENTION = ("attention.2", "attention.4", "attention.6", "relation.2", "relation.4", "relation.6")
COMPUTED: dict[str, tuple[str, ...]] = {
    "hidden.0 alone, computed": ("logits", "hidden.0"),
    "hidden.6, stored, the same width": ("logits", "hidden.6"),
    "attention and relation of 3 layers, computed": ATTENTION,
}
NOTES = """
Fetching is `targets.fetch` alone, in the thread that trains; the shards are in the page cache, as
they are from the second epoch on. hidden.0 is never stored: of the 4 hidden levels it is computed
from the token ids.

Waiting is of the training loop itself, which assembles the next batch during a step, by its own
record of each step; each value is of {together} steps on end. The first step of an epoch, which has
none before it, is left out.
"""


def measure(bench: Bench) -> Findings:
    """Fetching alone, then the loop's own waiting."""
    rounds, batches = bench.pick(7, 1), bench.pick(12, 2)
    split = bench.material.short.sample(bench.pick(1000, 96))
    sources = _sources(bench, split)
    ways = _ways(bench, split, sources, batches)
    bench.watch.expect(turns(ways, rounds) + 1)
    found = take_turns(ways, rounds, advance=bench.watch.advance)
    steps = found.pop(STEP)
    waiting, loop_steps = _waiting(bench, split, sources[BASE])
    bench.watch.advance()
    figures = [
        Figure(f"waiting ÷ step, read ahead, {BASE}", waiting, at_most=0.02),
        *(ratio(f"fetching ÷ step, {name}", seconds, steps) for name, seconds in found.items()),
        *(
            Figure(f"fetching a batch, {name}", tuple(1e3 * s for s in seconds), "ms")
            for name, seconds in found.items()
        ),
        Figure("a step, 3×384", tuple(steps), "s"),
        Figure("a step in the loop, 3×384", loop_steps, "s"),
    ]
    return Findings(
        tuple(figures),
        {"rounds": rounds, "batches_per_round": batches, "texts": len(split)},
        paragraphs(NOTES, together=STEPS_TOGETHER),
    )


def _sources(bench: Bench, split: Split) -> dict[str, Targets]:
    """A cache for each thing to read, of the same texts."""
    material, data = bench.material, bench.material.short
    params = {
        f"4 hidden levels, {codec}": settings_of(material, HIDDEN, codec) for codec in CODECS
    } | {name: settings_of(material, streams) for name, streams in COMPUTED.items()}
    return {
        name: cache_of(job_of(material.teacher, data, split, asked), bench.store)
        for name, asked in params.items()
    }


def _ways(bench: Bench, split: Split, sources: Mapping[str, Targets], count: int) -> dict[str, Way]:
    material, data = bench.material, bench.material.short
    optimizer = material.recipe.train_student.optimizer
    batches = batches_of(split, optimizer)
    stepping = Stepping(
        objective_of(
            student_like_teacher(3),
            material.teacher,
            one_phase(distilled()),
            (sources[BASE], split),
        ),
        split,
        optimizer,
        data.pad_id,
    )

    def chosen(number: int) -> list[Rows]:
        return [batches[i % len(batches)] for i in range(number * count, (number + 1) * count)]

    def step(number: int) -> float:
        few = chosen(number)[: max(1, count // 3)]
        fetched = [sources[BASE].fetch([split.input_ids[i] for i in rows]) for rows in few]

        def work() -> None:
            for rows, streams in zip(few, fetched, strict=True):
                stepping.step(rows, streams)

        return _mean(work, few)

    def fetching(targets: Targets) -> Way:
        def fetch(number: int) -> float:
            texts = [[split.input_ids[i] for i in rows] for rows in chosen(number)]
            return _mean(lambda: [targets.fetch(one) for one in texts], texts)

        return fetch

    return {STEP: step, **{name: fetching(targets) for name, targets in sources.items()}}


def _mean(work: Callable[[], object], parts: Sequence[object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / len(parts)


class _Times:
    """A sink that takes the seconds of each step, and those of it that were spent waiting."""

    def __init__(self, batch_examples: int) -> None:
        self._batch_examples = batch_examples
        self.seconds: list[float] = []
        self.waited: list[float] = []

    def write(self, record: Record) -> None:
        """Of an update."""
        if isinstance(record, TrainRecord):
            self.seconds.append(self._batch_examples / record.examples_per_s)
            self.waited.append(self.seconds[-1] * record.waiting)

    def close(self) -> None:
        """Nothing to close."""


def _waiting(
    bench: Bench, split: Split, targets: Targets
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Waiting ÷ step over every 5 steps of an epoch of the loop; and seconds a step."""
    material, data = bench.material, bench.material.short
    settings = material.recipe.train_student.optimizer
    times = _Times(settings.batch_examples)
    # A record tells examples a second, not how many there were: full batches alone.
    whole = split.take(np.arange(len(split) - len(split) % settings.batch_examples))
    objective = objective_of(
        student_like_teacher(3), material.teacher, one_phase(distilled()), (targets, whole)
    )
    parts = Parts(objective, targets, whole, data.dev, data.pad_id)
    compute = material.recipe.compute
    run_loop(parts, times, settings=settings, compute=compute, folder=bench.folder)
    # The first step's batch can't be assembled during a step before it.
    seconds, waited = np.asarray(times.seconds[1:]), np.asarray(times.waited[1:])
    groups = range(STEPS_TOGETHER, len(seconds) + 1, STEPS_TOGETHER) or (len(seconds),)
    shares, steps = [], []
    for end in groups:
        own = slice(max(0, end - STEPS_TOGETHER), end)
        left = float(seconds[own].sum() - waited[own].sum())
        shares.append(float(waited[own].sum()) / left)
        steps.append(left / len(seconds[own]))
    return tuple(shares), tuple(steps)
