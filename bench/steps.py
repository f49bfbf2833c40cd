"""A training step from the cache against labels alone, and against a live teacher."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from bench.caches import HIDDEN, Bench, cache_of, job_of, settings_of
from bench.figures import Figure, Findings, Way, paragraphs, ratio, take_turns, turns
from bench.students import (
    LABELS,
    Stepping,
    batches_of,
    distilled,
    objective_of,
    one_phase,
    student_like_teacher,
    student_of,
)
from tasks.kd.data.examples.targets import NoTargets, Targets
from tasks.kd.encoders.shape import depth
from tasks.kd.recipe.levels import HiddenLevel, Level
from tasks.kd.recipe.matching import match
from tasks.kd.recipe.streams import in_order
from tasks.kd.recipe.student import Student
from tasks.kd.targets.targets import LiveTargets

ALONE, AGAIN, CACHED, LIVE = "labels only", "labels only again", "cached", "live teacher"


@dataclass(frozen=True)
class Case:
    """A student, its levels, and the goals of `cached ÷ <way>`; a goal of None is a way alone."""

    name: str
    student: Student
    goals: Mapping[str, float | None]
    levels: tuple[Level, ...] = field(default_factory=distilled)
    base_shaped: bool = False


# Four hidden layers are matched in all but the last, which matches all that it has, five.
CASES = (
    Case(
        "3×384",
        student_like_teacher(3),
        {ALONE: 1.15, LIVE: 0.72, AGAIN: None},
    ),
    Case(
        "2×128",
        student_of(2, 128, 2),
        {ALONE: 1.6},
        distilled(((0, 0), (1, 2), (2, 4), (2, 6)), projected=True),
    ),
    Case("3×192", student_of(3, 192, 12), {LIVE: 0.48}, distilled(projected=True)),
    Case(
        "BERT-base to 4×312",
        student_of(4, 312, 12),
        {LIVE: 0.25},
        distilled(projected=True),
        base_shaped=True,
    ),
)
NOTES = """
A step is one update without read-ahead: the batch is assembled (from the cache, or by the live
teacher's pass) before the student's forward pass begins. All ways of a case see the same batches.

The BERT-base-shaped teacher has random weights (12×768, 12 heads); its cache is of 200 texts.
"""


def measure(bench: Bench) -> Findings:
    """All cases, one after the other."""
    rounds, steps = bench.pick(5, 1), bench.pick(6, 2)
    figures: list[Figure] = []
    bench.watch.expect(sum((1 + len(case.goals)) * (rounds + 1) for case in CASES))
    for case in CASES:
        ways = _ways(bench, case, max(1, steps // 2) if case.base_shaped else steps)
        assert turns(ways, rounds) == (1 + len(case.goals)) * (rounds + 1)
        figures += _figures(case, take_turns(ways, rounds, advance=bench.watch.advance))
    return Findings(
        tuple(figures),
        {
            "rounds": rounds,
            "steps_per_round": steps,
            "batch_examples": bench.material.recipe.train_student.optimizer.batch_examples,
            "max_length_tokens": bench.material.recipe.prepare_data.max_length_tokens,
            "levels": {case.name: _described(case) for case in CASES},
        },
        paragraphs(NOTES),
    )


def _ways(bench: Bench, case: Case, steps: int) -> dict[str, Way]:
    """For each way a function that makes a round's updates: seconds a step."""
    material, data = bench.material, bench.material.short
    split = data.sample(200 if case.base_shaped else 1000)
    if bench.quick:
        split = data.sample(96)
    teacher = base_shaped(material.teacher) if case.base_shaped else material.teacher
    streams = _streams(case, teacher)
    marks = {"teacher_sha256": "random, seed 0"} if case.base_shaped else {}
    job = job_of(teacher, data, split, settings_of(material, streams), **marks)
    cached = cache_of(job, bench.store)
    targets: dict[str, Targets] = {
        ALONE: NoTargets(),
        AGAIN: NoTargets(),
        CACHED: cached,
        LIVE: LiveTargets(teacher, streams, pad_id=data.pad_id),
    }
    optimizer = material.recipe.train_student.optimizer
    batches = batches_of(split, optimizer)

    def make(name: str) -> Way:
        levels: tuple[Level, ...] = (LABELS,) if name in (ALONE, AGAIN) else case.levels
        objective = objective_of(case.student, teacher, one_phase(levels), (cached, split))
        stepping = Stepping(objective, split, optimizer, data.pad_id)

        def run(number: int) -> float:
            began = time.perf_counter()
            for place in range(number * steps, (number + 1) * steps):
                rows = batches[place % len(batches)]
                streams = targets[name].fetch([split.input_ids[row] for row in rows])
                stepping.step(rows, streams)
            return (time.perf_counter() - began) / steps

        return run

    return {name: make(name) for name in (CACHED, *case.goals)}


def base_shaped(teacher: torch.nn.Module) -> torch.nn.Module:
    """BERT-base with random weights, of the teacher's vocabulary and labels."""
    like: Any = teacher.config
    torch.manual_seed(0)
    config = BertConfig(vocab_size=like.vocab_size)
    config.num_labels = like.num_labels
    model: torch.nn.Module = BertForSequenceClassification(config).eval()
    return model


def _streams(case: Case, teacher: torch.nn.Module) -> tuple[str, ...]:
    """What the case's levels read; the teacher's own cache is that of the other parts."""
    if not case.base_shaped:
        return HIDDEN
    (level,) = (level for level in case.levels if isinstance(level, HiddenLevel))
    read = match(level, case.student.layers, depth(teacher)).theirs
    return in_order({"logits", *(f"hidden.{layer}" for layer in read)})


def _figures(case: Case, found: Mapping[str, list[float]]) -> list[Figure]:
    figures = [
        ratio(f"cached ÷ {way}, {case.name}", found[CACHED], found[way], at_most=goal)
        for way, goal in case.goals.items()
        if way != AGAIN
    ]
    if AGAIN in found:
        name = f"noise: labels only ÷ labels only, {case.name}"
        figures.append(ratio(name, found[AGAIN], found[ALONE]))
    return figures + [
        Figure(f"seconds a step, {way}, {case.name}", tuple(seconds), "s")
        for way, seconds in found.items()
        if way != AGAIN
    ]


def _described(case: Case) -> list[Any]:
    return [level.model_dump(mode="json") for level in case.levels]
