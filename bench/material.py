"""What is measured on: Reuters R52 and a teacher tuned to it, made by the stages themselves.

`.work/bench` is a project folder of its own. A stage whose out is there, made from the same
settings, is not run again; the sources are fetched once for all forms of the data.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from bench.figures import Figure, Findings
from tasks.kd.cache.format.fingerprint import base_fields
from tasks.kd.cache.writing.job import distinct
from tasks.kd.data.examples.prepared import Ids, Split, read_split
from tasks.kd.digests import read_json, sha256_json, write_json
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.training import TeacherReport
from tasks.kd.encoders.loading import load_classifier
from tasks.kd.recipe.files import load_recipe
from tasks.kd.recipe.recipe import Recipe
from tasks.stages import INPUTS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".work" / "bench"
QUICKSTART = ROOT / "params" / "quickstart.yaml"
RECIPE = Path(__file__).with_name("r52.yaml")
SHORT_TOKENS, LONG_TOKENS = 64, 256
_QUICK_EXAMPLES = 700

Change = Callable[[Any], None]


@dataclass(frozen=True)
class Prepared:
    """One form of the data: its splits, and what a cache of it is made of."""

    train: Split
    dev: Split
    test: Split
    pad_id: int
    base: dict[str, object]

    def sample(self, count: int, *, seed: int = 7) -> Split:
        """So many of the distinct training texts, or all, drawn at random: lengths as they are."""
        seen: dict[bytes, int] = {}
        for row, ids in enumerate(self.train.input_ids):
            seen.setdefault(ids.tobytes(), row)
        rows = np.asarray(list(seen.values()), dtype=np.int64)
        drawn = np.random.default_rng(seed).permutation(rows)[:count]
        return self.train.take(np.sort(drawn))

    def base_of(self, input_ids: list[Ids]) -> dict[str, object]:
        """What a cache of these texts alone is made of."""
        keys, _ = distinct(input_ids)
        return {**self.base, "encoded_sha256": sha256(b"".join(sorted(keys))).hexdigest()}


class Material:
    """The recipe, both forms of the data, the teacher."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self.name, self.folder = name, folder

    @cached_property
    def recipe(self) -> Recipe:
        """All settings."""
        return load_recipe(self.folder / "params" / f"{self.name}.yaml")

    @cached_property
    def short(self) -> Prepared:
        """Texts of at most 64 tokens."""
        return self._prepared(self.name)

    @cached_property
    def long(self) -> Prepared:
        """Texts of at most 256 tokens."""
        return self._prepared(f"{self.name}-long")

    @cached_property
    def teacher(self) -> torch.nn.Module:
        """The tuned teacher, 6×384."""
        return load_classifier(self.folder / "artifacts" / self.name / "train_teacher" / "model")

    @property
    def report(self) -> TeacherReport:
        """How the teacher's training ended."""
        return TeacherReport.read(self.folder / "artifacts" / self.name / "train_teacher")

    def _prepared(self, recipe: str) -> Prepared:
        folder = self.folder / "artifacts" / recipe / "prepare_data"
        card = DataCard.read(folder)
        return Prepared(
            train=read_split(folder / "train.arrow"),
            dev=read_split(folder / "dev.arrow"),
            test=read_split(folder / "test.arrow"),
            pad_id=card.pad_token_id,
            base=base_fields(
                teacher_sha256=self.report.teacher_sha256,
                tokenizer_sha256=card.tokenizer_sha256,
                encoded_sha256=card.encoded_sha256,
            ),
        )


def make_material(*, quick: bool, say: Callable[[str], None]) -> Material:
    """Run the stages that have not run with these settings; find the rest."""
    whole, name = RECIPE.stem, f"{RECIPE.stem}-quick" if quick else RECIPE.stem
    _write_recipe(whole, lambda _: None)
    _write_recipe(name, _smaller if quick else lambda _: None)
    _write_recipe(f"{name}-long", lambda recipe: _lengthen(recipe, quick=quick))
    run_stage_once("fetch_sources", whole, say)
    for recipe in {name, f"{name}-long"} - {whole}:
        _share_sources(whole, recipe)
    for stage, recipe in (
        ("prepare_data", name),
        ("train_teacher", name),
        ("prepare_data", f"{name}-long"),
    ):
        run_stage_once(stage, recipe, say)
    return Material(name)


def measure(material: Material) -> Findings:
    """What the other parts are measured on."""
    figures = [
        Figure("teacher's accuracy on the dev split", (material.report.dev_accuracy,)),
        Figure("seconds of the teacher's training", (material.report.seconds,), "s"),
    ]
    for data, most in ((material.short, SHORT_TOKENS), (material.long, LONG_TOKENS)):
        lengths, name = data.train.lengths, f"at most {most} tokens"
        figures += [
            Figure(f"training texts, {name}", (float(len(lengths)),)),
            Figure(f"mean length, {name}", (float(lengths.mean()),), "tokens"),
        ]
    return Findings(tuple(figures), material.recipe.model_dump(mode="json", by_alias=True))


def _smaller(recipe: Any) -> None:
    """To try the programs: nothing that is measured with this teacher means anything."""
    recipe["prepare_data"]["train_examples"] = _QUICK_EXAMPLES
    recipe["train_teacher"]["epochs"] = 1


def _lengthen(recipe: Any, *, quick: bool) -> None:
    if quick:
        _smaller(recipe)
    recipe["prepare_data"]["max_length_tokens"] = LONG_TOKENS


def _write_recipe(name: str, change: Change) -> None:
    yaml = YAML()
    recipe = yaml.load(QUICKSTART.read_text(encoding="utf-8"))
    replace(recipe, yaml.load(RECIPE.read_text(encoding="utf-8")))
    change(recipe)
    path = FOLDER / "params" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(recipe, file)


def replace(recipe: Any, changes: Any) -> None:
    """Put changes over a recipe, section by section. A field that it lacks is a mistake."""
    for name, value in changes.items():
        if name not in recipe:
            raise SystemExit(f"{RECIPE.name}: {QUICKSTART.name} has no {name} there")
        if isinstance(value, dict):
            replace(recipe[name], value)
        else:
            recipe[name] = value


def _share_sources(whole: str, recipe: str) -> None:
    folder = FOLDER / "artifacts" / recipe
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "fetch_sources").is_symlink():
        (folder / "fetch_sources").symlink_to(Path("..") / whole / "fetch_sources")


def run_stage_once(stage: str, recipe: str, say: Callable[[str], None]) -> None:
    """The stage as a program, unless its out is there and of these settings."""
    out = FOLDER / "artifacts" / recipe / stage
    note, digest = FOLDER / "done" / f"{recipe}.{stage}.json", _digest(stage, recipe)
    if out.is_dir() and note.exists() and read_json(note) == digest:
        say(f"{stage} of {recipe} is there")
        return
    say(f"{stage} of {recipe} runs")
    began = time.monotonic()
    program = [sys.executable, "-m", f"tasks.stages.{stage}", f"params/{recipe}.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=FOLDER, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{stage} of {recipe} ended with {done.returncode}: see above")
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, digest)
    say(f"{stage} of {recipe} took {time.monotonic() - began:.0f} s")


def _digest(stage: str, recipe: str) -> str:
    """Of the settings of a stage and of all stages before it."""
    sections = load_recipe(FOLDER / "params" / f"{recipe}.yaml").model_dump(mode="json")
    before = {stage}
    while wider := {name for known in before for name in INPUTS[known]} - before:
        before |= wider
    return sha256_json({name: sections[name] for name in before})
