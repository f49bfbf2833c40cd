"""A small student, its cache and its training, as the tests of the loop share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.kd.objective import Objective, TeacherShape
from tasks.kd.params import (
    HiddenLevel,
    InitialRandom,
    KLLevel,
    LabelsLevel,
    Optimizer,
    Phase,
    Student,
)
from tasks.kd.sinks import JsonLines
from tasks.kd.students import build_student
from tasks.kd.targets import LiveTargets
from tasks.kd.training import Habits, Parts
from tests.kd.conftest import make_split, make_teacher

STREAMS = ("logits", "hidden.0", "hidden.2", "hidden.4")

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
PHASES = (
    Phase(name="hidden", epochs=1, learning_rate=2e-3, levels=(HIDDEN,)),
    Phase(name="prediction", epochs=2, learning_rate=2e-3, levels=(LABELS, KL, HIDDEN)),
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
            layers=2,
            hidden_size=width,
            attention_heads=4,
            intermediate_size=32,
            initial=InitialRandom(kind="random"),
        ),
        teacher,
        seed=11,
    )
    deviations = {layer: torch.full((32,), 0.5 + layer / 10) for layer in (0, 2, 4)}
    return Parts(
        Objective(student, phases, TeacherShape(4, 32, deviations)),
        LiveTargets(teacher, STREAMS, pad_id=0),
        make_split(examples, seed=1),
        make_split(20, seed=2),
        0,
    )


def make_habits(work: Path, *, checkpoint_every_s: float = 1e9) -> Habits:
    work.mkdir(parents=True, exist_ok=True)
    return Habits(
        work,
        checkpoint_every_s,
        lambda step: [JsonLines(work / "metrics.jsonl", resume_at=step)],
    )


def without_dropout(parts: Parts) -> Parts:
    """Dropout depends on rank and micro-batch; comparisons of gradients leave it out."""
    for module in parts.objective.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return parts


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
