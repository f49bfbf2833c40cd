"""Students and their training, as several parts measure them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tasks.kd.cache.writing.calibration import deviations
from tasks.kd.data.examples.batching import Rows, epoch_batches
from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.data.examples.trainable import Moment, Trainable
from tasks.kd.encoders.shape import depth, width
from tasks.kd.levels.objective import Objective, TeacherShape, standardised_layers
from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.levels import HiddenLevel, KLLevel, LabelsLevel, Level
from tasks.kd.recipe.phases import Phase
from tasks.kd.recipe.student import InitialRandom, InitialTeacherLayers, Student
from tasks.kd.recipe.training import Optimizer
from tasks.kd.students.building import build_student
from tasks.kd.training.course import Parts
from tasks.kd.training.loop import Habits, train
from tasks.kd.training.optimizers import new_optimizer
from tasks.kd.training.sinks import Sink

LABELS = LabelsLevel(level="prediction", loss="labels", weight=1.0)
_NEVER_S = 1e9


def student_like_teacher(layers: int) -> Student:
    """So many of the teacher's own layers, 384 wide."""
    return Student(
        family=None,
        layers=layers,
        hidden_size=384,
        attention_heads=12,
        intermediate_size=1536,
        initial=InitialTeacherLayers(kind="teacher_layers", layers="uniform"),
    )


def student_of(layers: int, hidden_size: int, attention_heads: int) -> Student:
    """New weights; a feed-forward part four times as wide, but TinyBERT's own at 312."""
    return Student(
        family=None,
        layers=layers,
        hidden_size=hidden_size,
        attention_heads=attention_heads,
        intermediate_size=1200 if hidden_size == 312 else 4 * hidden_size,
        initial=InitialRandom(kind="random", embeddings="new"),
    )


def distilled(pairs: Any = "uniform", *, projected: bool = False) -> tuple[Level, ...]:
    """Labels, softened predictions and hidden layers."""
    return (
        LABELS,
        KLLevel(level="prediction", loss="kl", temperature=2.0, weight=1.0),
        HiddenLevel(
            level="hidden",
            loss="mse",
            layer_map=pairs,
            standardise=True,
            projection="linear" if projected else "none",
            weight=1.0,
        ),
    )


def one_phase(levels: tuple[Level, ...]) -> tuple[Phase, ...]:
    """One epoch of these levels, at a rate that hardly moves the weights."""
    return (
        Phase(
            name="bench",
            epochs=1,
            learning_rate=1e-5,
            optimizer="anew",
            trained_layers="all",
            balance_every=None,
            levels=levels,
        ),
    )


def objective_of(
    student: Student,
    teacher: torch.nn.Module,
    phases: tuple[Phase, ...],
    source: tuple[Targets, Split],
    *,
    seed: int = 0,
) -> Objective:
    """A new student under these phases, standardised by what `source` gives of its texts."""
    targets, split = source
    layers = standardised_layers(phases, student.layers, depth(teacher))
    scales = deviations(targets, split.input_ids, layers)
    shape = TeacherShape(depth(teacher), width(teacher), scales)
    return Objective(build_student(student, teacher, seed=seed), phases, shape).train()


def batches_of(split: Split, settings: Optimizer) -> list[Rows]:
    """Full batches as the training loop makes them."""
    size = settings.batch_examples
    batches = epoch_batches(split.lengths, batch_examples=size, seed=settings.seed, epoch=0)
    return [rows for rows in batches if len(rows) == size]


class Stepping:
    """Plain updates of one student: forward, backward, optimizer."""

    def __init__(
        self, objective: Trainable, split: Split, settings: Optimizer, pad_id: int
    ) -> None:
        self._objective, self._split, self._pad_id = objective, split, pad_id
        self._optimizer = new_optimizer(objective, settings, 1e-5)

    def step(self, rows: Rows, streams: dict[str, torch.Tensor]) -> None:
        """One update, with the teacher's streams of the same rows."""
        texts = [self._split.input_ids[row] for row in rows]
        ids_BT, mask_BT = pad(texts, self._pad_id)
        batch = Batch(ids_BT, mask_BT, torch.from_numpy(self._split.labels[rows]))
        totals = self._objective(batch, streams, Moment(0))
        torch.stack([total.mean() for total in totals.values()]).sum().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def run_loop(
    parts: Parts, sink: Sink, *, settings: Optimizer, compute: Compute, folder: Path
) -> None:
    """The project's own training loop, told to a sink; its checkpoints are thrown away."""
    alone = compute.model_copy(update={"checkpoint_every_s": _NEVER_S, "profile_step": None})
    with TemporaryDirectory(dir=folder, prefix="training-") as work:
        train(settings, parts, Habits(Path(work), Path(work), alone, lambda _step: [sink]))
