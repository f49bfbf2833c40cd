"""A study of a few seconds: arms, a wheel of made texts, settings; for the tests."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from study.settings import ProbeSettings, Study, read_study
from tests.makers.tiny import WORDS

PROBES = ProbeSettings(train=60, dev=20, test=40, l2=(1e-4, 1e-1), max_iterations=40)
LABELS = {"level": "prediction", "loss": "labels", "weight": 0.5}
KL = {"level": "prediction", "loss": "kl", "temperature": 2.0, "weight": 0.5}
HIDDEN = {
    "level": "hidden",
    "loss": "mse",
    "layer_map": "uniform",
    "standardise": True,
    "projection": "linear",
    "weight": 1.0,
}


def phase(name: str, levels: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "epochs": 1,
        "learning_rate": 1e-3,
        "optimizer": "anew",
        "trained_layers": "all",
        "balance_every": None,
        "levels": levels,
        **changes,
    }


def write_arm(folder: Path, name: str, phases: list[dict[str, Any]], **more: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps({"phases": phases, **more}))


def write_wheel(path: Path) -> None:
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as wheel:
        for name, count in (("first", 160), ("second", 120), ("talk", 90)):
            lines = ["text\tlabel"]
            for row in range(count):
                words = random.choice(WORDS[:30] if row % 2 else WORDS[30:], 12)
                lines.append(f"{' '.join(words)}\t{'odd' if row % 2 else 'even'}")
            wheel.writestr(f"{name}.tab", "\n".join(lines))


def small_study(sha256: str) -> Study:
    values = read_study().model_dump(mode="json")
    table = {"wheel": "made", "delimiter": "tab", "quoted": False, "skip_lines": 0, "text": "text"}
    divided = {"label": "label", "keep": {}, "balance": False, "group": None}
    values |= {
        "max_length_tokens": 24,
        "wheels": {"made": {"version": "1.0", "sha256": sha256}},
        "base": {"wheel": "made", "folder": "none"},
        "corpora": {
            name: {**table, **divided, "file": f"{name}.tab", "test": 40, "dev": 20}
            | {"passage_words": None}
            for name in ("first", "second")
        },
        "transfer": {"talk": {**table, "file": "talk.tab", "min_words": 3}},
        "data": {
            "first": {
                "examples": 64,
                "teacher": {"epochs": 2, "learning_rates": [1e-3, 2e-3]},
                "unseen": ["second"],
            }
        },
        "students": {
            "narrow": {
                **values["students"]["narrow"],
                "learning_rates": {"first": [1e-3, 2e-3]},
                "batch_examples": 32,
                "epochs": {"first": 3},
            }
        },
        "bracketed": [],
        "probes": PROBES.model_dump(mode="json"),
        "statistics": {"resamples": 200, "confidence": 0.95, "seed": 1},
    }
    values["students"]["narrow"]["shape"] |= {
        "layers": 2,
        "hidden_size": 8,
        "attention_heads": 2,
        "intermediate_size": 16,
    }
    return Study.model_validate_json(json.dumps(values))
