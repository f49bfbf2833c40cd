"""Both raw splits: the teacher's own spelling of labels, and what is told of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.kd.data.formats import Part
from tasks.kd.data.splits import RawSplits, read_splits, warn_of_classes
from tasks.kd.data.tables import Rows
from tasks.kd.recipe.files import load_recipe
from tasks.kd.recipe.sections import PrepareData
from tests.makers.small_tables import CSV


@pytest.fixture
def params(root: Path) -> PrepareData:
    """The quickstart's own, for small tables."""
    found = load_recipe(root / "params" / "quickstart.yaml").prepare_data
    return found.model_copy(update={"text_column": "body", "label_column": "kind"})


def read(folder: Path, params: PrepareData, config: str | None, **lines: list[str]) -> RawSplits:
    parts = {}
    for split, rows in lines.items():
        (folder / f"{split}.csv").write_text("\n".join(["body,kind", *rows]))
        parts[split] = [Part(folder / f"{split}.csv", f"{split}.csv")]
    if config is not None:
        (folder / "config.json").write_text(config)
    return read_splits(parts, CSV, params, folder)


@pytest.mark.parametrize(
    ("id2label", "labels"),
    [
        ({"0": "True", "1": "False"}, ["True", "False"]),
        (["FALSE", "TRUE"], ["TRUE", "FALSE"]),
        ({"0": "True", "1": "true"}, ["true", "false"]),  # which of both is not known
        ({"True": 0, "False": 1}, ["True", "False"]),
        (None, ["true", "false"]),
        ("True", ["true", "false"]),
    ],
)
def test_a_label_is_spelled_as_the_teacher_spells_it(
    id2label: Any, labels: list[str], params: PrepareData, tmp_path: Path
) -> None:
    config = json.dumps({"model_type": "bert", "id2label": id2label})
    raw = read(tmp_path, params, config, train=["x,true", "y,FALSE"], test=["z,True"])
    assert raw.train.labels == labels
    assert raw.test.labels == labels[:1]


@pytest.mark.parametrize("config", [None, "[1]", "no JSON", '"text"'])
def test_a_configuration_that_says_nothing_changes_nothing(
    config: str | None, params: PrepareData, tmp_path: Path
) -> None:
    raw = read(tmp_path, params, config, train=["x,1.0"], test=["z,1"])
    assert (raw.train.labels, raw.test.labels) == (["1"], ["1"])
    assert raw.list_warnings() == []


def test_losses_of_both_splits_are_told(params: PrepareData, tmp_path: Path) -> None:
    raw = read(tmp_path, params, None, train=["x,a", "x,a", ",", "z,a"], test=["z,a", ","])
    reasons = ("repeated", "contradictory", "in_test_split", "unreadable", "blank")
    assert raw.dropped == dict(zip(reasons, (1, 0, 1, 0, 1), strict=True))
    assert raw.tables["test"].dropped == {"unreadable": 0, "blank": 1}
    assert {split: table.replaced for split, table in raw.tables.items()} == {"train": 0, "test": 0}
    assert raw.describe_losses() == (
        "left out of train: 1 repeated, 1 in the test split, 1 blank; left out of test: 1 blank"
    )


def test_labels_that_look_alike_across_the_splits_are_told(
    params: PrepareData, tmp_path: Path
) -> None:
    raw = read(tmp_path, params, None, train=["x,Billing"], test=["z,billing"])
    assert raw.list_warnings()[0].startswith("labels 'Billing', 'billing' are different classes")


def test_classes_that_are_sound_are_not_warned_of() -> None:
    five = Rows(list("vwxyz"), ["a"] * 5)
    assert warn_of_classes(["a"], five, Rows(["t"], ["a"])) == []
