"""Small real models and small real splits for the library's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tasks.kd.data.examples.prepared import Split

# The variable that conftest.py sets is read when torch is imported, which is too early here.
torch.set_num_threads(1)
VOCABULARY = 50
LABELS = ["alpha", "beta", "gamma"]


def make_teacher(layers: int = 4, width: int = 32, seed: int = 0) -> Any:
    """A BERT classifier of random weights, in eval mode."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    return BertForSequenceClassification(config).eval()


def make_split(examples: int = 40, seed: int = 0, longest: int = 20) -> Split:
    """Random texts whose label is written in their second token, so that it can be learned."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(LABELS), examples)
    lengths = random.integers(4, longest + 1, examples)
    ids = [
        np.concatenate([[2, 5 + label], random.integers(10, VOCABULARY, n - 2)]).astype(np.int32)
        for n, label in zip(lengths, labels, strict=True)
    ]
    names = [f"{seed}-{i}" for i in range(examples)]
    return Split(names, [f"text {name}" for name in names], labels.astype(np.int64), ids)


@pytest.fixture(scope="session")
def teacher() -> Any:
    """Four layers, 32 wide."""
    return make_teacher()


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, teacher: Any) -> Path:
    """The same, saved."""
    folder = tmp_path_factory.mktemp("teacher")
    teacher.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def split() -> Split:
    """Forty examples."""
    return make_split()
