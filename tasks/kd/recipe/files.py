"""Finding and reading recipes: every fault at once, each with its file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from tasks.kd.errors import ParamsError
from tasks.kd.recipe.recipe import Recipe
from tasks.kd.recipe.sources import PathData, PathModel, is_pattern, is_repository_path

RECIPE_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"
RECIPES_FILE = Path("params/recipes.yaml")
REMOTE = "params/remote"
_INPUTS = ("train", "test", "teacher", "student", "more_teachers")


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
    raise ParamsError(
        f"no recipe {name_or_path!r}",
        expected=f"one of {', '.join(list_recipes(root)) or 'none so far'}, or a path",
        mend=f"stillhouse new {name_or_path}" if re.fullmatch(RECIPE_NAME, name_or_path) else None,
    )


def load_recipe(path: Path) -> Recipe:
    """The recipe of a file, fully validated.

    Raises ParamsError with one line per fault, `file:line: field: what is wrong`.
    """
    if not re.fullmatch(RECIPE_NAME, path.stem):
        raise ParamsError(
            f"a recipe can't be named {path.stem!r}",
            where=path,
            expected="lower-case letters, digits, - and _, at most 32, a letter or digit first",
        )
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ParamsError("a recipe is a mapping of sections", where=path)
    try:
        return Recipe.model_validate_json(_as_json(document, path))
    except ValidationError as error:
        lines = [_describe(fault, document, path) for fault in error.errors()]
        raise ParamsError("\n".join([f"{path.name} can't be run:", *lines])) from None


def list_recipes(root: Path) -> list[str]:
    """Names of the recipes that dvc.yaml makes stages for, in the order of params/recipes.yaml."""
    return list(read_inputs(root))


def read_inputs(root: Path) -> dict[str, dict[str, str]]:
    """What params/recipes.yaml says: for each recipe the local files that its sources read.

    Raises ParamsError for a name or an entry that must not reach DVC's templating, which runs
    what it interpolates in a shell.
    """
    path = root / RECIPES_FILE
    document = read_yaml(path)
    entries = document.get("recipes") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ParamsError("a mapping `recipes:` is missing", where=path)
    for name, inputs in entries.items():
        if not isinstance(name, str) or not re.fullmatch(RECIPE_NAME, name):
            raise ParamsError(f"a recipe can't be named {name!r}", where=path)
        if not isinstance(inputs, dict) or set(inputs) != set(_INPUTS):
            raise ParamsError(f"entry {name!r} must have exactly {', '.join(_INPUTS)}", where=path)
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


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 document with line numbers kept. Raises ParamsError with file and line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError("no such file", where=path) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ParamsError(f"{path}{line}: not valid YAML, {problem}") from None
    except (UnicodeDecodeError, YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ParamsError("not YAML in UTF-8", where=path, found=problem) from None


def _check_input(entry: object, path: Path) -> None:
    if not isinstance(entry, str) or not is_repository_path(entry):
        raise ParamsError(
            f"{entry!r} is not a path inside this repository",
            where=path,
            expected="letters, digits, blanks and ._-/ only, no `..`",
        )


def _as_json(document: Any, path: Path) -> str:
    try:
        return json.dumps(document)
    except TypeError as error:
        raise ParamsError("a value is no text, number, list or mapping", where=path) from error


def _describe(fault: Any, document: Any, path: Path) -> str:
    """One line of a ParamsError: `  file:line: field: what is wrong, found ...`."""
    place, line = locate(fault["loc"], document)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "unknown field"
    elif fault["type"] == "missing":
        message = "is missing"
    elif fault["type"] != "value_error":
        message += f", found {json.dumps(fault['input'], default=str)[:80]}"
    return f"  {path}:{line}: {place or 'recipe'}: {message}"


def locate(location: Sequence[int | str], document: Any) -> tuple[str, int]:
    """Dotted name and 1-based line of a fault; union tags in the location are passed over."""
    node, line, names = document, 1, []
    for depth, part in enumerate(location):
        inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if inside:
            if part in node.lc.data:  # what a merge key brings in has no line of its own
                line = int(node.lc.data[part][0]) + 1
            node = node[part]
        if inside or (depth == len(location) - 1 and isinstance(part, str) and "[" not in part):
            names.append(str(part))
    return ".".join(names), line
