"""Frozen encoders on corpora that they have not seen: a linear probe on the mean of all tokens.

N texts, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from study.corpora import Corpus, sample
from study.settings import ProbeSettings
from tasks.kd.data.examples.batching import split_by_tokens
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Split
from tasks.kd.encoders.capture import capture_hidden
from tasks.kd.encoders.shape import depth
from tasks.kd.levels.losses.numerics import pool

_BATCH_TOKENS = 4096
_FLOOR = 1e-6  # a channel that never varies says nothing


@dataclass(frozen=True)
class Probe:
    """A corpus' outcome: which test texts were right, and the L2 that was best on dev."""

    correct_N: npt.NDArray[np.bool_]
    dev_accuracy: float
    l2: float

    def as_json(self) -> dict[str, Any]:
        """For a run's file; right and wrong as a text of 1 and 0."""
        return {
            "accuracy": float(self.correct_N.mean()),
            "dev_accuracy": self.dev_accuracy,
            "l2": self.l2,
            "correct": bits(self.correct_N),
        }


def bits(values: npt.NDArray[np.bool_]) -> str:
    """Booleans as a text of 1 and 0."""
    return "".join("1" if value else "0" for value in values)


def probe(model: torch.nn.Module, corpus: Corpus, settings: ProbeSettings) -> Probe:
    """Embed fixed samples of a corpus and fit a probe; the strength of its L2 is chosen on dev."""
    sizes = {"train": settings.train, "dev": settings.dev, "test": settings.test}
    splits = {name: sample(getattr(corpus, name), size) for name, size in sizes.items()}
    vectors = {name: embed(model, split, corpus.pad_id) for name, split in splits.items()}
    labels = {name: torch.from_numpy(split.labels) for name, split in splits.items()}
    mean_D = vectors["train"].mean(dim=0)
    deviation_D = vectors["train"].std(dim=0).clamp_min(_FLOOR)
    ready = {name: (value - mean_D) / deviation_D for name, value in vectors.items()}
    best = None
    for l2 in settings.l2:
        fitted = fit(ready["train"], labels["train"], len(corpus.labels), l2, settings)
        accuracy = float((fitted(ready["dev"]).argmax(1) == labels["dev"]).double().mean())
        if best is None or accuracy > best[0]:
            best = (accuracy, l2, fitted)
    assert best is not None
    right = best[2](ready["test"]).argmax(1) == labels["test"]
    return Probe(right.numpy(), best[0], best[1])


def fit(
    vectors_ND: torch.Tensor,
    labels_N: torch.Tensor,
    classes: int,
    l2: float,
    settings: ProbeSettings,
) -> torch.nn.Linear:
    """Logistic regression by full-batch LBFGS, from zero; `l2` times half the squared weights."""
    layer = torch.nn.Linear(vectors_ND.shape[1], classes, dtype=vectors_ND.dtype)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=settings.max_iterations, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(vectors_ND), labels_N)
        loss = loss + 0.5 * l2 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer.requires_grad_(requires_grad=False)


@torch.no_grad()
def embed(model: torch.nn.Module, split: Split, pad_id: int) -> torch.Tensor:
    """Means [N, D] of the last hidden states over the real tokens, float64."""
    model.eval()
    last = depth(model)
    order = np.argsort(split.lengths, kind="stable")
    parts = []
    for rows in split_by_tokens(order, split.lengths, max_tokens=_BATCH_TOKENS):
        ids_BT, mask_BT = pad([split.input_ids[row] for row in rows], pad_id)
        with capture_hidden(model, (last,)) as states:
            model(input_ids=ids_BT, attention_mask=mask_BT.long())
        parts.append(pool(states[last].float(), mask_BT).double())
    found = torch.cat(parts)
    return torch.empty_like(found).index_copy_(0, torch.from_numpy(order), found)
