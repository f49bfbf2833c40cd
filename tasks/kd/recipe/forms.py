"""The form of a recipe's file: a whole number, raised when fields of recipes change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.kd.errors import ParamsError
from tasks.kd.recipe.faults import locate

FORM = 2  # the form that this program reads; `upgrades.py` has a step to it from each older one
FIRST = 1  # the form of recipes that don't say theirs


def read_form(document: Any, path: Path) -> int:
    """The form of a recipe that this program knows. Raises ParamsError for any other."""
    if not isinstance(document, dict):
        raise ParamsError("a recipe is a mapping of sections", where=path)
    form = document.get("form", FIRST)
    where = f"{path}:{locate(('form',), document)}"
    if not isinstance(form, int) or isinstance(form, bool) or form < FIRST:
        raise ParamsError(
            "form is not the number of a recipe's form",
            where=where,
            expected=f"form: {FORM}",
            found=repr(form),
        )
    if form > FORM:
        raise ParamsError(
            "this stillhouse is too old for the recipe",
            where=where,
            expected=f"form: {FORM}",
            found=f"form: {form}",
            advice="Install a newer stillhouse.",
        )
    return form


def require_form(document: Any, path: Path) -> None:
    """Raise ParamsError unless a recipe is of the present form."""
    form = read_form(document, path)
    if form == FORM:
        return
    name = path.stem if path.parent.name == "params" else path
    raise ParamsError(
        "the recipe is of an older form",
        where=path,
        expected=f"form: {FORM} as its first field",
        found=f"form: {form}" if "form" in document else "no form",
        mend=f"stillhouse upgrade {name}",
    )
