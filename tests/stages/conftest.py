"""A small project with local sources, whose stages run as the programs that dvc.yaml calls."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from tasks.kd.documents.training import TeacherReport
from tasks.kd.encoders.loading import model_sha256
from tasks.stages import INPUTS
from tests.makers.documents import change
from tests.makers.small_tables import CSV
from tests.makers.tiny import WORDS, tiny_model, tiny_tokenizer

TOPICS = {"corn": WORDS[:20], "money": WORDS[20:40], "ships": WORDS[40:]}
CODE = Path(__file__).resolve().parents[2]
MEANWHILE = """
import subprocess
from tasks.stages import run_stage
from tasks.stages.{stage} import main

def do_both(stage):
    main(stage)
    subprocess.run({command!r}, shell=True, check=True)

run_stage({stage!r}, do_both)
"""
# Stages one after the other in one process: torch and all else are loaded once.
TOGETHER = """
import importlib, sys
from tasks.stages import run_stage

names, sys.argv[1:] = sys.argv[1:], ["params/small.yaml"]
for name in names:
    try:
        run_stage(name, importlib.import_module(f"tasks.stages.{name}").main)
    except SystemExit as ended:
        if ended.code:
            raise
"""


class Project:
    """A folder with params/small.yaml, data and a base model."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self,
        stage: str,
        *,
        largest_file_kib: int | None = None,
        meanwhile: str = "",
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """The stage as DVC runs it; whatever it did before is deleted, as DVC does.

        A limit on the size of files fails a write as a full disk does. `meanwhile` is a shell
        command that runs when the stage has done its work, before its out is moved into place.
        """
        shutil.rmtree(self.out(stage), ignore_errors=True)
        program = [sys.executable, "-m", f"tasks.stages.{stage}", "params/small.yaml"]
        if meanwhile:
            program[1:3] = ["-c", MEANWHILE.format(stage=stage, command=meanwhile)]
        if largest_file_kib is not None:
            limited = f'ulimit -f {largest_file_kib}; exec "$@"'
            program = ["bash", "-c", limited, "bash", *program]
        return subprocess.run(
            program,
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(CODE), **environment},
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )

    def run_all(self, *stages: str) -> str:
        """What the stages say in one process; the first that fails, fails the test."""
        for stage in stages:
            shutil.rmtree(self.out(stage), ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-c", TOGETHER, *stages],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(CODE)},
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def out(self, stage: str) -> Path:
        return self.root / "artifacts" / "small" / stage

    def json(self, stage: str, name: str) -> Any:
        return json.loads((self.out(stage) / name).read_text())

    def error(self, stage: str) -> Any:
        return json.loads((self.root / f".work/errors/small.{stage}.json").read_text())

    def change(self, change: Callable[[Any], None]) -> None:
        """Change the recipe in place."""
        path = self.root / "params" / "small.yaml"
        yaml = YAML()
        document = yaml.load(path.read_text())
        change(document)
        with path.open("w") as file:
            yaml.dump(document, file)

    def tune_teacher_further(self) -> None:
        """Another teacher, with the report that is its own."""
        folder = self.out("train_teacher")
        weights = load_file(folder / "model" / "model.safetensors")
        weights["classifier.bias"] += 1
        save_file(weights, folder / "model" / "model.safetensors", {"format": "pt"})
        digest = model_sha256(folder / "model")
        change(TeacherReport.read(folder), teacher_sha256=digest).write(folder)

    def copy(self, target: Path) -> Project:
        shutil.copytree(self.root, target)
        return Project(target)


def write_table(path: Path, examples: int, seed: int) -> None:
    """Texts of words of their topic, most of them; each twice as often as the next."""
    random = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "topic"])
        for _ in range(examples):
            topic = str(random.choice(list(TOPICS), p=[0.5, 0.3, 0.2]))
            words = random.choice(TOPICS[topic], random.integers(3, 20)).tolist()
            writer.writerow([" ".join([*words, *random.choice(WORDS, 2)]), topic])


def make_recipe(quickstart: Path) -> Any:
    """The quickstart's recipe, at the size of these sources."""
    recipe = YAML().load(quickstart.read_text())
    table = CSV.model_dump(mode="json")
    recipe["fetch_sources"] = {
        "data": {
            "kind": "path",
            "train": "data/train.csv",
            "test": "data/test.csv",
            "format": table,
        },
        "teacher": {"kind": "path", "folder": "models/base"},
        "student": None,
        "more_teachers": {},
    }
    recipe["prepare_data"].update(
        text_column="body", label_column="topic", max_length_tokens=16, train_examples=150
    )
    recipe["prepare_data"].update(min_train_examples=100)
    recipe["train_teacher"].update(
        layers=4,
        hidden_size=16,
        attention_heads=2,
        intermediate_size=32,
        epochs=6,
        learning_rate=1e-2,
    )
    recipe["train_teacher"]["optimizer"]["batch_examples"] = 8
    recipe["cache_teacher"].update(
        streams=["logits", "hidden.0", "hidden.2", "hidden.4", "attention.2", "relation.4"],
        max_relative_error=0.02,
    )
    attention = {"level": "attention", "loss": "kl", "layer_map": [[1, 2]], "heads": "each"}
    relation = {"level": "relation", "loss": "kl", "layer_map": "last", "relation_heads": 4}
    recipe["train_student"]["phases"][0]["levels"] += [
        {**attention, "weight": 0.1},
        {**relation, "relations": ["queries", "keys", "values"], "weight": 0.1},
    ]
    student = recipe["train_student"]["student"]
    student.update(layers=2, hidden_size=16, attention_heads=2, intermediate_size=32)
    for phase in recipe["train_student"]["phases"]:
        phase["learning_rate"] = 2e-3
    recipe["export_student"].update(serve="float32", min_int8_agreement=0.5, parity_examples=10)
    recipe["evaluate_student"].update(
        bootstrap_resamples=200, latency_examples=20, similarity_examples=16
    )
    recipe["compute"].update(threads=1)
    return recipe


@pytest.fixture(scope="session")
def project_sources(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project before anything ran."""
    root = tmp_path_factory.mktemp("small")
    for folder in ("params", "data", "models/base"):
        (root / folder).mkdir(parents=True)
    write_table(root / "data" / "train.csv", 220, seed=1)
    write_table(root / "data" / "test.csv", 60, seed=2)
    base = tiny_model(4)
    with torch.no_grad():  # weights small enough to be trained, and no dropout: few steps must do
        for weight in base.parameters():
            weight.mul_(0.4)
    base.config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    base.bert.save_pretrained(root / "models" / "base")
    tokenizer = tiny_tokenizer(root / "models" / "base" / "tokenizer.json")
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(root / "models" / "base")
    with (root / "params" / "small.yaml").open("w") as file:
        YAML().dump(make_recipe(CODE / "params" / "quickstart.yaml"), file)
    return Project(root)


@pytest.fixture(scope="session")
def finished(project_sources: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with every stage done."""
    project = project_sources.copy(tmp_path_factory.mktemp("finished") / "project")
    project.run_all(*INPUTS)
    return project


@pytest.fixture
def broken(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, to break."""
    return finished.copy(tmp_path / "project")


@pytest.fixture
def bare(project_sources: Project, tmp_path: Path) -> Project:
    """A copy of the project before anything ran."""
    return project_sources.copy(tmp_path / "project")
