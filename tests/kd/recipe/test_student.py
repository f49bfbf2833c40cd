from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from tasks.kd.encoders.files.architectures import FAMILIES
from tasks.kd.recipe.recipe import Recipe
from tasks.kd.recipe.student import Student

CHECKPOINT = {"kind": "path", "folder": "models/student"}
REDUCED = {"kind": "width_reduction", "method": "pca", "layers": "uniform", "examples": None}
# Half as wide, with heads as wide as the teacher's.
NARROW = {"hidden_size": 192, "attention_heads": 6, "intermediate_size": 768}


def recipe(root: Path, given: Any = None, levels: Any = None, **student: Any) -> Recipe:
    """The quickstart's recipe with such a student, source of it, and levels in its only phase."""
    document = YAML(typ="safe").load(root / "params" / "quickstart.yaml")
    document["fetch_sources"]["student"] = given
    section = document["train_student"]
    section["student"].update(student)
    phase = section["phases"][0]
    phase["levels"] = levels or [{"level": "prediction", "loss": "labels", "weight": 1.0}]
    section["phases"] = [phase]
    document["cache_teacher"]["streams"] = ["logits", "attention.6", "relation.6", "hidden.6"]
    return Recipe.model_validate_json(json.dumps(document))


def refusal(root: Path, **changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        recipe(root, **changes)
    return " ".join(str(fault["msg"]) for fault in caught.value.errors())


def test_the_families_are_those_that_are_supported() -> None:
    named, nothing = get_args(Student.model_fields["family"].annotation)
    assert set(get_args(named)) == set(FAMILIES)
    assert nothing is type(None)


@pytest.mark.parametrize(
    "student",
    [
        {"initial": {"kind": "random", "embeddings": "pca"}, **NARROW},
        {"initial": {"kind": "random", "embeddings": "new"}, "family": "modernbert"},
        {"initial": {"kind": "teacher_layers", "layers": [2, 4, 6]}},
        {"initial": REDUCED, **NARROW},
        {"initial": {**REDUCED, "method": "slices", "layers": [1, 2, 6], "examples": 200}},
        {"initial": {"kind": "checkpoint"}, "given": CHECKPOINT, "hidden_size": 768},
        {"initial": {"kind": "checkpoint"}, "given": CHECKPOINT, "family": "electra"},
    ],
)
def test_every_start_is_a_recipe(root: Path, student: Any) -> None:
    found = recipe(root, **student).train_student.student
    assert found.initial.kind == student["initial"]["kind"]


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (
            {"initial": {"kind": "checkpoint"}},
            "a checkpoint needs its source in fetch_sources.student, found null",
        ),
        (
            {"initial": {"kind": "random", "embeddings": "new"}, "given": CHECKPOINT},
            "fetch_sources.student: a model that initial.kind random makes no use of",
        ),
        ({"given": CHECKPOINT}, "a model that initial.kind teacher_layers makes no use of"),
        (
            {"initial": {"kind": "random", "embeddings": "pca"}, "hidden_size": 768},
            "embeddings of width 384 have no 768 principal components",
        ),
        ({"initial": REDUCED, "hidden_size": 768}, "hidden_size: 768 can't be reduced from the"),
        (
            {"initial": REDUCED, "intermediate_size": 2000},
            "intermediate_size: 2000 can't be reduced from the teacher's 1536",
        ),
        (
            {"initial": REDUCED, "attention_heads": 24},
            "attention_heads: 24 can't be reduced from the teacher's 12",
        ),
        (
            {"initial": REDUCED, **NARROW, "attention_heads": 3},
            "attention heads 64 wide can't be reduced from the teacher's, 32 wide",
        ),
        ({"initial": REDUCED, "layers": 7}, "7 layers can't be taken from a teacher of 6"),
        ({"initial": {**REDUCED, "layers": [1, 2]}}, "names 2 teacher layers, the student has 3"),
        ({"initial": {**REDUCED, "layers": [1, 2, 9]}}, "must be 3 numbers from 1 to 6"),
        ({"initial": {**REDUCED, "method": "svd"}}, "Input should be 'slices' or 'pca'"),
        ({"initial": {**REDUCED, "examples": 0}}, "greater than 0"),
        ({"initial": REDUCED, "family": "bert"}, "write `family: null` instead of bert"),
        ({"family": "roberta"}, "teacher_layers takes the teacher's layers"),
        ({"initial": {"kind": "random"}}, "Field required"),
        ({"family": "t5"}, "Input should be 'bert', 'roberta'"),
        (NARROW, "layers can be copied from the teacher only at its hidden_size 384"),
    ],
)
def test_a_start_that_can_not_be_is_refused(root: Path, student: Any, said: str) -> None:
    assert said in refusal(root, **student)


@pytest.mark.parametrize(
    "level",
    [
        {"level": "attention", "loss": "kl", "layer_map": "last", "heads": "average"},
        {
            "level": "relation",
            "loss": "kl",
            "layer_map": "last",
            "relation_heads": 12,
            "relations": ["queries"],
        },
    ],
)
def test_deberta_s_attention_is_not_to_be_had(root: Path, level: Any) -> None:
    new = {"kind": "random", "embeddings": "new"}
    labels = {"level": "prediction", "loss": "labels", "weight": 1.0}
    levels = [{**level, "weight": 1.0}, labels]
    recipe(root, levels=levels, initial=new, family="electra")
    said = refusal(root, levels=levels, initial=new, family="deberta-v2")
    assert "train_student.student.family: deberta-v2 has no attention" in said
    hidden = {"level": "hidden", "loss": "cosine", "layer_map": "last", "projection": "none"}
    recipe(root, levels=[{**hidden, "weight": 1.0}, labels], initial=new, family="deberta-v2")
