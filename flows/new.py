"""`stillhouse new`: a complete recipe, copied from one that exists with its comments kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.new_data import fit_data, format_of, read_training
from flows.new_shapes import fit_teacher, read_shape
from flows.presets import Preset, fit_preset, read_preset
from flows.streams import fit_streams
from tasks.kd.errors import ParamsError

if TYPE_CHECKING:
    from tasks.kd.recipe.document import Document

_FLOORS = {"min_accuracy": 0.5, "min_lead": 0.1}


@dataclass(frozen=True)
class Sources:
    """What of the copied recipe is replaced; None leaves it as it is there."""

    train: str | None = None
    test: str | None = None
    teacher: str | None = None
    text_column: str | None = None
    label_column: str | None = None


def create_recipe(
    root: Path, name: str, *, base: Path, sources: Sources, preset: str | None = None
) -> tuple[Path, list[str]]:
    """Write params/<name>.yaml and its entry of params/recipes.yaml.

    Returns the former's path, and a line for each thing that was found out. What DVC shows of the
    recipe is written to params/figures as well.
    With a preset, the student, its levels, its training and its random texts are those of
    params/presets. Raises ParamsError for a name that can't be used or is taken, for a preset that
    is not there or does not fit, and for sources that don't fit. Nothing is written unless the
    result is valid.
    """
    from flows.figures import write_figures
    from tasks.kd.recipe.document import parse_document, read_text, require_writable, write_document
    from tasks.kd.recipe.files import RECIPES_FILE, load_recipe

    path = root / "params" / f"{name}.yaml"
    _check_name(root, name, path)
    load_recipe(base)
    text, taken = read_text(base), None
    if preset is not None:
        taken = read_preset(root, preset)
        text = _with_preset(text, base, taken)
    document = parse_document(text, path)
    _rename(document.data, name, base.stem)
    _replace_sources(document.data, root, sources)
    _put_floors(document.data, sources)
    notes = _fit_sources(document.data, root, sources)
    notes += _fit_shapes(document.data, root, taken)
    listing = _check_and_list(root, path, document)
    require_writable(root / RECIPES_FILE)
    write_document(path, document.render())
    write_document(root / RECIPES_FILE, listing)
    write_figures(root)
    return path, notes


def _with_preset(text: str, base: Path, preset: Preset) -> str:
    """The text of a recipe that teaches what the preset does."""
    from tasks.kd.recipe.document import parse_yaml, replace_section

    return replace_section(text, parse_yaml(text, base), "train_student", preset.text)


def _fit_shapes(data: Any, root: Path, preset: Preset | None) -> list[str]:
    """Make the student, its levels and the streams fit the teacher; what was found out."""
    shape, notes = read_shape(data, root), list[str]()
    if preset is None:
        fit_teacher(data, shape)
    else:
        data["prepare_data"].update(preset.prepare_data)
        data["train_teacher"].update(shape)
        notes = fit_preset(data, preset)
    if shape or preset is not None:
        try:
            fit_streams(data)
        except (KeyError, TypeError, ValueError):  # the whole recipe is checked next, and says
            return notes
    return notes


def _fit_sources(document: Any, root: Path, sources: Sources) -> list[str]:
    """Fill in what can be told from the tables and the teacher at hand; what was found out."""
    from flows.label_map import note_label_map
    from flows.text_lengths import propose_length

    notes: list[str] = []
    if sources.train is not None:
        notes, rows = fit_data(document, root)
    elif sources.teacher is not None:
        rows = read_training(document, root)
    else:
        return notes
    return [*notes, *propose_length(document, root, rows), *note_label_map(document, root, rows)]


def _check_name(root: Path, name: str, path: Path) -> None:
    from tasks.kd.recipe.files import RECIPE_NAME, list_recipes

    if not re.match(RECIPE_NAME, name) or name in ("recipes", "presets"):
        raise ParamsError(
            f"a recipe can't be named {name!r}",
            expected="lower-case letters, digits, - and _, at most 32, a letter or digit first",
        )
    if path.exists() or name in list_recipes(root):
        raise ParamsError(
            "there is such a recipe already", where=path, mend=f"stillhouse check {name}"
        )


def _rename(document: Any, name: str, base: str) -> None:
    document.yaml_set_start_comment(
        f"Copied from {base}: say here what it is for.\nparams/README.md explains every field."
    )
    document["description"] = f"{name}, copied from {base}"
    document["register"]["experiment"] = name
    document["register"]["model"] = name


def _replace_sources(document: Any, root: Path, sources: Sources) -> None:
    from tasks.kd.recipe.document import replace_mapping

    if (sources.train is None) != (sources.test is None):
        raise ParamsError("a recipe needs both splits", expected="--train and --test together")
    if sources.train is not None and sources.test is not None:
        kind = format_of(root, sources.train)
        if format_of(root, sources.test) != kind:
            raise ParamsError("both splits must have one format", found=f"{sources.test}")
        table = {"kind": "path", "train": sources.train, "test": sources.test}
        replace_mapping(document["fetch_sources"], "data", {**table, "format": {"kind": kind}})
        document["prepare_data"]["train_examples"] = None  # all of them
    if sources.teacher is not None:
        folder = {"kind": "path", "folder": sources.teacher}
        replace_mapping(document["fetch_sources"], "teacher", folder)
    for field in ("text_column", "label_column"):
        if (column := getattr(sources, field)) is not None:
            document["prepare_data"][field] = column


def _put_floors(document: Any, sources: Sources) -> None:
    """What any student must show on other data than the copied recipe's, to be raised by hand."""
    if sources.train is not None:
        document["gate"].update(_FLOORS)
    if sources.train is not None or sources.teacher is not None:
        document["train_teacher"]["min_lead"] = _FLOORS["min_lead"]


def _check_and_list(root: Path, path: Path, document: Document) -> bytes:
    """The new params/recipes.yaml, once the recipe and its entry there have been found valid."""
    from flows.sources import find_source_faults
    from tasks.kd.recipe.document import on_one_line, open_document, parse_yaml
    from tasks.kd.recipe.faults import refuse
    from tasks.kd.recipe.files import RECIPES_FILE, inputs_of, parse_inputs, parse_recipe

    text = document.render().decode()
    try:
        recipe = parse_recipe(text, path)
    except ParamsError as error:
        raise ParamsError(
            f"{error}\n  Nothing is written: the lines are those it would have."
        ) from None
    listing = open_document(root / RECIPES_FILE)
    listing.data["recipes"][path.stem] = on_one_line(inputs_of(recipe))
    parse_inputs(listing.data, root / RECIPES_FILE)
    if faults := list(find_source_faults(root, recipe)):
        raise refuse(path, parse_yaml(text, path), faults)
    return listing.render()
