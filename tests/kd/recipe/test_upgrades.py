"""Recipes of older forms, as they stood in this repository, in the present one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.kd.errors import ParamsError
from tasks.kd.recipe.edits import Put
from tasks.kd.recipe.files import load_recipe, parse_recipe
from tasks.kd.recipe.forms import FORM
from tasks.kd.recipe.upgrades import upgrade

OLDER = sorted((Path(__file__).parent / "older").glob("*.yaml"))  # quickstart.yaml, since it exists
PATH = Path("params/quickstart.yaml")
# The quickstart's own values of fields that were added; an older recipe gets what it did before.
LOOSE = {
    "  min_train_examples: 4000": "  min_train_examples: 1",
    "  max_unknown_fraction: 0.02": "  max_unknown_fraction: 1.0",
    "  min_lead: 0.1": "  min_lead: 0.0",
    "    max_non_finite: 3": "    max_non_finite: 1",
    "  min_accuracy: 0.9": "  min_accuracy: 0.0",
    "  min_lead: 0.7": "  min_lead: 0.0",
}


def read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def within(old: Any, new: Any) -> bool:
    """Whether all that an old value says stands in the new one."""
    if isinstance(old, Mapping):
        return all(key in new and within(value, new[key]) for key, value in old.items())
    if isinstance(old, list) and old and isinstance(old[0], Mapping):
        return len(old) == len(new) and all(map(within, old, new))
    return bool(old == new)


def test_there_are_ten_older_quickstarts_none_of_which_is_run_as_it_is() -> None:
    assert len(OLDER) == 10
    for path in OLDER:
        with pytest.raises(ParamsError, match="the recipe is of an older form"):
            parse_recipe(path.read_text(), PATH)


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_an_older_recipe_becomes_the_present_one_and_keeps_what_it_said(
    path: Path, root: Path
) -> None:
    text = path.read_text()
    upgraded = upgrade(text, PATH)
    parse_recipe(upgraded.text, PATH)
    old = text.replace("vocabulary_texts", "random_texts")
    assert within(read(old), read(upgraded.text))
    # Line by line: nothing is lost, and what is new stands where the quickstart has it today.
    said = list(difflib.ndiff(old.splitlines(), upgraded.text.splitlines()))
    assert [line for line in said if line[0] in "-?"] == []
    expected = (root / PATH).read_text()
    for today, loose in LOOSE.items():
        if today not in text:
            expected = expected.replace(today, loose)
    unlike = [
        line for line in difflib.ndiff(expected.splitlines(), upgraded.text.splitlines())
        if line[0] in "+-"
    ]  # fmt: skip
    assert all("  train_examples: " in line for line in unlike), unlike
    assert upgraded.form == 1
    assert upgrade(upgraded.text, PATH).edits == ()


def test_what_has_all_fields_gets_the_form_alone() -> None:
    upgraded = upgrade(OLDER[-1].read_text(), PATH)
    assert upgraded.edits == (Put((), {"form": FORM}),)


def test_a_form_that_is_written_is_replaced() -> None:
    text = "# why\nform: 1   # so far\n" + OLDER[-1].read_text()
    changed = upgrade(text, PATH).text
    assert changed == text.replace("form: 1 ", f"form: {FORM} ")
    parse_recipe(changed, PATH)


def test_comments_quotes_order_and_widths_stay() -> None:
    text = (
        OLDER[0]
        .read_text()
        .replace("  seed: 7\n\ntrain_teacher", "  seed:   7   # by hand\n\ntrain_teacher")
    )
    text = text.replace("description: Reuters", "description:    'Reuters").replace(
        "3-layer student\n\n", "3-layer student'\n\n"
    )
    text = text.replace("gate:\n", "gate: # strict\n  # the least\n")
    changed = upgrade(text, PATH).text
    for line in text.splitlines():
        assert line in changed.splitlines()
    assert "gate: # strict\n  # the least\n  min_accuracy: 0.0\n" in changed
    parse_recipe(changed, PATH)


# --- fields that the quickstart has not ----------------------------------------------------------


def change(number: int, *changes: tuple[str, str]) -> str:
    text = OLDER[number].read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


REST: dict[str, Any] = {"escape": None, "missing": [], "skip_lines": 2}


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        ("kind: csv\n      skip_lines: 2", {**REST, "separator": ",", "quote": '"'}),
        ("kind: tsv\n      skip_lines: 2", {**REST, "quote": None}),
        ("kind: jsonl\n      skip_lines: 0", {}),
        ("skip_lines: 0\n      kind: parquet", {}),
    ],
)
def test_a_table_is_read_as_it_was(layout: str, fields: dict[str, Any]) -> None:
    text = change(0, ("kind: tsv\n      skip_lines: 2", layout))
    changed = upgrade(text, PATH).text
    found = read(changed)["fetch_sources"]["data"]["format"]
    assert {key: value for key, value in found.items() if key != "kind"} == fields
    parse_recipe(changed, PATH)


NEW = ("      kind: teacher_layers\n      layers: uniform\n", "      kind: random\n")


def test_a_new_student_has_new_embeddings() -> None:
    changed = upgrade(change(3, NEW), PATH).text
    assert "      kind: random\n      embeddings: new\n" in changed
    parse_recipe(changed, PATH)


def told_of(text: str) -> str:
    with pytest.raises(ParamsError) as caught:
        upgrade(text, PATH)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_teacher_s_heads_that_nothing_says_are_asked_for() -> None:
    text = change(0, NEW)
    line = text.splitlines().index("train_teacher:") + 1
    said = f"quickstart.yaml can't be upgraded:\n  {PATH}:{line}: train_teacher: write "
    assert told_of(text).startswith(f"{said}attention_heads and intermediate_size, which stand in")


def test_texts_that_are_no_longer_made_are_asked_about() -> None:
    text = change(6, ("vocabulary_texts: 0", "vocabulary_texts: 3"))
    line = text.splitlines().index("  vocabulary_texts: 3") + 1
    assert f"{PATH}:{line}: prepare_data.vocabulary_texts: texts of max_length" in told_of(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("form: 3\n", "this stillhouse is too old for the recipe: params/quickstart.yaml:1. Exp"),
        ("a: 1\nform: two\n", "not the number of a recipe's form: params/quickstart.yaml:2"),
        ("form: true\n", "found True"),
        ("form: 0\n", "found 0"),
        ("form: 2.0\n", "found 2.0"),
        ("form: null\n", "found None"),
        ("- 1\n", "a recipe is a mapping of sections"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_what_is_no_older_recipe_is_refused_here_and_where_it_is_read(
    text: str, said: str, tmp_path: Path
) -> None:
    assert said in told_of(text)
    path = tmp_path / "changed.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_recipe(path)
    assert said.replace(str(PATH), str(path)) in str(caught.value)


def test_an_empty_recipe_is_of_the_first_form_and_gets_nothing_but_the_form() -> None:
    assert upgrade("{}", PATH).text == "{form: 2}"
