"""Recipes of older forms, rewritten: a step from each form to the next.

When fields of recipes change, `forms.FORM` is raised by one and a step is added here. A step is
given an older recipe and yields the changes of its text. A new field gets the value that keeps what
the recipe did; where there is none, the step yields a fault that says what a person must decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.kd.recipe.document import parse_yaml
from tasks.kd.recipe.edits import Drop, Edit, Put, Rename, Set, apply_edits
from tasks.kd.recipe.faults import Fault, Place, refuse
from tasks.kd.recipe.forms import FIRST, FORM, read_form

_FLOOR = "the loosest, as there was none: raise it"


@dataclass(frozen=True)
class Step:
    """The way from a form to the next: what changes in a recipe."""

    form: int
    changes: Callable[[Mapping[str, Any]], Iterator[Edit | Fault]]


@dataclass(frozen=True)
class Upgraded:
    """A recipe's text in the present form, and how it came there from the form that it had."""

    text: str
    form: int
    edits: tuple[Edit, ...]


def upgrade(text: str, path: Path) -> Upgraded:
    """A recipe's text in the present form; the same text if it has it.

    Raises ParamsError for what is no recipe, for one of a newer form, and, with a line for each,
    for what a person must decide first. That the result is valid is left to be checked.
    """
    data = parse_yaml(text, path)
    form = read_form(data, path)
    edits = list[Edit]()
    for step in STEPS[form - FIRST :]:
        found = list(step.changes(parse_yaml(text, path)))
        if faults := [each for each in found if isinstance(each, Fault)]:
            raise refuse(path, data, faults, wish="upgraded")
        edits += (changes := [each for each in found if not isinstance(each, Fault)])
        text = apply_edits(text, changes, path)
    if form < FORM:
        names_it = "form" in data
        last = Set((), "form", FORM) if names_it else Put((), {"form": FORM})
        edits.append(last)
        text = apply_edits(text, [last], path)
    return Upgraded(text, form, tuple(edits))


# --- 1 to 2: all fields that recipes got before they said their form ------------------------------


def _from_1(recipe: Mapping[str, Any]) -> Iterator[Edit | Fault]:
    yield from _format_from_1(recipe)
    yield from _texts_from_1(recipe)
    yield from _teacher_from_1(recipe)
    for put in _ADDED_TO_1:
        yield from _lacking(recipe, put)
    for number, _ in enumerate(_at(recipe, ("train_student", "phases")) or ()):
        place = ("train_student", "phases", number)
        fields = {"optimizer": "anew", "trained_layers": "all", "balance_every": None}
        yield from _lacking(recipe, Put(place, fields, "learning_rate"))
    initial: Place = ("train_student", "student", "initial")
    if _at(recipe, (*initial, "kind")) == "random":
        yield from _lacking(recipe, Put(initial, {"embeddings": "new"}, "kind"))


def _format_from_1(recipe: Mapping[str, Any]) -> Iterator[Edit]:
    """Tables were comma-separated and quoted, or tab-separated and never quoted."""
    place: Place = ("fetch_sources", "data", "format")
    kind = _at(recipe, (*place, "kind"))
    rest: dict[str, Any] = {"escape": None, "missing": []}
    if kind == "csv":
        quoted = {"separator": ",", "quote": '"', **rest}
        yield from _lacking(recipe, Put(place, quoted, "kind", "as csv was always read"))
    elif kind == "tsv":
        yield from _lacking(recipe, Put(place, {"quote": None, **rest}, "kind", "never quoted"))
    elif kind in ("jsonl", "parquet") and "skip_lines" in _at(recipe, place):
        yield Drop(place, "skip_lines", "which did nothing")


def _texts_from_1(recipe: Mapping[str, Any]) -> Iterator[Edit | Fault]:
    place: Place = ("prepare_data",)
    fields = {"min_train_examples": 1, "on_unreadable": "refuse", "max_unknown_fraction": 1.0}
    yield from _lacking(recipe, Put(place, fields, "on_overlap", _FLOOR))
    section = _at(recipe, place)
    if not isinstance(section, Mapping) or "vocabulary_texts" not in section:
        yield from _lacking(recipe, Put(place, {"random_texts": 0}, "on_overlap"))
    elif section["vocabulary_texts"] == 0:
        yield Rename(place, "vocabulary_texts", "random_texts")
    else:
        yield Fault(
            (*place, "vocabulary_texts"),
            "texts of max_length_tokens are no longer made. Name it random_texts, which are as "
            "long as the training texts, or write 0",
        )


def _teacher_from_1(recipe: Mapping[str, Any]) -> Iterator[Edit | Fault]:
    """A student that starts from the teacher's layers has its heads and widths."""
    place: Place = ("train_teacher",)
    names = ("attention_heads", "intermediate_size")
    teacher, student = _at(recipe, place), _at(recipe, ("train_student", "student"))
    if not isinstance(teacher, Mapping) or all(name in teacher for name in names):
        return
    if _at(recipe, ("train_student", "student", "initial", "kind")) == "teacher_layers":
        fields = {name: student[name] for name in names if name in student}
        yield from _lacking(recipe, Put(place, fields, "hidden_size", "as the student's"))
    else:
        yield Fault(
            place,
            f"write {' and '.join(names)}, which stand in the teacher's config.json, "
            "below hidden_size",
        )


_OPTIMIZER = {"ema_decay": None, "stop_after_epochs": None, "max_non_finite": 1}
_MACHINES = {
    "machines": 1,
    "machine_rank": None,
    "rendezvous": None,
    "peer_timeout_s": 600.0,
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "compile": False,
    "grad_norm_every": None,
    "profile_step": None,
}
_ADDED_TO_1 = (
    Put(("fetch_sources",), {"student": None, "more_teachers": {}}, "teacher"),
    Put(("train_teacher",), {"labels": None}, "mode"),
    Put(("train_teacher",), {"min_lead": 0.0}, "mode", _FLOOR),
    Put(("train_teacher",), {"ensemble": None}, "mode"),
    Put(("train_teacher", "optimizer"), _OPTIMIZER, "max_grad_norm"),
    Put(("cache_teacher",), {"mode": "cache"}),
    Put(("cache_teacher",), {"recompute": "projections"}, "max_relative_error"),
    Put(("train_student", "student"), {"family": None}),
    Put(("train_student", "optimizer"), _OPTIMIZER, "max_grad_norm"),
    Put(("gate",), {"min_accuracy": 0.0, "min_lead": 0.0}, None, _FLOOR),
    Put(("compute",), _MACHINES, "threads"),
    Put(("compute",), {"live_curves_every_s": None, "copies_gib": 20.0}, "checkpoint_every_s"),
)


def _lacking(recipe: Mapping[str, Any], put: Put) -> Iterator[Put]:
    """The fields of it that a recipe has not, in a section that it has."""
    section = _at(recipe, put.place)
    if isinstance(section, Mapping):
        fields = {name: value for name, value in put.fields.items() if name not in section}
        if fields:
            yield Put(put.place, fields, put.after, put.why)


def _at(recipe: Any, place: Place) -> Any:
    """What stands at a place; None where there is no such place."""
    for part in place:
        is_inside = isinstance(recipe, Mapping) and part in recipe
        if not is_inside and not (isinstance(recipe, list) and isinstance(part, int)):
            return None
        recipe = recipe[part]
    return recipe


STEPS = (Step(1, _from_1),)
