"""A small student, its cache and its training, as the tests of the loop share them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.kd.levels.objective import Objective, TeacherShape
from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.levels import (
    AttentionKLLevel,
    AttentionMSELevel,
    HiddenLevel,
    KLLevel,
    LabelsLevel,
    RelationLevel,
)
from tasks.kd.recipe.phases import Phase
from tasks.kd.recipe.student import InitialRandom, Student
from tasks.kd.recipe.training import Optimizer
from tasks.kd.students.building import build_student
from tasks.kd.targets.targets import LiveTargets
from tasks.kd.training import gradients
from tasks.kd.training.checkpoint import Checkpoint, Checkpoints
from tasks.kd.training.course import Parts
from tasks.kd.training.loop import Habits, train
from tasks.kd.training.sinks import JsonLines
from tests.kd.conftest import make_split, make_teacher
from tests.makers.phases import one_phase

STREAMS = (
    "logits",
    *("hidden.0", "hidden.2", "hidden.4"),
    *("attention.2", "attention.4"),
    *("relation.2", "relation.4"),
)

LABELS = LabelsLevel(level="prediction", loss="labels", weight=0.5)
KL = KLLevel(level="prediction", loss="kl", temperature=2.0, weight=0.5)
HIDDEN = HiddenLevel(
    level="hidden",
    loss="mse",
    layer_map="uniform",
    standardise=True,
    projection="linear",
    weight=0.3,
)
SCORES = AttentionMSELevel(
    level="attention", loss="mse", layer_map="uniform", heads="each", weight=0.2
)
ATTENTION = AttentionKLLevel(
    level="attention", loss="kl", layer_map="last", heads="average", weight=0.2
)
RELATION = RelationLevel(
    level="relation",
    loss="kl",
    layer_map="uniform",
    relations=("queries", "keys", "values"),
    relation_heads=8,
    weight=0.2,
)
PHASES = (
    one_phase((HIDDEN, SCORES, RELATION), name="inner", learning_rate=2e-3),
    one_phase((LABELS, KL, HIDDEN, ATTENTION), name="prediction", epochs=2, learning_rate=2e-3),
)


def make_settings(**changes: Any) -> Optimizer:
    return Optimizer(
        **{
            "batch_examples": 8,
            "micro_batch_tokens": 1000,
            "weight_decay": 0.01,
            "warmup_fraction": 0.1,
            "schedule": "linear",
            "max_grad_norm": 1.0,
            "ema_decay": None,
            "stop_after_epochs": None,
            "max_non_finite": 1,
            "seed": 3,
            **changes,
        }
    )


def make_parts(phases: tuple[Phase, ...] = PHASES, *, width: int = 16, examples: int = 44) -> Parts:
    """A 2-layer student of random weights under a live 4-layer teacher; the last batch is short."""
    teacher = make_teacher()
    torch.manual_seed(0)
    student = build_student(
        Student(
            family=None,
            layers=2,
            hidden_size=width,
            attention_heads=4,
            intermediate_size=32,
            initial=InitialRandom(kind="random", embeddings="new"),
        ),
        teacher,
        seed=11,
    )
    deviations = {layer: torch.full((32,), 0.5 + layer / 10) for layer in range(5)}
    banks = {layer: torch.randn(12, 32) for layer in range(5)}
    return Parts(
        Objective(student, phases, TeacherShape(4, 32, deviations, banks), seed=3),
        LiveTargets(teacher, STREAMS, pad_id=0),
        make_split(examples, seed=1),
        make_split(20, seed=2),
        0,
    )


def objective_of(parts: Parts) -> Objective:
    """What is trained, as the levels' objective that it is."""
    assert isinstance(parts.objective, Objective)
    return parts.objective


def make_compute(**changes: Any) -> Compute:
    return Compute(
        **{
            "processes": 1,
            "threads": 1,
            "machines": 1,
            "machine_rank": None,
            "rendezvous": None,
            "peer_timeout_s": 60.0,
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "compile": False,
            "grad_norm_every": None,
            "profile_step": None,
            "checkpoint_every_s": 1e9,
            "live_curves_every_s": None,
            "copies_gib": 1.0,
            **changes,
        }
    )


def make_habits(work: Path, **compute: Any) -> Habits:
    work.mkdir(parents=True, exist_ok=True)
    return Habits(
        work,
        work / "profiles",
        make_compute(**compute),
        lambda step: [JsonLines(work / "metrics.jsonl", resume_at=step)],
    )


class Interrupted(Exception):
    """A training is stopped from outside."""


def interrupt(stop_at: int, settings: Optimizer, parts: Parts, work: Path, **compute: Any) -> None:
    """Train, with a checkpoint after each step, until that step begins."""
    seed_step = gradients.seed_step

    def seed(seed: int, step: int, rank: int) -> None:
        if step == stop_at:
            raise Interrupted
        seed_step(seed, step, rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "seed_step", seed)
        with pytest.raises(Interrupted):
            train(settings, parts, make_habits(work, checkpoint_every_s=1e-9, **compute))


def records_of(work: Path, *splits: str) -> list[dict[str, Any]]:
    """Records of a training, of the given splits or of all."""
    lines = (work / "metrics.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [record for record in records if not splits or record["split"] in splits]


def without_dropout(parts: Parts) -> Parts:
    """Dropout depends on rank and micro-batch; comparisons of gradients leave it out."""
    for module in parts.objective.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return parts


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def last_checkpoint(work: Path) -> Checkpoint:
    """The newest checkpoint: what is trained, whatever was exported."""
    found = Checkpoints(work).load()
    assert found is not None
    return found


def require_equal(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *told: object
) -> None:
    """Assert that two sets of tensors are the same to the bit."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), (name, *told)
