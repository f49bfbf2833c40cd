"""Recipes and their typed models say the same, in both directions."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from ruamel.yaml import YAML

from docs.describe_params import find_models
from tasks.kd.errors import ParamsError
from tasks.kd.recipe.fields import Section
from tasks.kd.recipe.files import list_recipes, load_recipe
from tasks.kd.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for path in (ROOT / "params").glob("*.yaml") if path.stem != "recipes")
Path_ = tuple[str | int, ...]


def walk_models(model: type[Section]) -> Iterator[type[Section]]:
    """A section and all sections below it."""
    yield model
    for field in model.model_fields.values():
        for found in find_models(field.annotation):
            assert issubclass(found, Section)
            yield from walk_models(found)


MODELS = sorted(set(walk_models(Recipe)), key=lambda model: model.__name__)


def walk_fields(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Path of every key in nested mappings and lists."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        if isinstance(value, dict):
            yield (*path, key)
        if isinstance(child, dict | list | tuple):
            yield from walk_fields(child, (*path, key))


def walk_sections(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Path of every mapping, the whole recipe first."""
    if isinstance(value, dict):
        yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(child, dict | list):
            yield from walk_sections(child, (*path, key))


def find(document: Any, path: Path_) -> Any:
    """What stands at a path."""
    for key in path:
        document = document[key]
    return document


def read(path: Path) -> Any:
    """A recipe as plain mappings and lists."""
    return YAML(typ="safe").load(path)


def write(document: Any, folder: Path) -> Path:
    """A recipe file of that content."""
    path = folder / "altered.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML, and quick to write
    return path


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_section_is_frozen_strict_and_closed(model: type[Section]) -> None:
    config = model.model_config
    assert (config["frozen"], config["strict"], config["extra"]) == (True, True, "forbid")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_no_default_hides_in_a_model(model: type[Section]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.is_required()] == []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_says_what_it_means(model: type[Section]) -> None:
    """But for a variant (one literal) and a section, whose models say it."""
    silent = [
        name
        for name, field in model.model_fields.items()
        if not field.description
        and not find_models(field.annotation)
        and not (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1)
    ]
    assert silent == []


def test_there_are_recipes_and_each_that_is_listed_has_its_file() -> None:
    assert RECIPES
    assert set(list_recipes(ROOT)) <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_exactly_the_fields_of_its_models(path: Path) -> None:
    typed = load_recipe(path).model_dump(by_alias=True, mode="json")
    assert set(walk_fields(read(path))) == set(walk_fields(typed))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_leaving_out_any_field_is_refused_and_named(path: Path, tmp_path: Path) -> None:
    document = read(path)
    for field in walk_fields(document):
        altered = copy.deepcopy(document)
        del find(altered, field[:-1])[field[-1]]
        with pytest.raises(ParamsError, match=str(field[-1])):
            load_recipe(write(altered, tmp_path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_field_that_no_model_knows_is_refused_in_every_section(
    path: Path, tmp_path: Path
) -> None:
    document = read(path)
    for section in walk_sections(document):
        altered = copy.deepcopy(document)
        find(altered, section)["surprise"] = 1
        with pytest.raises(ParamsError, match="surprise"):
            load_recipe(write(altered, tmp_path))
