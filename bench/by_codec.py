"""What each codec costs: bytes, error, attention, and the accuracy of a student trained from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.caches import CODECS, Bench, cache_of, job_of, settings_of
from bench.figures import Figure, Findings, paragraphs
from bench.on_disk import stream_bytes_per_token
from bench.plot import Point, draw_codecs
from bench.students import objective_of, run_loop
from bench.watch import Watch
from tasks.kd.cache.format.codec import Codec
from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.reading.reader import CachedTargets
from tasks.kd.data.examples.batching import Rows
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.tables import stratified
from tasks.kd.documents.history import Record
from tasks.kd.training.course import Parts, steps_in_all
from tasks.kd.training.dev import predict

SEEDS = (7, 8)


@dataclass(frozen=True)
class _Trained:
    """A student's answers on the test split."""

    classes: torch.Tensor
    accuracy: float


class _Steps:
    """A sink that moves the bar."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def write(self, record: Record) -> None:
        if record.split == "train":
            self._watch.advance()

    def close(self) -> None:
        """Nothing to close."""


NOTES = """
Students are trained on {train_texts} stratified texts, not on all, to bound the time; a label
with a single text is not among them. Seeds are the same for all codecs; there is a value per seed.

One accuracy on {test_texts} texts has a standard error of about {error:.1f} percentage points:
smaller differences between codecs say nothing. Agreement is the share of test texts that get the
same answer as from the student of the same seed that was trained from float32.
"""


def measure(bench: Bench, plots: Path) -> Findings:
    """Caches and students of all codecs; draws them into `plots`."""
    material, data = bench.material, bench.material.short
    train_split = _stratified(data.train, bench.pick(1200, 128))
    dev, test = data.dev, data.test.take(_first(data.test, bench.pick(len(data.test), 200)))
    seeds = SEEDS[: bench.pick(len(SEEDS), 1)]
    phases, settings = material.recipe.train_student.phases, material.recipe.train_student.optimizer
    steps = steps_in_all(settings, phases, train_split)
    bench.watch.expect(len(CODECS) * (1 + steps * len(seeds)))
    sources: dict[Codec, CachedTargets] = {}
    for codec in CODECS:
        params = settings_of(material, material.recipe.cache_teacher.streams, codec)
        sources[codec] = cache_of(job_of(material.teacher, data, train_split, params), bench.store)
        bench.watch.advance()
    trained = {
        (codec, seed): _train(bench, sources[codec], (train_split, dev, test), seed)
        for seed in seeds
        for codec in CODECS
    }
    teacher = _answers(bench, material.teacher, test)
    points: dict[str, Point] = {
        codec: _point(sources[codec].manifest, [trained[codec, seed] for seed in seeds])
        for codec in CODECS
    }
    draw_codecs(points, teacher.accuracy, plots / "codecs.svg")
    figures = [Figure("teacher's accuracy, test split", (teacher.accuracy,))]
    for codec in CODECS:
        own = [trained[codec, seed] for seed in seeds]
        best = [trained["float32", seed] for seed in seeds]
        figures += _figures(codec, points[codec], own, best)
    return Findings(
        tuple(figures),
        {
            "train_texts": len(train_split),
            "test_texts": len(test),
            "seeds": seeds,
            "phases": [phase.model_dump(mode="json") for phase in phases],
            "student": material.recipe.train_student.student.model_dump(mode="json"),
        },
        paragraphs(
            NOTES,
            train_texts=len(train_split),
            test_texts=len(test),
            error=100 * (teacher.accuracy * (1 - teacher.accuracy) / len(test)) ** 0.5,
        ),
    )


def _stratified(split: Split, count: int) -> Split:
    labels = [str(label) for label in split.labels]
    rows, _ = stratified(labels, count, seed=7)
    return split.take(rows)


def _first(split: Split, count: int) -> Rows:
    return np.arange(min(count, len(split)), dtype=np.int64)


def _train(
    bench: Bench, cached: CachedTargets, splits: tuple[Split, Split, Split], seed: int
) -> _Trained:
    """The recipe's student and phases, as the stage trains them."""
    material, data = bench.material, bench.material.short
    recipe, teacher = material.recipe.train_student, material.teacher
    train_split, dev, test = splits
    objective = objective_of(
        recipe.student, teacher, recipe.phases, (cached, train_split), seed=seed
    )
    parts = Parts(objective, cached, train_split, dev, data.pad_id)
    run_loop(
        parts,
        _Steps(bench.watch),
        settings=recipe.optimizer.model_copy(update={"seed": seed}),
        compute=material.recipe.compute,
        folder=bench.folder,
    )
    return _answers(bench, objective.student, test)


def _answers(bench: Bench, model: torch.nn.Module, test: Split) -> _Trained:
    pad_id, tokens = bench.material.short.pad_id, bench.material.recipe.cache_teacher.batch_tokens
    classes = predict(model, test, pad_id=pad_id, max_tokens=tokens).argmax(-1)
    right = classes == torch.from_numpy(test.labels)
    return _Trained(classes, float(right.double().mean()))


def _point(manifest: Manifest, trained: list[_Trained]) -> Point:
    kept = {name: s for name, s in manifest.streams.items() if name != "logits"}
    return Point(
        bytes_per_token=stream_bytes_per_token(manifest),
        errors={name: stream.relative_error for name, stream in kept.items()},
        attention_kl={
            name: stream.attention_kl
            for name, stream in kept.items()
            if stream.attention_kl is not None
        },
        accuracies=tuple(one.accuracy for one in trained),
    )


def _figures(
    codec: str,
    point: Point,
    own: list[_Trained],
    best: list[_Trained],
) -> list[Figure]:
    same = tuple(
        float((a.classes == b.classes).double().mean()) for a, b in zip(own, best, strict=True)
    )
    return [
        Figure(f"bytes per token, {codec}", (point.bytes_per_token,), "B"),
        *_each(f"relative error, {codec}", point.errors),
        *_each(f"attention KL of the next layer, {codec}", point.attention_kl, "nats"),
        Figure(f"student's accuracy, test split, {codec}", point.accuracies),
        Figure(f"agreement with float32's student, {codec}", same),
    ]


def _each(name: str, values: Mapping[str, float], unit: str = "") -> list[Figure]:
    return [Figure(f"{name}, {stream}", (value,), unit) for stream, value in values.items()]
