"""Our loop against the fastest one that knows neither a teacher nor levels."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch

from bench.caches import HIDDEN, Bench, cache_of, job_of, settings_of
from bench.figures import Figure, Findings, Way, paragraphs, ratio, take_turns, turns
from bench.loops import WARM_UP_STEPS, Loop, whole_batches
from bench.students import LABELS, batches_of, distilled, student_like_teacher
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.targets import NoTargets
from tasks.kd.students.building import build_student
from tasks.kd.training.dropout import quick_dropout

CACHED, LABELS_ONLY, BARE, AGAIN = "levels, cached", "labels only", "bare loop", "bare loop again"
PLAIN = "bare loop with torch's own dropout"
_RATE = 1e-5
NOTES = """
`levels, cached` and `labels only` are the training loop itself over one epoch of the sample, with
its records, clipping, schedule and checkpoints; labels, softened predictions and 4 hidden levels
from the cache, or labels alone. The dev evaluation after the epoch is not counted.

`bare loop` is what is left without all that: forward, cross-entropy, backward, fused AdamW, on
batches that were padded beforehand, the same batches in the same order, nothing read back. Its
dropout is the product's quick one; `with torch's own dropout` it is a loop as others write it.

Seconds of the first {warm_up} steps of each training are left out.
"""


def measure(bench: Bench) -> Findings:
    """All ways in turns."""
    material, data = bench.material, bench.material.short
    rounds = bench.pick(4, 1)
    settings = material.recipe.train_student.optimizer
    split = whole_batches(data.sample(bench.pick(1600, 224)), settings.batch_examples, 10**9)
    student, teacher = student_like_teacher(3), material.teacher
    cached = cache_of(job_of(teacher, data, split, settings_of(material, HIDDEN)), bench.store)
    waiting: list[float] = []
    loops = {
        CACHED: Loop(bench, student, distilled(), (teacher, cached, cached, split)),
        LABELS_ONLY: Loop(bench, student, (LABELS,), (teacher, cached, NoTargets(), split)),
    }

    def through(name: str) -> Way:
        def run(number: int) -> float:
            speed = loops[name].speed(number)
            if number and name == CACHED:
                waiting.append(speed.waiting)
            return speed.examples_per_s

        return run

    def bare(number: int, *, quick: bool = True) -> float:
        few = split if number else whole_batches(split, settings.batch_examples, WARM_UP_STEPS + 1)
        model = build_student(student, teacher, seed=0).train()
        batches = [
            (
                *pad([few.input_ids[i] for i in rows], data.pad_id),
                torch.from_numpy(few.labels[rows]),
            )
            for rows in batches_of(few, settings)
        ]
        with quick_dropout(torch.device("cpu")) if quick else nullcontext():
            return bare_speed(model, batches)

    ways: dict[str, Way] = {
        CACHED: through(CACHED),
        LABELS_ONLY: through(LABELS_ONLY),
        BARE: bare,
        AGAIN: bare,
        PLAIN: lambda number: bare(number, quick=False),
    }
    bench.watch.expect(turns(ways, rounds))
    found = take_turns(ways, rounds, advance=bench.watch.advance)
    figures = [
        ratio(f"{CACHED} ÷ {BARE}, 3×384", found[CACHED], found[BARE], at_least=0.85),
        Figure("waiting for data ÷ time, levels, cached, 3×384", tuple(waiting), at_most=0.02),
        ratio(f"{LABELS_ONLY} ÷ {BARE}, 3×384", found[LABELS_ONLY], found[BARE]),
        ratio(f"{CACHED} ÷ {PLAIN}, 3×384", found[CACHED], found[PLAIN]),
        ratio(f"noise: {BARE} ÷ {BARE}, 3×384", found[AGAIN], found[BARE]),
        *(
            Figure(f"examples a second, {name}, 3×384", tuple(found[name]))
            for name in (CACHED, LABELS_ONLY, BARE, PLAIN)
        ),
    ]
    return Findings(
        tuple(figures),
        {
            "rounds": rounds,
            "texts": len(split),
            "batch_examples": settings.batch_examples,
            "levels": [level.model_dump(mode="json") for level in distilled()],
        },
        paragraphs(NOTES, warm_up=WARM_UP_STEPS),
    )


Padded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def bare_speed(model: torch.nn.Module, batches: list[Padded]) -> float:
    """Train on labels; examples a second after the warm-up. Batches: ids, mask, labels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, fused=True)
    began, done = 0.0, 0
    for number, (ids_BT, mask_BT, labels_B) in enumerate(batches):
        if number == WARM_UP_STEPS:
            began = time.perf_counter()
        logits_BC = model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
        torch.nn.functional.cross_entropy(logits_BC, labels_B).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += len(labels_B) if number >= WARM_UP_STEPS else 0
    if not done:
        raise SystemExit(f"{len(batches)} steps: none after the warm-up")
    return done / (time.perf_counter() - began)
