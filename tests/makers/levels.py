"""A level of every loss, phases of one level, and a batch for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.recipe.phases import Phase
from tasks.kd.training.course import Parts
from tests.makers.phases import one_phase

MSE: dict[str, object] = {
    "level": "hidden",
    "loss": "mse",
    "standardise": False,
    "projection": "linear",
}
VECTOR: dict[str, object] = {
    "level": "hidden",
    "loss": "cls_mse",
    "normalised": True,
    "projection": "shared",
}

EVERY_LEVEL: list[dict[str, object]] = [
    {"level": "prediction", "loss": "labels"},
    {"level": "prediction", "loss": "kl", "temperature": 2.0},
    {"level": "prediction", "loss": "reverse_kl", "temperature": 2.0},
    {"level": "prediction", "loss": "jsd", "temperature": 2.0, "beta": 0.3},
    {
        "level": "prediction",
        "loss": "dkd",
        "temperature": 4.0,
        "target_weight": 1.0,
        "other_weight": 8.0,
    },
    {"level": "prediction", "loss": "dist", "temperature": 1.0},
    {"level": "prediction", "loss": "logits_mse"},
    {"level": "hidden", "loss": "mse", "standardise": True, "projection": "linear"},
    {"level": "hidden", "loss": "cosine", "projection": "linear"},
    {"level": "hidden", "loss": "layer_norm_mse", "projection": "linear"},
    {"level": "hidden", "loss": "cls_mse", "normalised": True, "projection": "linear"},
    {"level": "hidden", "loss": "pooled_mse", "normalised": True, "projection": "shared"},
    {
        "level": "hidden",
        "loss": "contrastive",
        "temperature": 0.1,
        "negatives": 9,
        "projection": "linear",
    },
    {"level": "hidden", "loss": "gram", "projection": "orthogonal"},
    {"level": "hidden", "loss": "nst"},
    {"level": "hidden", "loss": "cka"},
    {"level": "hidden", "loss": "procrustes"},
    {"level": "hidden", "loss": "rkd_distance"},
    {"level": "hidden", "loss": "rkd_angle"},
    {"level": "attention", "loss": "mse", "heads": "each"},
    {"level": "attention", "loss": "kl", "heads": "average"},
    {"level": "relation", "loss": "kl", "relations": ("values",), "relation_heads": 4},
]


def phase_with(fields: Mapping[str, object]) -> Phase:
    whole: dict[str, object] = {"weight": 1.0, **fields}
    if fields["level"] != "prediction":
        whole.setdefault("layer_map", "uniform")
    return one_phase((whole,))


def batch_of(parts: Parts, rows: slice) -> tuple[Batch, dict[str, torch.Tensor]]:
    texts = parts.train.input_ids[rows]
    ids, mask = pad(texts, 0)
    return (
        Batch(ids, mask, torch.from_numpy(parts.train.labels[rows])),
        parts.targets.fetch(texts),
    )
