"""Whoever changes fields of recipes raises their form and brings the step to it.

`forms.json` has the fields of each form. After a new kind of level, source or start, which no older
recipe has, `python -m tests.contracts.test_forms` writes them into it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from docs.describe_params import find_models
from tasks.kd.recipe.fields import Section
from tasks.kd.recipe.files import load_recipe
from tasks.kd.recipe.forms import FIRST, FORM
from tasks.kd.recipe.recipe import Recipe
from tasks.kd.recipe.upgrades import STEPS

SNAPSHOT = Path(__file__).parent / "forms.json"
KINDS = ("kind", "level", "loss", "logits", "rule")  # fields that say which model is meant
Forms = dict[str, dict[str, list[str]]]


def list_fields(model: type[Section], place: str = "recipe") -> Iterator[tuple[str, list[str]]]:
    """Each mapping of a recipe, by place and kind, with the names of its fields."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    kinds = [choices(field.annotation) for name, field in fields.items() if name in KINDS]
    for kind in itertools.product(*kinds):
        yield ".".join([place, *kind]), sorted(fields)
    for name, field in fields.items():
        for inner in find_models(field.annotation):
            assert issubclass(inner, Section)
            yield from list_fields(inner, f"{place}.{name}")


def choices(annotation: Any) -> tuple[str, ...]:
    """What a field may say."""
    assert get_origin(annotation) is Literal
    return get_args(annotation)


def find_faults(now: dict[str, list[str]], forms: Forms) -> list[str]:
    """What the form does not have as the snapshot has it."""
    then = forms.get(str(FORM))
    if then is None:
        return [f"form {FORM} is not in {SNAPSHOT.name}: python -m tests.contracts.test_forms"]
    changed = [place for place, fields in then.items() if now.get(place) != fields]
    faults = [f"{place}: raise FORM and bring a step (upgrades.py)" for place in changed]
    new = [place for place in now if place not in then]
    return faults + [f"{place}: python -m tests.contracts.test_forms" for place in new]


def present() -> dict[str, list[str]]:
    return dict(sorted(list_fields(Recipe)))


def read_snapshot() -> Forms:
    forms: Forms = json.loads(SNAPSHOT.read_text())
    return forms


def test_fields_of_recipes_are_those_of_their_form() -> None:
    assert find_faults(present(), read_snapshot()) == []


@pytest.mark.parametrize(
    ("place", "fields", "said"),
    [
        ("recipe.gate", ["min_accuracy"], "recipe.gate: raise FORM and bring a step (upgrades.py)"),
        ("recipe.train_student.phases.levels.hidden.mse", None, "raise FORM and bring a step"),
        ("recipe.heads", ["kind"], "recipe.heads: python -m tests.contracts.test_forms"),
    ],
)
def test_fields_that_change_without_a_new_form_are_found(
    place: str, fields: list[str] | None, said: str
) -> None:
    changed = {**present(), place: fields}
    (fault,) = find_faults({k: v for k, v in changed.items() if v is not None}, read_snapshot())
    assert said in fault


def test_a_new_form_is_written_down() -> None:
    assert "is not in forms.json" in find_faults(present(), {})[0]


def test_steps_lead_from_the_first_form_to_the_present_one() -> None:
    assert [step.form for step in STEPS] == list(range(FIRST, FORM))


def test_the_form_is_one_number_and_the_first_field(root: Path) -> None:
    assert get_args(Recipe.model_fields["form"].annotation) == (FORM,)
    assert next(iter(Recipe.model_fields)) == "form"
    for path in (root / "params").glob("*.yaml"):
        if path.stem != "recipes":
            lines = (line for line in path.read_text().splitlines() if not line.startswith("#"))
            assert next(lines) == f"form: {FORM}"
            load_recipe(path)


def main() -> None:
    """Write the fields of the present form; those that it had before must be as they were."""
    forms = read_snapshot() if SNAPSHOT.is_file() else {}
    known = forms.get(str(FORM), {})
    changed = [place for place, fields in known.items() if present().get(place) != fields]
    if changed:
        sys.exit(f"{', '.join(changed)} changed: raise FORM and bring a step (upgrades.py)")
    written = {**forms, str(FORM): present()}
    SNAPSHOT.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
