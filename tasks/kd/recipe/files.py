"""Finding and reading recipes: every fault at once, each with its file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from tasks.kd.errors import ParamsError
from tasks.kd.recipe.document import parse_yaml, read_yaml
from tasks.kd.recipe.faults import Fault, field_faults, refuse, unfit_faults, wrong_sections
from tasks.kd.recipe.fields import Section
from tasks.kd.recipe.forms import require_form
from tasks.kd.recipe.recipe import Recipe
from tasks.kd.recipe.rules import broken_rules
from tasks.kd.recipe.sources import PathData, PathModel, is_pattern, is_repository_path

RECIPE_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"
RECIPES_FILE = Path("params/recipes.yaml")
REMOTE = "params/remote"
INPUTS = ("train", "test", "teacher", "student", "more_teachers")


def find_recipe(name_or_path: str, root: Path) -> Path:
    """The file of a recipe that is given by name or by path."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        found = path if path.is_absolute() or path.exists() else root / path
        if found.is_file():
            return found
    elif re.fullmatch(RECIPE_NAME, name_or_path):
        found = root / "params" / f"{name_or_path}.yaml"
        if found.is_file():
            return found
        require_no_entry(root, name_or_path)
    raise ParamsError(
        f"no recipe {name_or_path!r}",
        expected=f"one of {', '.join(_list_entries(root)) or 'none so far'}, or a path",
        mend=f"stillhouse new {name_or_path}" if re.fullmatch(RECIPE_NAME, name_or_path) else None,
    )


def find_recipes(root: Path) -> list[Path]:
    """The files of all recipes of params/, in order of their names."""
    return sorted(set((root / "params").glob("*.yaml")) - {root / RECIPES_FILE})


def require_no_entry(root: Path, name: str) -> None:
    """Raise ParamsError for the name of a recipe that is listed and has no file."""
    if name in _list_entries(root):
        raise ParamsError(
            f"recipe {name} is listed in {RECIPES_FILE} and has no file",
            where=root / "params" / f"{name}.yaml",
            advice=f"Bring it back, or take its line out of {RECIPES_FILE}.",
        )


def _list_entries(root: Path) -> list[str]:
    """The names in the list, of which entries may be wrong; none if there is no such list."""
    try:
        document = read_yaml(root / RECIPES_FILE)
    except ParamsError:
        return []
    entries = document.get("recipes") if isinstance(document, dict) else None
    return list(map(str, entries)) if isinstance(entries, dict) else []


def load_recipe(path: Path) -> Recipe:
    """The recipe of a file, fully validated.

    Raises ParamsError with one line per fault, `file:line: field: what is wrong`, or with the
    command that upgrades a recipe of an older form.
    """
    return _validate(read_yaml(path), path)


def parse_recipe(text: str, path: Path, *, read_from: Any = None) -> Recipe:
    """The recipe of a text that is to be in that file. Raises ParamsError as `load_recipe` does.

    Faults have the lines of the document `read_from`, if there is one that the text came from.
    """
    return _validate(parse_yaml(text, path), path, read_from)


def _validate(document: Any, path: Path, read_from: Any = None) -> Recipe:
    if not re.fullmatch(RECIPE_NAME, path.stem):
        raise ParamsError(
            f"a recipe can't be named {path.stem!r}",
            where=path,
            expected="lower-case letters, digits, - and _, at most 32, a letter or digit first",
        )
    require_form(document, path)
    if unfit := list(unfit_faults(document)):
        raise refuse(path, read_from or document, unfit)
    try:
        return Recipe.model_validate_json(json.dumps(document))
    except ValidationError as error:
        faults, untold = _find_faults(error, document)
        raise refuse(path, read_from or document, faults, *untold) from None


def _find_faults(error: ValidationError, document: Any) -> tuple[list[Fault], list[str]]:
    """Faults of fields, and those between the sections that have none; what was not looked at."""
    faults, wrong = field_faults(error, document), list(wrong_sections(error))
    sections: dict[str, Section] = {}
    for name, field in Recipe.model_fields.items():
        kind, title = field.annotation, field.alias or name
        if title not in wrong and isinstance(kind, type) and issubclass(kind, Section):
            sections[name] = kind.model_validate_json(json.dumps(document[title]))
    untold = [f"  Rules about {', '.join(wrong)} are checked once these are mended."]
    return [*faults, *broken_rules(sections)], untold if wrong else []


def list_recipes(root: Path) -> list[str]:
    """Names of the recipes that dvc.yaml makes stages for, in the order of params/recipes.yaml."""
    return list(read_inputs(root))


def read_inputs(root: Path) -> dict[str, dict[str, str]]:
    """What params/recipes.yaml says: for each recipe the local files that its sources read.

    Raises ParamsError as `parse_inputs` does.
    """
    return parse_inputs(read_yaml(root / RECIPES_FILE), root / RECIPES_FILE)


def parse_inputs(document: Any, path: Path) -> dict[str, dict[str, str]]:
    """What the document of such a file says.

    Raises ParamsError for a name or an entry that must not reach DVC's templating, which runs
    what it interpolates in a shell.
    """
    entries = document.get("recipes") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ParamsError("a mapping `recipes:` is missing", where=path)
    for name, inputs in entries.items():
        if not isinstance(name, str) or not re.fullmatch(RECIPE_NAME, name):
            raise ParamsError(f"a recipe can't be named {name!r}", where=path)
        if not isinstance(inputs, dict) or set(inputs) != set(INPUTS):
            is_older = isinstance(inputs, dict) and set(inputs) < set(INPUTS)
            raise ParamsError(
                f"entry {name!r} must have exactly {', '.join(INPUTS)}",
                where=path,
                mend=f"stillhouse upgrade {name}" if is_older else None,
            )
        for entry in inputs.values():
            _check_input(entry, path)
    return {name: {key: str(value) for key, value in e.items()} for name, e in entries.items()}


def inputs_of(recipe: Recipe) -> dict[str, str]:
    """The entry of params/recipes.yaml that a recipe's sources ask for."""
    data, teacher = recipe.fetch_sources.data, recipe.fetch_sources.teacher
    student = recipe.fetch_sources.student
    return {
        "train": _listed(data.train) if isinstance(data, PathData) else REMOTE,
        "test": _listed(data.test) if isinstance(data, PathData) else REMOTE,
        "teacher": teacher.folder if isinstance(teacher, PathModel) else REMOTE,
        "student": student.folder if isinstance(student, PathModel) else REMOTE,
        "more_teachers": recipe.fetch_sources.more_folder or REMOTE,
    }


def _listed(named: str) -> str:
    """What DVC watches of a split: its file or folder, or the folder that a pattern's parts are in.

    The list itself holds no wildcard: DVC would take it for a file's name.
    """
    place = PurePosixPath(named)
    return str(place.parent if is_pattern(named) else place)


def check_inputs(root: Path, name: str, recipe: Recipe) -> None:
    """Raise ParamsError unless params/recipes.yaml lists the recipe with its local files."""
    listed, wanted = read_inputs(root).get(name), inputs_of(recipe)
    if listed != wanted:
        entry = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        raise ParamsError(
            f"recipe {name} is not listed as its sources are",
            where=RECIPES_FILE,
            expected=f"the line `  {name}: {{{entry}}}`",
            found="no entry" if listed is None else str(listed),
        )


def _check_input(entry: object, path: Path) -> None:
    if not isinstance(entry, str) or not is_repository_path(entry):
        raise ParamsError(
            f"{entry!r} is not a path inside this repository",
            where=path,
            expected="letters, digits, blanks and ._-/ only, no `..`",
        )
