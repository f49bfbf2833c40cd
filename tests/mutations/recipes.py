"""Mutations of the recipe: fields removed, typed otherwise, out of range, at odds with files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.mutations.cases import Case, Change, Expected, Mutation, either, fatal, harmless
from tests.mutations.configs import ODD

FIELDS: dict[str, tuple[str, ...]] = {
    "fetch_sources": ("data", "teacher", "student", "more_teachers"),
    "fetch_sources.data": ("kind", "train", "test", "format"),
    "fetch_sources.data.format": ("kind", "skip_lines"),
    "fetch_sources.teacher": ("kind", "folder"),
    "prepare_data": (
        *("text_column", "label_column", "max_length_tokens", "dev_fraction", "train_examples"),
        *("on_overlap", "min_train_examples", "on_unreadable", "max_unknown_fraction"),
        *("random_texts", "seed"),
    ),
    "train_teacher": (
        *("mode", "labels", "min_lead", "ensemble", "layers", "hidden_size"),
        *("attention_heads", "intermediate_size", "epochs", "learning_rate", "optimizer"),
    ),
}
# What may be set to such a value; the teacher and the texts are then as they were, or it's refused.
FREE = {
    "max_length_tokens": (8, 16, 38),
    "dev_fraction": (0.05, 0.5, 0.9),
    "train_examples": (60, 1000),
    "min_train_examples": (1, 119, 121),
    "max_unknown_fraction": (0.0, 0.5),
    "random_texts": (1,),
    "seed": (0, 2**31 - 1),
    "min_lead": (0.9, 1.0),
    "on_overlap": ("refuse",),
    "on_unreadable": ("drop", "replace"),
}
SET: dict[str, tuple[str, Any]] = {
    "more tokens than positions": ("prepare_data.max_length_tokens", 64),
    "two columns in one": ("prepare_data.label_column", "text"),
    "columns exchanged": ("prepare_data.text_column", "label"),
    "a column that is not there": ("prepare_data.text_column", "body"),
    "a path of a column that is text": ("prepare_data.text_column", "text.body"),
    "a folder that is not there": ("fetch_sources.teacher.folder", "models/none"),
    "a folder outside": ("fetch_sources.teacher.folder", "../models"),
    "a folder by its whole path": ("fetch_sources.teacher.folder", "/etc"),
    "a file for a folder": ("fetch_sources.teacher.folder", "data"),
    "a file outside": ("fetch_sources.data.train", "../train.csv"),
    "a file that is not there": ("fetch_sources.data.test", "data/none.csv"),
    "a layer more": ("train_teacher.layers", 3),
    "another width": ("train_teacher.hidden_size", 64),
    "more heads": ("train_teacher.attention_heads", 4),
    "a wider layer": ("train_teacher.intermediate_size", 128),
    "an unknown kind": ("fetch_sources.data.kind", "ftp"),
    "an unknown format": ("fetch_sources.data.format.kind", "xlsx"),
}


def mutations() -> Iterator[Mutation]:
    for section, fields in FIELDS.items():
        for field in fields:
            name = f"{section}.{field}"
            yield Mutation("recipe: field removed", name, _removing(section, field))
            yield Mutation("recipe: key renamed", name, _renaming(section, field))
            for what in ODD:
                title = f"{name} is {what}"
                yield Mutation("recipe: field typed otherwise", title, _odd(section, field, what))
    for field, values in FREE.items():
        for value in values:
            yield Mutation("recipe: field set", f"{field} is {value}", _free(field, value))
    for title, (place, value) in SET.items():
        yield Mutation("recipe: at odds", title, _at_odds(place, value))
    yield Mutation("recipe: at odds", "the format of another file", _other_format)


def _section(case: Case, name: str) -> dict[str, Any]:
    section: dict[str, Any] = case.recipe
    for part in name.split("."):
        section = section[part]
    return section


def _removing(section: str, field: str) -> Change:
    def apply(case: Case) -> Expected:
        if _section(case, section).pop(field, ...) is ...:  # a field of another format
            return harmless()
        return fatal(field)

    return apply


def _renaming(section: str, field: str) -> Change:
    def apply(case: Case) -> Expected:
        found = _section(case, section)
        found[f"{field}s"] = found.pop(field, 0)
        return fatal(field)

    return apply


def _odd(section: str, field: str, what: str) -> Change:
    """Of a field that may well be such a value the figures must be right, or it's refused."""

    def apply(case: Case) -> Expected:
        found = _section(case, section)
        if field not in found:
            found[field] = ODD[what]
            return fatal(field)
        if found[field] == ODD[what] and type(found[field]) is type(ODD[what]):
            return harmless()
        found[field] = ODD[what]
        if field == "seed":
            return either(field)
        if _fits(field, ODD[what]):
            return either(field, "train_teacher", "column", "token", "lead", "example", "teacher")
        return fatal(field, section)

    return apply


def _fits(field: str, value: Any) -> bool:
    if isinstance(value, bool) or value is None or isinstance(value, list | dict) or value == "":
        return False
    if isinstance(value, str):
        return field in ("text_column", "label_column", "train", "test", "folder")
    return field not in ("text_column", "label_column", "train", "test", "folder", "mode")


def _free(field: str, value: Any) -> Change:
    def apply(case: Case) -> Expected:
        section = "train_teacher" if field == "min_lead" else "prepare_data"
        case.recipe[section][field] = value
        if field == "train_examples":
            return harmless(sampled=True)
        if field == "min_train_examples" and value > len(case.table.train):
            return fatal(field)
        if field in ("min_lead", "max_unknown_fraction"):
            return either(field, "lead", "unknown")
        return harmless()

    return apply


def _at_odds(place: str, value: Any) -> Change:
    section, _, field = place.rpartition(".")

    def apply(case: Case) -> Expected:
        _section(case, section)[field] = value
        return fatal(field, str(value).rpartition("/")[2], "column", "label")

    return apply


def _other_format(case: Case) -> Expected:
    kinds = [kind for kind in ("csv", "tsv", "jsonl", "parquet") if kind != case.format]
    case.recipe["fetch_sources"]["data"]["format"]["kind"] = case.one_of(kinds)
    return fatal(rf"\.{case.format}", "format", "column")
