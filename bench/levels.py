"""What each level costs: time and memory that it adds to a step on labels alone."""

from __future__ import annotations

import time
from typing import Any

import torch
from pydantic import TypeAdapter
from torch.autograd.graph import saved_tensors_hooks

from bench.caches import Bench
from bench.figures import Figure, Findings, Way, paragraphs, take_turns, turns
from bench.students import LABELS, batches_of, one_phase, student_of
from tasks.kd.cache.writing.calibration import deviations
from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.data.examples.trainable import Moment
from tasks.kd.encoders.shape import depth, width
from tasks.kd.levels.objective import Objective, TeacherShape
from tasks.kd.recipe.levels import Level
from tasks.kd.recipe.losses import AnyLevel
from tasks.kd.recipe.phases import streams_read
from tasks.kd.students.building import build_student
from tasks.kd.targets.banks import banks
from tasks.kd.targets.targets import LiveTargets
from tasks.kd.training.optimizers import new_optimizer

ALONE = "labels only"
SOFT = {"level": "prediction", "temperature": 2.0}
INNER = {"level": "hidden", "layer_map": "uniform"}
PROJECTED = {**INNER, "projection": "linear"}
DECOUPLED = {"target_weight": 1.0, "other_weight": 8.0}
LEVELS: dict[str, dict[str, Any]] = {
    "prediction.kl": {**SOFT, "loss": "kl"},
    "prediction.reverse_kl": {**SOFT, "loss": "reverse_kl"},
    "prediction.jsd": {**SOFT, "loss": "jsd", "beta": 0.5},
    "prediction.dkd": {**SOFT, "loss": "dkd", **DECOUPLED},
    "prediction.dist": {**SOFT, "loss": "dist"},
    "prediction.logits_mse": {"level": "prediction", "loss": "logits_mse"},
    "hidden.mse": {**PROJECTED, "loss": "mse", "standardise": True},
    "hidden.mse, orthogonal": {
        **PROJECTED,
        "loss": "mse",
        "standardise": True,
        "projection": "orthogonal",
    },
    **{
        f"hidden.mse, {name}": {
            **PROJECTED,
            "loss": "mse",
            "standardise": name != "mixture",
            "layer_map": name,
        }
        for name in ("random", "mixture", "transport", "nearest")
    },
    "hidden.cosine": {**PROJECTED, "loss": "cosine"},
    "hidden.layer_norm_mse": {**PROJECTED, "loss": "layer_norm_mse"},
    "hidden.cls_mse": {**PROJECTED, "loss": "cls_mse", "normalised": True},
    "hidden.pooled_mse": {**PROJECTED, "loss": "pooled_mse", "normalised": True},
    "hidden.contrastive": {
        **PROJECTED,
        "loss": "contrastive",
        "temperature": 0.1,
        "negatives": 512,
    },
    "hidden.gram": {**PROJECTED, "loss": "gram"},
    **{
        f"hidden.{loss}": {**INNER, "loss": loss}
        for loss in ("nst", "cka", "procrustes", "rkd_distance", "rkd_angle")
    },
    "attention.mse": {
        "level": "attention",
        "loss": "mse",
        "layer_map": "uniform",
        "heads": "each",
    },
    "attention.kl": {
        "level": "attention",
        "loss": "kl",
        "layer_map": "uniform",
        "heads": "each",
    },
    "relation.kl": {
        "level": "relation",
        "loss": "kl",
        "layer_map": "uniform",
        "relation_heads": 12,
        "relations": ("queries", "keys", "values"),
    },
}
NOTES = """
A step is forward, backward and optimizer of a 3×192 student on 32 texts of at most 64 tokens, with
labels and one more level on all matched layers (four hidden ones, three of attention). What the
teacher gives is at hand: to read or compute it is measured elsewhere. Levels take turns with labels
alone; the share is the median of (step ÷ step on labels alone) - 1.

Memory is what a step holds for its backward pass, in bytes of tensors saved by autograd; what
several levels would share is counted for each.
"""


def measure(bench: Bench) -> Findings:
    """Every level, in rounds."""
    rounds = bench.pick(5, 1)
    runs = {name: _Run(bench, fields) for name, fields in {ALONE: {}, **LEVELS}.items()}
    ways: dict[str, Way] = {name: run.seconds for name, run in runs.items()}
    bench.watch.expect(turns(ways, rounds))
    seconds = take_turns(ways, rounds, advance=bench.watch.advance)
    held = {name: run.held() for name, run in runs.items()}
    figures = []
    for name in LEVELS:
        shares = (a / b - 1 for a, b in zip(seconds[name], seconds[ALONE], strict=True))
        figures.append(Figure(f"time, {name}", tuple(shares)))
        figures.append(Figure(f"memory, {name}", (held[name] / held[ALONE] - 1,)))
    figures.append(Figure(f"a step, {ALONE}", tuple(seconds[ALONE]), "s"))
    figures.append(Figure(f"held for backward, {ALONE}", (held[ALONE] / 2**20,), "MiB"))
    return Findings(tuple(figures), {"rounds": rounds, "levels": LEVELS}, paragraphs(NOTES))


class _Run:
    """Steps of a student with one more level, on batches that are made beforehand."""

    def __init__(self, bench: Bench, fields: dict[str, Any]) -> None:
        material, data = bench.material, bench.material.short
        split, teacher = data.sample(bench.pick(200, 64)), material.teacher
        levels: tuple[Level, ...] = (LABELS,)
        if fields:
            more = TypeAdapter[Level](AnyLevel).validate_python({**fields, "weight": 1.0})
            levels = (LABELS, more)
        phases, student = one_phase(levels), student_of(3, 192, 12)
        streams = streams_read(phases, student.layers, depth(teacher))
        targets = LiveTargets(teacher, streams, pad_id=data.pad_id)
        layers = tuple({int(x.partition(".")[2]) for x in streams if x.startswith("hidden")})
        shape = TeacherShape(
            depth(teacher),
            width(teacher),
            deviations(targets, split.input_ids, layers),
            banks(targets, split.input_ids, layers, count=512, seed=0),
        )
        self._objective = Objective(build_student(student, teacher, seed=0), phases, shape).train()
        settings = material.recipe.train_student.optimizer
        self._optimizer = new_optimizer(self._objective, settings, 1e-5)
        self._batches = []
        for rows in batches_of(split, settings):
            texts = [split.input_ids[row] for row in rows]
            batch = Batch(*pad(texts, data.pad_id), torch.from_numpy(split.labels[rows]))
            self._batches.append((batch, targets.fetch(texts)))

    def seconds(self, _number: int) -> float:
        """Seconds a step, over all batches."""
        began = time.perf_counter()
        for batch, streams in self._batches:
            self._loss(batch, streams).backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return (time.perf_counter() - began) / len(self._batches)

    def held(self) -> int:
        """Bytes that the backward pass of the first batch reads."""
        seen: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._loss(*self._batches[0])
        del loss
        weights = {p.untyped_storage().data_ptr() for p in self._objective.parameters()}
        return sum(size for place, size in seen.items() if place not in weights)

    def _loss(self, batch: Batch, streams: dict[str, torch.Tensor]) -> torch.Tensor:
        totals = self._objective(batch, streams, Moment(0))
        return torch.stack([total.mean() for total in totals.values()]).sum()
