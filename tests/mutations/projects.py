"""The good material, made once, and the small project of each case."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.mutations.cases import FAMILIES, Case, write_yaml
from tests.mutations.owner import model_of
from tests.mutations.task import MAX_LENGTH, Table, make_table
from tests.mutations.teachers import make_teacher
from tests.mutations.written import write_table

QUICKSTART = Path(__file__).parents[2] / "params" / "quickstart.yaml"


@dataclass(frozen=True)
class Material:
    """A good table, and good teachers of all families, as files and in memory."""

    folder: Path
    table: Table
    models: dict[str, Any]

    def new_case(self, root: Path, family: str, kind: str, random: np.random.Generator) -> Case:
        """A project that is good so far."""
        case = new_case(root, family, kind, self.table)
        shutil.copytree(self.folder / family, case.teacher)
        return replace(case, models=self.folder, random=random)


def new_case(root: Path, family: str, kind: str, table: Table) -> Case:
    """A project with data and a recipe, and no teacher yet."""
    for name in ("params", "data", "models"):
        (root / name).mkdir(parents=True)
    write_table(root / "data", kind, table)
    (root / "dvc.yaml").write_text("stages: {}\n")
    recipe = good_recipe()
    recipe["fetch_sources"]["data"] |= {
        "train": f"data/train.{kind}",
        "test": f"data/test.{kind}",
        "format": _layout(kind),
    }
    return Case(root, family, kind, table, recipe, root, np.random.default_rng(0))


def make_material(folder: Path, families: tuple[str, ...] = FAMILIES) -> Material:
    """Tune the teachers and write the tables; some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    table = make_table()
    for family in families:
        make_teacher(family, folder / family)
    models = {family: model_of(folder / family) for family in families}
    return Material(folder, table, models)


def write_recipe(case: Case) -> None:
    """The case's recipe and its entry in the list."""
    write_yaml(case.root / "params" / "given.yaml", case.recipe)
    data, teacher = (case.recipe["fetch_sources"].get(name) for name in ("data", "teacher"))
    entry = {"student": "params/remote", "more_teachers": "params/remote"}
    for name in ("train", "test"):
        entry[name] = str((data if isinstance(data, dict) else {}).get(name, "params/remote"))
    entry["teacher"] = str(
        (teacher if isinstance(teacher, dict) else {}).get("folder", "params/remote")
    )
    write_yaml(case.root / "params" / "recipes.yaml", {"recipes": {"given": entry}})


def good_recipe() -> dict[str, Any]:
    """The quickstart's, of this size; guards that could hide wrong tokens are open."""
    recipe = copy.deepcopy(_quickstart())
    recipe["fetch_sources"] = {
        "data": {"kind": "path", "train": "", "test": "", "format": {}},
        "teacher": {"kind": "path", "folder": "models/given"},
        "student": None,
        "more_teachers": {},
    }
    recipe["prepare_data"] |= {
        "text_column": "text",
        "label_column": "label",
        "max_length_tokens": MAX_LENGTH,
        "dev_fraction": 0.3,
        "train_examples": None,
        "min_train_examples": 30,
        "max_unknown_fraction": 1.0,
    }
    shape = {"layers": 2, "hidden_size": 32, "attention_heads": 2, "intermediate_size": 64}
    recipe["train_teacher"] |= {"mode": "given", "min_lead": 0.0, **shape}
    recipe["train_student"]["student"] |= {**shape, "layers": 1}
    recipe["cache_teacher"] |= {"streams": ["logits", "hidden.0", "hidden.2"], "audit_examples": 4}
    recipe["compute"]["threads"] = 1
    return recipe


@cache
def _quickstart() -> dict[str, Any]:
    from ruamel.yaml import YAML

    recipe: dict[str, Any] = YAML(typ="safe").load(QUICKSTART.read_text(encoding="utf-8"))
    return recipe


def _layout(kind: str) -> dict[str, Any]:
    """How the good table of that format is written."""
    if kind not in ("csv", "tsv"):
        return {"kind": kind}
    signs = {"separator": ",", "quote": '"'} if kind == "csv" else {"quote": None}
    return {"kind": kind, **signs, "escape": None, "missing": [], "skip_lines": 0}
