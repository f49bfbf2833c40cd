"""Names of labels: every form that can mean one thing is read, every other refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.kd.encoders.files.label_names import (
    are_generic,
    in_order,
    known_label_names,
    order_labels,
    paste,
    read_label_names,
    rename_labels,
)
from tasks.kd.errors import DataError

WHERE = Path("teacher/config.json")
NAMES = ["bad", "fair", "good"]
STRAIGHT = {"0": "bad", "1": "fair", "2": "good"}
TURNED = {"bad": 0, "fair": 1, "good": 2}


@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": STRAIGHT},
        {"id2label": {0: "bad", 1: "fair", 2: "good"}},
        {"id2label": dict(reversed(STRAIGHT.items()))},
        {"id2label": NAMES},
        {"id2label": {f"LABEL_{i}": name for i, name in enumerate(NAMES)}},
        {"id2label": TURNED},
        {"label2id": TURNED},
        {"label2id": {name: str(i) for name, i in TURNED.items()}},
        {"label2id": STRAIGHT},
        {"id2label": None, "label2id": TURNED},
        {"id2label": {}, "label2id": TURNED, "num_labels": 3},
        {"id2label": STRAIGHT, "label2id": TURNED, "num_labels": 3},
        {"id2label": STRAIGHT, "label2id": {f"LABEL_{i}": i for i in range(3)}},
        {"id2label": {str(i): f"LABEL_{i}" for i in range(3)}, "label2id": TURNED},
        {"id2label": {"0": " bad", "1": "fair ", "2": "good"}},
    ],
)
def test_a_form_that_can_mean_one_thing_is_read(fields: dict[str, Any]) -> None:
    assert read_label_names(fields, WHERE) == NAMES
    assert read_label_names(fields, WHERE, rows=3) == NAMES


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"id2label": {"0": 0, "1": 1, "2": 2}, "label2id": {"0": 0, "1": 1, "2": 2}}, "0 1 2"),
        ({"id2label": [0.0, 1.0]}, "0 1"),
        ({"id2label": {"0": 1, "1": 2, "2": 3}}, "1 2 3"),
        ({"id2label": {"1": 0, "2": 1}}, "1 2"),
        ({"id2label": {"0": -1, "1": 1}}, "-1 1"),
        ({"num_labels": 3}, "LABEL_0 LABEL_1 LABEL_2"),
        ({}, "LABEL_0 LABEL_1"),
    ],
)
def test_numbers_are_names(fields: dict[str, Any], names: str) -> None:
    assert read_label_names(fields, WHERE) == names.split()


def test_a_classifier_without_names_has_as_many_as_it_has_rows() -> None:
    assert read_label_names({}, WHERE, rows=3) == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id2label": {"1": "bad", "2": "good"}}, "id2label can't be read"),
        ({"id2label": {"0": "bad", "2": "good"}}, "id2label can't be read"),
        ({"id2label": {"0": "bad", "1": None}}, "id2label can't be read"),
        ({"id2label": {"0": "bad", "1": ""}}, "id2label can't be read"),
        ({"id2label": {"0": "bad", "1": ["good"]}}, "id2label can't be read"),
        ({"id2label": {"0": False, "1": True}}, "id2label can't be read"),
        ({"id2label": {"0": 0.5, "1": 1}}, "id2label can't be read"),
        ({"id2label": {"0": "bad", "LABEL_0": "good"}}, "id2label can't be read"),
        ({"id2label": {"0": "LABEL_0", "2": "LABEL_1"}}, "id2label can't be read"),
        ({"id2label": {"x": "bad", "y": "good"}}, "id2label can't be read"),
        ({"id2label": "bad, good"}, "id2label can't be read"),
        ({"id2label": 3}, "id2label can't be read"),
        ({"label2id": {"bad": 0, "good": 0}}, "label2id can't be read"),
        ({"id2label": {"0": "bad", "1": "bad"}}, "two labels of one name"),
        ({"id2label": STRAIGHT, "label2id": {"bad": 2, "fair": 1, "good": 0}}, "contradict"),
        ({"id2label": STRAIGHT, "num_labels": 2}, "id2label and num_labels contradict"),
        ({"id2label": {"0": "bad", "1": "good"}, "label2id": TURNED}, "contradict"),
    ],
)
def test_what_may_mean_two_things_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"{said}.*teacher/config\.json") as refused:
        read_label_names(fields, WHERE)
    assert "id2label" in str(refused.value)
    assert known_label_names(fields, WHERE) is None


def test_names_that_the_classifier_s_rows_contradict_are_refused() -> None:
    with pytest.raises(DataError, match=r"the classifier contradict.*Expected 4 labels, found 3"):
        read_label_names({"id2label": STRAIGHT}, WHERE, rows=4)


def test_generic_names_are_numbers_with_and_without_a_word() -> None:
    assert are_generic(["LABEL_0", "LABEL_1"])
    assert are_generic(["0", "1"])
    assert not are_generic(["LABEL_0", "good"])
    assert not are_generic(["1 star", "2 stars"])


def test_names_that_are_their_own_ids_say_nothing() -> None:
    numbers = {"0": 0, "1": 1, "2": 2}
    assert read_label_names({"id2label": STRAIGHT, "label2id": numbers}, WHERE) == NAMES
    turned = {name: int(number) for number, name in STRAIGHT.items()}
    assert read_label_names({"id2label": numbers, "label2id": turned}, WHERE) == NAMES


def test_numbers_are_proposed_in_their_own_order() -> None:
    own = [f"LABEL_{i}" for i in range(12)]
    with pytest.raises(DataError, match=r'LABEL_2: "2", .*LABEL_11: "11"}'):
        order_labels([str(i) for i in range(12)], own, None, WHERE)
    assert in_order(["10", "b", "9", "b"]) == ["10", "9", "b"]


def test_a_map_names_the_teacher_s_labels_in_its_own_order() -> None:
    own = ["LABEL_0", "LABEL_1", "LABEL_2"]
    named = {"LABEL_2": "bad", "LABEL_0": "good", "LABEL_1": "fair"}
    assert order_labels(NAMES, own, named, WHERE) == ["good", "fair", "bad"]
    assert rename_labels(own, None, WHERE) == own


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"LABEL_0": "bad"}, "does not name the teacher's labels.*none for LABEL_1"),
        ({"LABEL_0": "bad", "LABEL_1": "good", "LABEL_2": "x"}, "found LABEL_2, which the"),
        ({"LABEL_0": "bad", "LABEL_1": "bad"}, "two of the teacher's labels one name.*bad more"),
    ],
)
def test_a_map_that_is_not_complete_or_not_one_to_one_is_refused(
    labels: dict[str, str], said: str
) -> None:
    with pytest.raises(DataError, match=rf"train_teacher\.labels .*{said}|{said}"):
        rename_labels(["LABEL_0", "LABEL_1"], labels, WHERE)


def test_labels_that_the_data_lack_today_keep_their_place() -> None:
    assert order_labels(["good", "bad"], ["bad", "fair", "good"], None, WHERE) == NAMES


def test_a_teacher_with_numbers_for_names_is_refused_with_the_map_to_paste() -> None:
    with pytest.raises(DataError) as refused:
        order_labels(["true", "good day", "a: b"], ["LABEL_0", "LABEL_1", "LABEL_2"], None, WHERE)
    message = str(refused.value)
    assert "id2label" in message
    assert "teacher/config.json" in message
    pasted = message.partition("train_teacher.labels: ")[2].partition("}")[0] + "}"
    found = YAML(typ="safe").load(pasted)
    assert found == {"LABEL_0": "a: b", "LABEL_1": "good day", "LABEL_2": "true"}


def test_a_label_that_the_teacher_lacks_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"fine is none of the teacher's: teacher/config\.json"):
        order_labels(["bad", "fine"], NAMES, None, WHERE)


@pytest.mark.parametrize("name", ["yes", "0", "1.5", "null", "a, b", "x}", " padded ", "naïve"])
def test_a_pasted_map_reads_back_as_it_was(name: str) -> None:
    assert YAML(typ="safe").load(paste([name], [name])) == {name: name}
