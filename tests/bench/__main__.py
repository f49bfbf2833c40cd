"""Measure a training step three ways: on labels alone, from the cache, with a live teacher.

`make bench` after `make demo`: it uses the quickstart's teacher, data and cache. Ratios within one
run, as medians over rounds that take turns, so that a noisy machine hits all three alike.
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tasks.kd.batching import epoch_batches
from tasks.kd.cache.manifest import read_manifest
from tasks.kd.cache.reader import CachedTargets, open_cache
from tasks.kd.data import read_data_card, read_split
from tasks.kd.digests import write_json
from tasks.kd.encoders import embeddings_of, load_classifier
from tasks.kd.objective import Batch, Objective, TeacherShape
from tasks.kd.optimizers import new_optimizer
from tasks.kd.params import HiddenLevel, KLLevel, LabelsLevel, Phase, Recipe
from tasks.kd.recipes import load_recipe
from tasks.kd.students import build_student, depth
from tasks.kd.targets import LiveTargets, NoTargets, Targets, pad

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results")
ROUNDS, STEPS = 7, 6
WAYS = ("labels only", "cached", "live teacher")


def main() -> None:
    """Time the three, print a table, write results/training_step.json."""
    recipe = load_recipe(ROOT / "params" / "quickstart.yaml")
    steps = make_steps(recipe)
    rounds: dict[str, list[float]] = {way: [] for way in WAYS}
    reading: list[float] = []
    for number in range(ROUNDS + 1):
        for way in WAYS:
            seconds, waited = steps[way](number)
            if number:  # the first round warms up
                rounds[way].append(seconds)
                if way == "cached":
                    reading.append(waited / seconds)
    ratios = {
        f"{a} / {b}": [x / y for x, y in zip(rounds[a], rounds[b], strict=True)]
        for a, b in (("cached", "labels only"), ("cached", "live teacher"))
    }
    ratios["assembling a batch / cached step"] = reading
    report(rounds, ratios)


def make_steps(recipe: Recipe) -> dict[str, Callable[[int], tuple[float, float]]]:
    """For each way a function that runs a round of updates: its seconds, and those of fetching."""
    artifacts = ROOT / "artifacts" / "quickstart"
    card = read_data_card(artifacts / "prepare_data")
    split = read_split(artifacts / "prepare_data" / "train.arrow")
    teacher = load_classifier(artifacts / "train_teacher" / "model")
    cached = open_targets(artifacts, teacher, card["pad_token_id"])
    shape = TeacherShape(depth(teacher), recipe.train_teacher.hidden_size, cached.deviations)
    live = LiveTargets(teacher, recipe.cache_teacher.streams, pad_id=card["pad_token_id"])
    ways: dict[str, tuple[Targets, tuple[Phase, ...]]] = {
        "labels only": (NoTargets(), (phase_of(only_labels=True),)),
        "cached": (cached, (phase_of(only_labels=False),)),
        "live teacher": (live, (phase_of(only_labels=False),)),
    }
    size = recipe.train_student.optimizer.batch_examples
    batches = epoch_batches(split.lengths, batch_examples=size, seed=0, epoch=0)

    def make(targets: Targets, phases: tuple[Phase, ...]) -> Callable[[int], tuple[float, float]]:
        student = build_student(recipe.train_student.student, teacher, seed=0)
        objective = Objective(student, phases, shape).train()
        optimizer = new_optimizer(objective, recipe.train_student.optimizer, 1e-5)

        def run(number: int) -> tuple[float, float]:
            started, fetching = time.perf_counter(), 0.0
            for rows in batches[number * STEPS : (number + 1) * STEPS]:
                texts = [split.input_ids[row] for row in rows]
                begun = time.perf_counter()
                streams = targets.fetch(texts)
                fetching += time.perf_counter() - begun
                ids, mask = pad(texts, card["pad_token_id"])
                batch = Batch(ids, mask, torch.from_numpy(split.labels[rows]))
                totals = objective(batch, streams, 0)
                torch.stack([total.mean() for total in totals.values()]).sum().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return time.perf_counter() - started, fetching

        return run

    return {way: make(*parts) for way, parts in ways.items()}


def phase_of(*, only_labels: bool) -> Phase:
    """Labels alone, or labels, KL and four hidden layers."""
    levels: tuple[Any, ...] = (LabelsLevel(level="prediction", loss="labels", weight=1.0),)
    if not only_labels:
        levels += (
            KLLevel(level="prediction", loss="kl", temperature=2.0, weight=1.0),
            HiddenLevel(
                level="hidden",
                loss="mse",
                layer_map="uniform",
                standardise=True,
                projection="none",
                weight=1.0,
            ),
        )
    return Phase(name="bench", epochs=1, learning_rate=1e-5, levels=levels)


def open_targets(artifacts: Path, teacher: torch.nn.Module, pad_id: int) -> CachedTargets:
    """The quickstart's cache."""
    manifest = read_manifest(artifacts / "cache_teacher" / "manifest.json")
    cached = open_cache(manifest, ROOT / ".store", expected=manifest.made_of, mend="make demo")
    cached.use_embeddings(copy.deepcopy(embeddings_of(teacher)), pad_id=pad_id)
    return cached


def report(rounds: dict[str, list[float]], ratios: dict[str, list[float]]) -> None:
    """A table, and the same as a file."""
    table = Table("figure", "median", "min", "max", title=f"{ROUNDS} rounds of {STEPS} steps")
    figures = {f"{way}, s/step": [s / STEPS for s in values] for way, values in rounds.items()}
    summary = {}
    for name, values in {**figures, **ratios}.items():
        spread = [statistics.median(values), min(values), max(values)]
        table.add_row(name, *(f"{value:.3f}" for value in spread))
        summary[name] = dict(zip(("median", "min", "max"), spread, strict=True))
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads()}
    write_json(RESULTS / "training_step.json", {"figures": summary, "machine": machine})


if __name__ == "__main__":
    main()
