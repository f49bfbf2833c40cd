"""Cached against live: how far losses and gradients are apart, and how far they may be.

Both are taken at the same weights, on the same batch, with the same dropout. What a codec may do to
a stream is its stated tolerance (`cache/audit.py`): a relative error t of a record. A loss L may
then move by ‖∂L/∂s‖ · t‖s‖, summed over streams s, to first order; a gradient may move as far as it
does under noise of that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice

import numpy as np
import torch

from bench.caches import HIDDEN, Bench, cache_of, job_of, settings_of
from bench.figures import Figure, Findings, paragraphs
from bench.students import distilled, one_phase, student_like_teacher
from tasks.kd.cache.format.codec import Codec
from tasks.kd.cache.reading.audit import tolerance
from tasks.kd.cache.reading.reader import CachedTargets
from tasks.kd.cache.writing.calibration import deviations
from tasks.kd.data.examples.batching import Rows
from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.data.examples.trainable import Moment
from tasks.kd.encoders.shape import depth, width
from tasks.kd.levels.objective import Objective, TeacherShape, banked_layers, standardised_layers
from tasks.kd.recipe.levels import Level
from tasks.kd.recipe.phases import streams_read
from tasks.kd.students.building import build_student
from tasks.kd.targets.banks import banks
from tasks.kd.targets.targets import LiveTargets
from tasks.kd.training.gradients import seed_step
from tasks.kd.training.optimizers import new_optimizer

CODECS: tuple[Codec, ...] = ("float32", "float16", "int8")
STEPS, LEVEL_STEPS, BATCH = 200, 3, 8
# As in tests/kd/cache/reading/test_levels.py: for what is not of first order, and for other noise.
_LOSS_SLACK, _GRADIENT_SLACK, _NUMERICS = 1.5, 2.0, 1e-5
_RATE = 1e-4
_SEED = 7
NOTES = """
The student is 3×384, in training mode: dropout has the same draws on both sides. `at the same
weights`: in each of {steps} steps the live teacher moves the student (AdamW, {rate:g}, batches of
{batch}); before it moves, each level's loss and its gradient of all weights are computed once from
the live teacher and once from each codec's cache. Given is the greatest of all steps.

`÷ allowed` is ≤ 1 within the codec's stated tolerance. A codec's tolerance t is that of the audit,
a relative error of 4 times the codec error in the manifest and 1e-4 for one record of a stream s; a
loss may move by {loss_slack} times ‖∂L/∂s‖ · t‖s‖, a gradient by {gradient_slack:g} times what
random noise of that size moves it by at the same weights, and both by 1e-5 of themselves.

`every level` is the same for each level alone, on {level_steps} batches at the first weights; the
greatest of loss and gradient and of all codecs. All figures of each level and codec are in the
settings of the JSON file.

`on its own way`: a student that learns from the cache alone, all else the same; its loss against
that of the student of the live teacher, at the same step. Differences add up over steps there, so
that there is no goal.
"""

Streams = Mapping[str, torch.Tensor]
Gradients = list[torch.Tensor | None]


@dataclass(frozen=True)
class Moved:
    """How far a level is from the live teacher's: relative, and ÷ what its codec allows."""

    loss: float = 0.0
    gradient: float = 0.0
    loss_share: float = 0.0
    gradient_share: float = 0.0

    def widen(self, other: Moved) -> Moved:
        """The greater of each."""
        names = [field.name for field in fields(self)]
        return Moved(*(max(getattr(self, name), getattr(other, name)) for name in names))


@dataclass(frozen=True)
class _Sides:
    """The same texts' streams from the teacher, and from a cache of each codec."""

    split: Split
    pad_id: int
    live: Targets
    cached: Mapping[Codec, CachedTargets]

    def batch(self, rows: Rows) -> Batch:
        texts = [self.split.input_ids[row] for row in rows]
        return Batch(*pad(texts, self.pad_id), torch.from_numpy(self.split.labels[rows]))

    def compare(
        self, objective: Objective, rows: Rows, seed: int
    ) -> dict[tuple[Codec, str], Moved]:
        texts = [self.split.input_ids[row] for row in rows]
        stored = {
            codec: (targets.fetch(texts), tolerance(targets.manifest.codec_errors))
            for codec, targets in self.cached.items()
        }
        return compare(objective, self.batch(rows), self.live.fetch(texts), stored, seed=seed)


def measure(bench: Bench) -> Findings:
    """The main recipe's curve, every level, and students on their own way."""
    steps, few = bench.pick(STEPS, 2), bench.pick(LEVEL_STEPS, 1)
    every = _every_level()
    if bench.quick:
        every = dict(list(every.items())[::6])
    bench.watch.expect(steps * (1 + len(CODECS)) + few * len(every))
    sides = _sides(bench, HIDDEN, steps * BATCH)
    main, losses = _curve(bench, sides)
    apart = {codec: _own_way(bench, sides, codec, losses) for codec in CODECS}
    sides = _sides(bench, _streams(bench, every.values()), bench.pick(256, 32))
    alone = {name: _alone(bench, sides, level, few) for name, level in every.items()}
    figures = [
        *(
            figure
            for (codec, name), moved in main.items()
            for figure in _figures(codec, name, moved)
        ),
        *(
            Figure(f"on its own way, greatest difference ÷ loss, {codec}", (value,))
            for codec, value in apart.items()
        ),
        *(_figure_of_level(name, found) for name, found in alone.items()),
    ]
    return Findings(
        tuple(figures),
        {
            "steps": steps,
            "level_steps": few,
            "batch_examples": BATCH,
            "every_level": {
                name: {codec: asdict(moved) for codec, moved in found.items()}
                for name, found in alone.items()
            },
        },
        paragraphs(
            NOTES,
            steps=steps,
            level_steps=few,
            batch=BATCH,
            rate=_RATE,
            loss_slack=_LOSS_SLACK,
            gradient_slack=_GRADIENT_SLACK,
        ),
    )


# --- one comparison ------------------------------------------------------------------------------


def compare(
    objective: Objective,
    batch: Batch,
    live: Streams,
    stored: Mapping[Codec, tuple[Streams, Mapping[str, float]]],
    *,
    seed: int,
) -> dict[tuple[Codec, str], Moved]:
    """Each codec's levels against the live teacher's; `stored` has its streams and tolerances."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in live.items()}
    truth = _levels(objective, batch, leaves, seed, also=list(leaves.values()))
    found: dict[tuple[Codec, str], Moved] = {}
    for codec, (streams, bounds) in stored.items():
        own = _levels(objective, batch, streams, seed)
        noise = _levels(objective, batch, noisy(live, bounds, seed), seed)
        for name, (loss, gradients) in truth.items():
            weights, at_streams = gradients[: -len(leaves)], gradients[-len(leaves) :]
            moves = sum(
                float(gradient.norm() * live[stream].norm()) * bounds[stream]
                for stream, gradient in zip(leaves, at_streams, strict=True)
                if gradient is not None
            )
            size = _norm(weights)
            moved = abs(own[name][0] - loss)
            turned = _norm(_minus(own[name][1], weights))
            allowed = _LOSS_SLACK * moves + _NUMERICS * abs(loss)
            allowed_turn = _GRADIENT_SLACK * _norm(_minus(noise[name][1], weights))
            found[codec, name] = Moved(
                moved / abs(loss),
                turned / size,
                moved / allowed,
                turned / (allowed_turn + _NUMERICS * size),
            )
    return found


def _levels(
    objective: Objective,
    batch: Batch,
    streams: Streams,
    seed: int,
    also: Sequence[torch.Tensor] = (),
) -> dict[str, tuple[float, Gradients]]:
    """Each level's mean, and its gradient of all weights and of what else is named."""
    seed_step(_SEED, seed, 0)
    totals = objective(batch, streams, Moment(0))
    wanted = [*(p for p in objective.parameters() if p.requires_grad), *also]
    found: dict[str, tuple[float, Gradients]] = {}
    for name, total in totals.items():
        loss = total.mean()
        gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        found[name] = (float(loss.detach()), list(gradients))
    return found


def noisy(streams: Streams, bounds: Mapping[str, float], seed: int) -> dict[str, torch.Tensor]:
    """With errors as large as the tolerance, in random directions; what is 0 stays 0."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in streams.items():
        noise = torch.randn(value.shape, generator=generator) * (value != 0)
        found[name] = value + noise * (bounds[name] * value.norm() / noise.norm())
    return found


def _minus(own: Gradients, theirs: Gradients) -> Gradients:
    return [
        a if b is None else -b if a is None else a - b for a, b in zip(own, theirs, strict=True)
    ]


def _norm(gradients: Gradients) -> float:
    there = [gradient for gradient in gradients if gradient is not None]
    return float(torch.nn.utils.get_total_norm(there))


# --- the students --------------------------------------------------------------------------------


def _curve(bench: Bench, sides: _Sides) -> tuple[dict[tuple[Codec, str], Moved], list[float]]:
    """The greatest difference of each level and codec over a training, and its losses."""
    objective = _objective(bench, distilled(), sides.live, sides.split)
    greatest: dict[tuple[Codec, str], Moved] = {}
    losses = []
    training = _training(bench, objective, sides, sides.live)
    for number, rows in enumerate(_batches(len(sides.split))):
        for key, moved in sides.compare(objective, rows, number).items():
            greatest[key] = greatest.get(key, Moved()).widen(moved)
        losses.append(next(training))
        bench.watch.advance()
    return greatest, losses


def _own_way(bench: Bench, sides: _Sides, codec: Codec, losses: Sequence[float]) -> float:
    """The greatest relative difference of a training from this codec to one that lost `losses`."""
    # Standardised by the live teacher: what is measured is the streams.
    objective = _objective(bench, distilled(), sides.live, sides.split)
    greatest = 0.0
    for expected, loss in zip(
        losses, _training(bench, objective, sides, sides.cached[codec]), strict=True
    ):
        greatest = max(greatest, abs(loss - expected) / expected)
        bench.watch.advance()
    return greatest


def _training(
    bench: Bench, objective: Objective, sides: _Sides, targets: Targets
) -> Iterator[float]:
    """Update after update on all of the sides' texts; the loss of each, all levels together."""
    optimizer = new_optimizer(objective, bench.material.recipe.train_student.optimizer, _RATE)
    for number, rows in enumerate(_batches(len(sides.split))):
        texts = [sides.split.input_ids[row] for row in rows]
        seed_step(_SEED, number, 0)
        totals = objective(sides.batch(rows), targets.fetch(texts), Moment(0))
        loss = torch.stack([total.mean() for total in totals.values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield float(loss.detach())


def _alone(bench: Bench, sides: _Sides, level: Level, steps: int) -> dict[Codec, Moved]:
    """A level by itself, at the first weights."""
    objective = _objective(bench, (level,), sides.live, sides.split)
    greatest = dict.fromkeys(CODECS, Moved())
    for number, rows in enumerate(islice(_batches(len(sides.split)), steps)):
        for (codec, _), moved in sides.compare(objective, rows, number).items():
            greatest[codec] = greatest[codec].widen(moved)
        bench.watch.advance()
    return greatest


def _every_level() -> dict[str, Level]:
    """All levels that read a teacher; a test of the cache keeps its list of them whole."""
    from tests.kd.cache.reading.test_levels import LEVELS, level_of

    return {name: level_of(name) for name in LEVELS if name != "labels"}


def _objective(
    bench: Bench, levels: tuple[Level, ...], targets: Targets, split: Split
) -> Objective:
    """A new student under these levels, in training mode."""
    teacher, student, phases = bench.material.teacher, student_like_teacher(3), one_phase(levels)
    depths = (student.layers, depth(teacher))
    banked, count = banked_layers(phases, *depths)
    shape = TeacherShape(
        depth(teacher),
        width(teacher),
        deviations(targets, split.input_ids, standardised_layers(phases, *depths)),
        banks(targets, split.input_ids, banked, count=count, seed=_SEED),
    )
    return Objective(build_student(student, teacher, seed=_SEED), phases, shape, seed=_SEED).train()


def _streams(bench: Bench, levels: Iterable[Level]) -> tuple[str, ...]:
    phases = [phase for level in levels for phase in one_phase((level,))]
    return streams_read(phases, 3, depth(bench.material.teacher))


def _sides(bench: Bench, streams: tuple[str, ...], texts: int) -> _Sides:
    """A cache of each codec."""
    material, data = bench.material, bench.material.short
    split = data.sample(texts)
    cached = {
        codec: cache_of(
            job_of(material.teacher, data, split, settings_of(material, streams, codec)),
            bench.store,
        )
        for codec in CODECS
    }
    live = LiveTargets(material.teacher, streams, pad_id=data.pad_id)
    return _Sides(split, data.pad_id, live, cached)


def _batches(texts: int) -> Iterator[Rows]:
    """All texts, in random order."""
    order = np.random.default_rng(_SEED).permutation(texts).astype(np.int64)
    for start in range(0, texts - BATCH + 1, BATCH):
        yield order[start : start + BATCH]


# --- figures -------------------------------------------------------------------------------------


def _figures(codec: Codec, name: str, moved: Moved) -> list[Figure]:
    where = f"{name}, {codec}"
    return [
        Figure(f"loss apart ÷ allowed, {where}", (moved.loss_share,), at_most=1.0),
        Figure(f"gradient apart ÷ allowed, {where}", (moved.gradient_share,), at_most=1.0),
        Figure(f"loss apart ÷ loss, {where}", (moved.loss,)),
        Figure(f"gradient apart ÷ gradient, {where}", (moved.gradient,)),
    ]


def _figure_of_level(name: str, found: Mapping[Codec, Moved]) -> Figure:
    shares = [max(moved.loss_share, moved.gradient_share) for moved in found.values()]
    return Figure(f"every level: apart ÷ allowed, {name}", (max(shares),), at_most=1.0)
