"""`stillhouse upgrade`: recipes of older forms rewritten, and their entries in the list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.kd.errors import ParamsError

if TYPE_CHECKING:
    from tasks.kd.recipe.edits import Put
    from tasks.kd.recipe.recipe import Recipe
    from tasks.kd.recipe.upgrades import Upgraded


@dataclass(frozen=True)
class Change:
    """An upgrade's changes to a recipe, and the stages that DVC runs again for them."""

    recipe: str
    form: int  # before the upgrade
    changes: tuple[str, ...]
    stages: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return asdict(self)

    def describe(self) -> list[str]:
        """The change in words, as lines."""
        from tasks.kd.recipe.forms import FORM

        if not self.changes:
            return [f"{self.recipe}: of form {FORM}, nothing to change."]
        ending = "Nothing has to be trained again: no stage reads what has changed."
        if self.stages:
            ending = (
                f"DVC runs again: {', '.join(self.stages)}, whose sections have changed; stages "
                "after them only where these make something else."
            )
        head = f"{self.recipe}: from form {self.form} to form {FORM}."
        if self.form == FORM:
            head = f"{self.recipe}: its entry in the list."
        return [head, *(f"  {line}" for line in self.changes), f"  {ending}"]


def upgrade_recipes(
    root: Path, recipe: str | None, *, dry_run: bool
) -> tuple[list[Change], list[ParamsError]]:
    """Bring a recipe, or all of params/, to the present form; return changes and refusals.

    A recipe that can't be upgraded, or would not be valid afterwards, stays as it is.
    """
    from tasks.kd.recipe.files import find_recipe

    paths = [find_recipe(recipe, root)] if recipe is not None else _find_all(root)
    changes, refused = list[Change](), list[ParamsError]()
    for path in paths:
        try:
            changes.append(_upgrade(root, path, dry_run=dry_run))
        except ParamsError as error:
            refused.append(error)
    return changes, refused


def _find_all(root: Path) -> list[Path]:
    from tasks.kd.recipe.files import RECIPES_FILE

    return sorted(set((root / "params").glob("*.yaml")) - {root / RECIPES_FILE})


def _upgrade(root: Path, path: Path, *, dry_run: bool) -> Change:
    from tasks.kd.digests import write_bytes
    from tasks.kd.recipe.document import parse_yaml, read_text
    from tasks.kd.recipe.edits import apply_edits
    from tasks.kd.recipe.files import RECIPES_FILE
    from tasks.kd.recipe.upgrades import upgrade

    text, listing = read_text(path), root / RECIPES_FILE
    document, upgraded = parse_yaml(text, path), upgrade(text, path)
    recipe = _validate(upgraded, path, document)
    is_listed = path.resolve().parent == listing.resolve().parent and listing.is_file()
    entry = list(_missing_inputs(listing, path.stem, recipe)) if is_listed else []
    stages = _find_stages(root, path, document, parse_yaml(upgraded.text, path))
    if upgraded.edits and not dry_run:
        write_bytes(path, upgraded.text.encode())
    if entry and not dry_run:
        write_bytes(listing, apply_edits(read_text(listing), entry).encode())
    told = [str(edit) for edit in upgraded.edits] + [f"{RECIPES_FILE}: {edit}" for edit in entry]
    return Change(path.stem, upgraded.form, tuple(told), tuple(stages))


def _validate(upgraded: Upgraded, path: Path, document: Any) -> Recipe:
    """The recipe that would be written. Faults have the lines of the document that is there."""
    from tasks.kd.recipe.files import parse_recipe

    try:
        return parse_recipe(upgraded.text, path, read_from=document)
    except ParamsError as error:
        if not upgraded.edits:
            raise
        raise ParamsError(f"{error}\n  It is left as it was: mend these first.") from None


def _missing_inputs(listing: Path, name: str, recipe: Recipe) -> Iterator[Put]:
    """The edit that adds the inputs that the recipe's entry in the list lacks."""
    from tasks.kd.recipe.document import read_yaml
    from tasks.kd.recipe.edits import Put
    from tasks.kd.recipe.files import INPUTS, inputs_of

    entries = read_yaml(listing).get("recipes")
    entry = entries.get(name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict):
        return  # `stillhouse check` says what to write
    wanted = inputs_of(recipe)
    missing = {key: wanted[key] for key in INPUTS if key not in entry}
    if missing:
        yield Put(("recipes", name), missing, next(reversed(entry), None))


def _find_stages(root: Path, path: Path, old: Any, new: Any) -> Iterator[str]:
    """The stages that track a changed field of the recipe."""
    from tasks.kd.recipe.document import read_yaml

    for name, stage in (read_yaml(root / "dvc.yaml").get("stages") or {}).items():
        each = stage.get("do", stage)
        for params in each.get("params", ()):
            for file, fields in params.items() if isinstance(params, dict) else ():
                is_ours = file in ("params/${key}.yaml", f"params/{path.name}")
                if is_ours and any(_field(old, field) != _field(new, field) for field in fields):
                    yield name


def _field(document: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document
