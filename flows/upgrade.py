"""`stillhouse upgrade`: recipes of older forms rewritten, and their entries in the list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    from tasks.kd.recipe.files import RECIPES_FILE, find_recipe, find_recipes, require_no_entry

    changes, refused = list[Change](), list[ParamsError]()
    if recipe is not None:
        paths = [find_recipe(recipe, root)]
    else:
        listed = [root / "params" / f"{name}.yaml" for name in _read_entries(root / RECIPES_FILE)]
        paths = sorted({*find_recipes(root), *listed})
    for path in paths:
        try:
            if not path.exists():
                require_no_entry(root, path.stem)
            changes.append(_upgrade(root, path, dry_run=dry_run))
        except ParamsError as error:
            refused.append(error)
    return changes, refused


def _read_entries(listing: Path) -> Mapping[str, Any]:
    """The entries of the list, whatever their shape; none where there is no list."""
    from tasks.kd.recipe.document import read_yaml

    document = read_yaml(listing) if listing.exists() else {"recipes": {}}
    entries = document.get("recipes") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ParamsError("a mapping `recipes:` is missing", where=listing)
    return entries


def _upgrade(root: Path, path: Path, *, dry_run: bool) -> Change:
    from tasks.kd.recipe.document import parse_yaml, read_text, require_writable, write_document
    from tasks.kd.recipe.edits import apply_edits
    from tasks.kd.recipe.files import RECIPES_FILE
    from tasks.kd.recipe.upgrades import upgrade

    text, listing = read_text(path), root / RECIPES_FILE
    document, upgraded = parse_yaml(text, path), upgrade(text, path)
    recipe = _validate(upgraded, path, document)
    is_listed = path.parent.resolve() == listing.parent.resolve()
    entry = list(_missing_inputs(listing, path.stem, recipe)) if is_listed else []
    new = parse_yaml(upgraded.text, path)
    stages = _find_stages(root, path, document, new) if is_listed else ()
    written = {path: upgraded.text} if upgraded.edits else {}
    written |= {listing: apply_edits(read_text(listing), entry, listing)} if entry else {}
    for file in written:
        require_writable(file)
    for file, content in written.items() if not dry_run else ():
        write_document(file, content.encode())
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
    from tasks.kd.recipe.edits import Put
    from tasks.kd.recipe.files import INPUTS, inputs_of

    entry = _read_entries(listing).get(name)
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
