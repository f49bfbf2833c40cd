"""Mutations of the names that a teacher gives its answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.mutations.cases import Case, Change, Expected, Mutation, either, fatal, harmless
from tests.mutations.task import LABELS
from tests.mutations.written import write_table

NUMBERED = {str(i): label for i, label in enumerate(LABELS)}
TURNED = {label: i for i, label in enumerate(LABELS)}
GENERIC = {str(i): f"LABEL_{i}" for i in range(3)}
SAYS = ("id2label", "label")
Forms = dict[str, tuple[dict[str, Any], Expected]]
# What can mean one thing only may be read; the names are then those of the good teacher.
FORMS: Forms = {
    "a list": ({"id2label": list(LABELS)}, either(*SAYS)),
    "the wrong way round": ({"id2label": TURNED}, either(*SAYS)),
    "the wrong way round, numbers as text": (
        {"id2label": {label: str(i) for label, i in TURNED.items()}},
        either(*SAYS),
    ),
    "null, label2id kept": ({"id2label": None}, either(*SAYS)),
    "null, label2id too": ({"id2label": None, "label2id": None}, fatal(*SAYS)),
    "empty": ({"id2label": {}}, either(*SAYS)),
    "label2id null": ({"label2id": None}, harmless()),
    "label2id contradicts": (
        {"label2id": dict(zip(LABELS, (2, 0, 1), strict=True))},
        either(*SAYS),
    ),
    "label2id the wrong way round": ({"label2id": NUMBERED}, either(*SAYS)),
    "label2id with numbers as text": (
        {"label2id": {label: str(i) for i, label in enumerate(LABELS)}},
        either(*SAYS),
    ),
    "label2id a list": ({"label2id": list(LABELS)}, either(*SAYS)),
    "keys from one": ({"id2label": {str(i + 1): x for i, x in enumerate(LABELS)}}, fatal(*SAYS)),
    "keys with a gap": (
        {"id2label": {"0": LABELS[0], "1": LABELS[1], "5": LABELS[2]}},
        fatal(*SAYS),
    ),
    "keys named": ({"id2label": {f"LABEL_{i}": x for i, x in enumerate(LABELS)}}, either(*SAYS)),
    "keys with a point": ({"id2label": {f"{i}.0": x for i, x in enumerate(LABELS)}}, either(*SAYS)),
    "keys with zeros": ({"id2label": {f"00{i}": x for i, x in enumerate(LABELS)}}, either(*SAYS)),
    "in another order of lines": (
        {"id2label": {str(i): LABELS[i] for i in (2, 0, 1)}},
        harmless(),
    ),
    "a name twice": ({"id2label": {"0": "billing", "1": "billing", "2": "login"}}, fatal(*SAYS)),
    "a name null": ({"id2label": NUMBERED | {"1": None}}, fatal(*SAYS)),
    "a name empty": ({"id2label": NUMBERED | {"1": ""}}, fatal(*SAYS)),
    "a name a list": ({"id2label": {str(i): [x] for i, x in enumerate(LABELS)}}, either(*SAYS)),
    "names in objects": (
        {"id2label": {str(i): {"name": x} for i, x in enumerate(LABELS)}},
        either(*SAYS),
    ),
    "names with blanks": (
        {"id2label": {str(i): f" {x} " for i, x in enumerate(LABELS)}},
        either(*SAYS),
    ),
    "names in capitals": (
        {"id2label": {str(i): x.upper() for i, x in enumerate(LABELS)}},
        either(*SAYS),
    ),
    "a name misspelt": ({"id2label": NUMBERED | {"1": "delivry"}}, fatal(*SAYS)),
    "other names": ({"id2label": {str(i): x for i, x in enumerate("abc")}}, fatal(*SAYS)),
    "LABEL_0 and so on": ({"id2label": GENERIC, "label2id": None}, fatal("id2label", "labels")),
    "one name more": ({"id2label": NUMBERED | {"3": "other"}}, fatal(*SAYS, "weights")),
    "one name less": ({"id2label": {"0": "billing", "1": "delivery"}}, fatal(*SAYS, "weights")),
    "num_labels beside it, right": ({"num_labels": 3}, harmless()),
    "num_labels beside it, wrong": ({"num_labels": 5}, either(*SAYS, "num_labels", "weights")),
}


def mutations() -> Iterator[Mutation]:
    for name, (fields, expected) in FORMS.items():
        yield Mutation("id2label", name, _setting(fields, expected))
    yield Mutation("id2label", "numbers for numbers", _numbers)
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        yield Mutation("id2label", f"names in order {order}", _permuting(order))
        yield Mutation("train_teacher.labels", f"a map in order {order}", _mapping(order))
    for name, (labels, expected) in _MAPS.items():
        yield Mutation("train_teacher.labels", name, _with_map(labels, expected))
    yield Mutation("train_teacher.labels", "a map that changes nothing", _same_map)


def _setting(fields: dict[str, Any], expected: Expected) -> Change:
    def apply(case: Case) -> Expected:
        case.change_json("config.json", **fields)
        return expected

    return apply


def _numbers(case: Case) -> Expected:
    """Data and teacher call the labels 0, 1 and 2, the teacher as numbers."""
    case.change_json("config.json", id2label={str(i): i for i in range(3)}, label2id=None)
    table = rename(case, {label: str(i) for i, label in enumerate(LABELS)})
    return either(*SAYS, names=("0", "1", "2"), table=table)


def rename(case: Case, names: dict[str, str]) -> Any:
    """Write the case's table with other names of labels; the table."""
    from tests.mutations.task import Rows, Table

    def other(rows: Rows) -> Rows:
        return Rows(rows.texts, tuple(names[label] for label in rows.labels))

    case.table = Table(other(case.table.train), other(case.table.test))
    write_table(case.root / "data", case.format, case.table)
    return case.table


def _permuting(order: tuple[int, ...]) -> Change:
    """The teacher's answers under each other's names: worse than a constant answer."""

    def apply(case: Case) -> Expected:
        names = tuple(LABELS[i] for i in order)
        case.change_json(
            "config.json",
            id2label=dict(zip("012", names, strict=True)),
            label2id={name: i for i, name in enumerate(names)},
        )
        case.recipe["train_teacher"]["min_lead"] = 0.5
        return fatal("label", "min_lead", "hardly better", "worse")

    return apply


def _mapping(order: tuple[int, ...]) -> Change:
    """LABEL_0 and so on, with the recipe's map: right in one order, worthless in the others."""

    def apply(case: Case) -> Expected:
        names = [LABELS[i] for i in order]
        case.change_json("config.json", id2label=GENERIC, label2id=None)
        case.recipe["train_teacher"] |= {
            "labels": {f"LABEL_{i}": name for i, name in enumerate(names)},
            "min_lead": 0.5,
        }
        return fatal("label", "min_lead", "hardly better", "worse")

    return apply


_RIGHT = {f"LABEL_{i}": name for i, name in enumerate(LABELS)}
_MAPS: dict[str, tuple[Any, Expected]] = {
    "the right map": (_RIGHT, harmless()),
    "the right map, turned": ({name: key for key, name in _RIGHT.items()}, fatal("labels")),
    "a map with one name less": ({k: _RIGHT[k] for k in ("LABEL_0", "LABEL_1")}, fatal("labels")),
    "a map with one name more": (_RIGHT | {"LABEL_3": "other"}, fatal("labels")),
    "a map with a name twice": (_RIGHT | {"LABEL_2": "billing"}, fatal("labels")),
    "a map to a name that is not there": (_RIGHT | {"LABEL_2": "logon"}, fatal("labels")),
    "an empty map": ({}, fatal("labels")),
    "a list": (list(LABELS), fatal("labels")),
    "a text": ("LABEL_0", fatal("labels")),
    "a map to numbers": ({f"LABEL_{i}": i for i in range(3)}, fatal("labels")),
    "a map of numbers": (dict(enumerate(LABELS)), fatal("labels")),
}


def _with_map(labels: Any, expected: Expected) -> Change:
    def apply(case: Case) -> Expected:
        case.change_json("config.json", id2label=GENERIC, label2id=None)
        case.recipe["train_teacher"]["labels"] = labels
        return expected

    return apply


def _same_map(case: Case) -> Expected:
    case.recipe["train_teacher"]["labels"] = {label: label for label in LABELS}
    return either("labels")
