"""The good material, made once, and the small project of each case."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.mutations.cases import FAMILIES, FORMATS, Case, write_yaml
from tests.mutations.owner import model_of
from tests.mutations.task import MAX_LENGTH, Table, make_table
from tests.mutations.teachers import make_teacher
from tests.mutations.written import write_table

QUICKSTART = Path(__file__).parents[2] / "params" / "quickstart.yaml"


@dataclass(frozen=True)
class Material:
    """Good teachers of all families, good tables of all formats, a good recipe."""

    folder: Path
    table: Table
    recipe: dict[str, Any]
    models: dict[str, Any]

    def new_case(self, root: Path, family: str, table: str, random: np.random.Generator) -> Case:
        """A project that is good so far."""
        for name in ("params", "data", "models"):
            (root / name).mkdir(parents=True)
        shutil.copytree(self.folder / family, root / "models" / "given")
        for split in ("train", "test"):
            shutil.copyfile(self.folder / f"{split}.{table}", root / "data" / f"{split}.{table}")
        (root / "dvc.yaml").write_text("stages: {}\n")
        recipe = copy.deepcopy(self.recipe)
        recipe["fetch_sources"]["data"] |= {
            "train": f"data/train.{table}",
            "test": f"data/test.{table}",
            "format": self.recipe["fetch_sources"]["data"]["format"] | {"kind": table},
        }
        return Case(root, family, table, self.table, recipe, self.folder, random)


def make_material(folder: Path, families: tuple[str, ...] = FAMILIES) -> Material:
    """Tune the teachers and write the tables; some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    table = make_table()
    for kind in FORMATS:
        write_table(folder, kind, table)
    for family in families:
        make_teacher(family, folder / family)
    models = {family: model_of(folder / family) for family in families}
    return Material(folder, table, _good_recipe(), models)


def write_recipe(case: Case) -> None:
    """The case's recipe and its entry in the list."""
    write_yaml(case.root / "params" / "given.yaml", case.recipe)
    data, teacher = (case.recipe["fetch_sources"].get(name) for name in ("data", "teacher"))
    entry = {"student": "params/remote", "more_teachers": "params/remote"}
    for name in ("train", "test"):
        entry[name] = str((data if isinstance(data, dict) else {}).get(name, "params/remote"))
    entry["teacher"] = str((teacher if isinstance(teacher, dict) else {}).get("folder", "params/remote"))
    write_yaml(case.root / "params" / "recipes.yaml", {"recipes": {"given": entry}})


def _good_recipe() -> dict[str, Any]:
    """The quickstart's, of this size; guards that could hide wrong tokens are open."""
    from ruamel.yaml import YAML

    recipe: dict[str, Any] = YAML(typ="safe").load(QUICKSTART.read_text(encoding="utf-8"))
    layout = {"kind": "csv", "skip_lines": 0}
    recipe["fetch_sources"] = {
        "data": {"kind": "path", "train": "", "test": "", "format": layout},
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
