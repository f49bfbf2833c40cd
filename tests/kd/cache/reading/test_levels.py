"""Cached = live: every level has the same loss and gradients from the cache as from the teacher.

As far as the codec explains. By the Cauchy-Schwarz inequality a loss L may move by
‖∂L/∂t‖ · ‖δ‖ to first order, where δ is what the codec does to a stream t; gradients may move by a
few times what noise of δ's own size moves them by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from tasks.kd.cache.reading.audit import tolerance
from tasks.kd.cache.writing.calibration import deviations
from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.data.examples.trainable import Moment
from tasks.kd.levels.objective import Objective, TeacherShape, banked_layers
from tasks.kd.recipe.levels import Level
from tasks.kd.recipe.losses import LOSSES, AnyLevel
from tasks.kd.recipe.phases import Phase, streams_read
from tasks.kd.recipe.student import InitialRandom, Student
from tasks.kd.students.building import build_student
from tasks.kd.targets.banks import banks
from tests.kd.conftest import make_teacher
from tests.makers.caches import (
    CODECS,
    live_of,
    make_job,
    make_params,
    open_written,
    spread,
    spread_teacher,
    texts_of,
    write,
)
from tests.makers.phases import one_phase

SERVED = [
    *(f"{codec} projections" for codec in CODECS),
    "float32 layers",
    "int8 layers",
]
NUMERICS = 5e-6  # what batches of other lengths do to a state in float32
ROWS = (3, 17, 5, 22, 9)
STUDENT_LAYERS, TEACHER_LAYERS = 2, 4
Streams = Mapping[str, torch.Tensor]


def hidden(loss: str, **settings: Any) -> dict[str, Any]:
    return {"level": "hidden", "loss": loss, "layer_map": "uniform"} | settings


SOFT = {"temperature": 2.0}
DECOUPLED = {"target_weight": 1.0, "other_weight": 8.0}
INNER = {"layer_map": "uniform", "heads": "each"}
LEVELS: dict[str, dict[str, Any]] = {
    "labels": {"level": "prediction", "loss": "labels"},
    "kl": {"level": "prediction", "loss": "kl", **SOFT},
    "reverse kl": {"level": "prediction", "loss": "reverse_kl", **SOFT},
    "jsd": {"level": "prediction", "loss": "jsd", "beta": 0.5, **SOFT},
    "dkd": {"level": "prediction", "loss": "dkd", **SOFT, **DECOUPLED},
    "dist": {"level": "prediction", "loss": "dist", **SOFT},
    "logits": {"level": "prediction", "loss": "logits_mse"},
    "hidden plain": hidden("mse", standardise=False, projection="none"),
    "hidden standardised": hidden("mse", standardise=True, projection="none"),
    "hidden projected": hidden("mse", standardise=False, projection="linear"),
    "hidden projected, standardised": hidden("mse", standardise=True, projection="linear"),
    "cosine": hidden("cosine", projection="linear"),
    "layer norm": hidden("layer_norm_mse", projection="linear"),
    "first token": hidden("cls_mse", normalised=False, projection="linear"),
    "first token, normalised": hidden("cls_mse", normalised=True, projection="none"),
    "pooled": hidden("pooled_mse", normalised=True, projection="shared"),
    "contrastive": hidden("contrastive", temperature=0.1, negatives=5, projection="orthogonal"),
    "gram": hidden("gram", projection="linear"),
    "transport": hidden("mse", standardise=True, projection="linear", layer_map="transport"),
    "nearest": hidden("cosine", projection="linear", layer_map="nearest"),
    "mixture": hidden("cls_mse", normalised=True, projection="linear", layer_map="mixture"),
    "similarity of tokens": hidden("nst"),
    "cka": hidden("cka"),
    "procrustes": hidden("procrustes"),
    "distances of tokens": hidden("rkd_distance"),
    "angles of tokens": hidden("rkd_angle"),
    "attention scores": {"level": "attention", "loss": "mse", **INNER},
    "attention": {"level": "attention", "loss": "kl", **INNER},
    "attention, heads averaged": {
        "level": "attention",
        "loss": "kl",
        "layer_map": "last",
        "heads": "average",
    },
    "relations": {
        "level": "relation",
        "loss": "kl",
        "layer_map": "uniform",
        "relations": ("queries", "keys", "values"),
        "relation_heads": 8,
    },
}


def level_of(name: str) -> Level:
    return TypeAdapter[Level](AnyLevel).validate_python({**LEVELS[name], "weight": 1.0})


def phase_of(level: Level) -> Phase:
    return one_phase((level,))


@pytest.fixture(scope="module")
def examples(split: Split) -> Split:
    """Texts that differ from their first token on."""
    return replace(split, input_ids=texts_of(split.lengths.tolist()))


def test_every_level_is_here() -> None:
    """A level that is new must be shown to be the same from the cache."""
    tags = set(LOSSES)
    assert {f"{level['level']}.{level['loss']}" for level in LEVELS.values()} == tags


@pytest.fixture(scope="module", params=SERVED)
def served(
    request: pytest.FixtureRequest, examples: Split, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Targets, Targets, dict[str, float]]:
    """The same streams from a cache and from the teacher, and how far they may be apart."""
    codec, recompute = request.param.split(" ")
    phases = [phase_of(level_of(name)) for name in LEVELS]
    params = make_params(
        codec=codec,
        recompute=recompute,
        streams=streams_read(phases, STUDENT_LAYERS, TEACHER_LAYERS),
    )
    job, store = make_job(examples, params, spread_teacher()), tmp_path_factory.mktemp("levels")
    manifest = write(job, store)
    bounds = {name: NUMERICS + 4 * error for name, error in manifest.codec_errors.items()}
    return open_written(job, manifest, store), live_of(job), bounds


def make_objective(level: Level, targets: Targets, examples: Split) -> Objective:
    """A student of its own weights under the teacher that the targets are of."""
    texts, layers = examples.input_ids, tuple(range(TEACHER_LAYERS + 1))
    banked, count = banked_layers((phase_of(level),), STUDENT_LAYERS, TEACHER_LAYERS)
    kept = banks(targets, texts, banked, count=count, seed=3)
    shape = TeacherShape(TEACHER_LAYERS, 32, deviations(targets, texts, layers), kept)
    student = build_student(
        Student(
            family=None,
            layers=STUDENT_LAYERS,
            hidden_size=32,
            attention_heads=4,
            intermediate_size=32,
            initial=InitialRandom(kind="random", embeddings="new"),
        ),
        make_teacher(),
        seed=11,
    )
    spread(student)
    return Objective(student, (phase_of(level),), shape).eval()


def fetch(targets: Targets, split: Split) -> tuple[Batch, dict[str, torch.Tensor]]:
    texts = [split.input_ids[row] for row in ROWS]
    ids_BT, mask_BT = pad(texts, 0)
    return Batch(ids_BT, mask_BT, torch.from_numpy(split.labels[list(ROWS)])), targets.fetch(texts)


def run(objective: Objective, batch: Batch, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
    """The level's mean and the gradient of all weights."""
    objective.zero_grad()
    (total,) = objective(batch, streams, Moment(0)).values()
    loss = total.mean()
    loss.backward()
    gradients = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients)


def sensitivity(
    objective: Objective, batch: Batch, streams: Streams, bounds: Mapping[str, float]
) -> float:
    """By how much the level's mean may move: ‖∂L/∂t‖ · ‖δ‖, summed over streams."""
    leaves = {name: value.clone().requires_grad_() for name, value in streams.items()}
    (total,) = objective(batch, leaves, Moment(0)).values()
    gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(
        total.mean(), list(leaves.values()), allow_unused=True
    )
    moved = 0.0
    for (name, value), gradient in zip(leaves.items(), gradients, strict=True):
        if gradient is not None:
            moved += float(gradient.norm() * value.detach().norm()) * bounds[name]
    return moved


def noisy(streams: Streams, bounds: Mapping[str, float], seed: int) -> dict[str, torch.Tensor]:
    """With errors as large as the codec may make, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in streams.items():
        noise = torch.randn(value.shape, generator=generator) * (value != 0)
        found[name] = value + noise * (bounds[name] * value.norm() / noise.norm())
    return found


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_loss_and_gradients_from_the_cache_are_those_of_the_teacher(
    name: str, served: tuple[Targets, Targets, dict[str, float]], examples: Split
) -> None:
    cached, live, bounds = served
    level = level_of(name)
    batch, fresh = fetch(live, examples)
    _, stored = fetch(cached, examples)
    own, theirs = (make_objective(level, targets, examples) for targets in (cached, live))
    loss, gradient = run(own, batch, stored)
    expected, expected_gradient = run(theirs, batch, fresh)
    assert float(expected) > 1e-3  # else the tolerance would be about nothing

    allowed = 1.5 * sensitivity(theirs, batch, fresh, bounds) + 1e-5 * float(expected)
    assert allowed < 0.25 * float(expected)
    assert abs(float(loss - expected)) <= allowed

    moved = [run(theirs, batch, noisy(fresh, bounds, seed))[1] for seed in range(3)]
    largest = max(float((other - expected_gradient).norm()) for other in moved)
    allowed = 2 * largest + 1e-5 * float(expected_gradient.norm())
    assert float((gradient - expected_gradient).norm()) <= allowed

    # And it would show if two of the examples had one another's targets.
    swapped = {s: value[[1, 0, *range(2, len(ROWS))]] for s, value in stored.items()}
    wrong = run(own, batch, swapped)[1]
    if name != "labels":
        assert float((wrong - expected_gradient).norm()) > 2 * allowed


@pytest.mark.parametrize("codec", CODECS)
def test_deviations_are_the_same_from_the_cache(codec: str, split: Split, tmp_path: Path) -> None:
    streams = ("hidden.0", "hidden.2", "hidden.4")
    job = make_job(split, make_params(codec=codec, streams=streams))
    manifest = write(job, tmp_path)
    own = deviations(open_written(job, manifest, tmp_path), split.input_ids, (0, 2, 4))
    theirs = deviations(live_of(job), split.input_ids, (0, 2, 4))
    bounds = tolerance(manifest.codec_errors)
    for layer in (0, 2, 4):
        bound = 2 * bounds[f"hidden.{layer}"]
        torch.testing.assert_close(own[layer], theirs[layer], rtol=bound, atol=0)
