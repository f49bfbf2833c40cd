"""`stillhouse check`: every fault of one recipe, or of all of them and their list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.kd.errors import ParamsError


def check_recipes(root: Path, recipe: str | None) -> list[str]:
    """Names of the recipes found valid. Raises ParamsError with the faults of all that are not."""
    from tasks.kd.recipe.files import find_recipe

    paths = [find_recipe(recipe, root)] if recipe is not None else _find_all(root)
    faults = [fault for path in paths if (fault := _find_fault(root, path)) is not None]
    if faults:
        raise all_of(faults)
    return [path.stem for path in paths]


def all_of(faults: Sequence[ParamsError]) -> ParamsError:
    """One error that says what each of them does."""
    return faults[0] if len(faults) == 1 else ParamsError("\n".join(map(str, faults)))


def _find_all(root: Path) -> list[Path]:
    from tasks.kd.recipe.files import find_recipes, list_recipes

    listed = [root / "params" / f"{name}.yaml" for name in list_recipes(root)]
    return listed + [path for path in find_recipes(root) if path not in listed]


def _find_fault(root: Path, path: Path) -> ParamsError | None:
    from flows.sources import check_sources
    from tasks.kd.recipe.files import check_inputs, load_recipe, require_no_entry

    try:
        if not path.exists():
            require_no_entry(root, path.stem)
        recipe = load_recipe(path)
        if path.parent.resolve() == (root / "params").resolve():
            check_inputs(root, path.stem, recipe)
        check_sources(root, path, recipe)
    except ParamsError as error:
        return error
    return None
