"""`stillhouse upgrade`: old recipes come into the present form, or stay as they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from tasks.kd.recipe.files import check_inputs, load_recipe
from tests.isolation import ROOT

OLDER = ROOT / "tests" / "kd" / "recipe" / "older"
FIRST_LIST = """\
# by hand
recipes:
  old: {train: params/remote, test: params/remote, teacher: params/remote}   # the first
"""
KILLED = """
import os, signal
from pathlib import Path
from flows.cli import main

rename, left = Path.replace, {renames}

def end(path, target):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(path, target)

Path.replace = end
main(["upgrade", "old"])
"""


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipes of a repository: of the first release, the last one, and the present form."""
    params = tmp_path / "params"
    params.mkdir()
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(OLDER / "01.yaml", params / "old.yaml")
    shutil.copy(OLDER / "10.yaml", params / "last.yaml")
    shutil.copy(ROOT / "params" / "quickstart.yaml", params / "now.yaml")
    (params / "recipes.yaml").write_text(FIRST_LIST)
    monkeypatch.chdir(tmp_path)
    return params


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def contents(params: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in params.iterdir()}


@pytest.mark.parametrize(
    "arguments", [("check", "old"), ("plan", "old"), ("run", "old"), ("check",)]
)
def test_an_old_recipe_is_refused_with_the_command_that_upgrades_it(
    params: Path, arguments: tuple[str, ...]
) -> None:
    (params / "recipes.yaml").write_text(FIRST_LIST.replace("}", ", student: a, more_teachers: a}"))
    (params / "last.yaml").unlink()
    (params / "now.yaml").unlink()
    result = ask(*arguments)
    assert result.exit_code == 2
    said = f"Error: the recipe is of an older form: {params}/old.yaml. Expected form: 2 as its "
    line = f"{said}first field, found no form. Run: stillhouse upgrade old"
    assert result.stderr.splitlines()[0] == line
    assert result.stderr.count("old.yaml") == 1


def test_one_that_is_old_or_newer_or_gone_is_told_beside_the_good_one(params: Path) -> None:
    entry = "{train: params/remote, test: params/remote, teacher: params/remote, student: a, "
    lines = [f"  {name}: {entry}more_teachers: a}}\n" for name in ("old", "newer", "gone", "now")]
    (params / "recipes.yaml").write_text(
        "recipes:\n" + "".join(lines).replace(" a", " params/remote")
    )
    text = (params / "now.yaml").read_text()
    (params / "newer.yaml").write_text(text.replace("form: 2", "form: 9"))
    said = ask("status").stdout.splitlines()
    for begin in (
        f"old: the recipe is of an older form: {params}/old.yaml. Expected form: 2",
        f"newer: this stillhouse is too old for the recipe: {params}/newer.yaml:4. Expected form",
        f"gone: recipe gone is listed in params/recipes.yaml and has no file: {params}/gone.yaml.",
    ):
        assert sum(line.startswith(begin) for line in said) == 1
    assert ask("check", "now").stdout == "valid: now\n"


def test_an_old_recipe_is_not_copied(params: Path) -> None:
    (params / "recipes.yaml").write_text(FIRST_LIST.replace("}", ", student: a, more_teachers: a}"))
    result = ask("new", "triage", "--from", "last")
    assert result.exit_code == 2
    assert "found no form. Run: stillhouse upgrade last\n" in result.stderr
    assert not (params / "triage.yaml").exists()


def test_an_entry_of_an_older_shape_is_refused_with_that_command(params: Path) -> None:
    assert "Run: stillhouse upgrade old" in ask("status").stderr
    text = FIRST_LIST.replace("teacher:", "teachers:")
    (params / "recipes.yaml").write_text(text)  # a shape that entries never had
    assert "Run:" not in ask("status").stderr


def test_all_recipes_are_upgraded_and_then_valid(params: Path) -> None:
    now = (params / "now.yaml").read_bytes()
    result = ask("upgrade")
    assert result.exit_code == 0, result.output
    recipe = load_recipe(params / "old.yaml")
    load_recipe(params / "last.yaml")
    assert (params / "now.yaml").read_bytes() == now
    check_inputs(params.parent, "old", recipe)
    entry = (
        "teacher: params/remote, student: params/remote, more_teachers: params/remote}   # the f"
    )
    assert entry in (params / "recipes.yaml").read_text()
    said = result.stdout.splitlines()
    assert said[:3] == [
        "last: from form 1 to form 2.",
        "  recipe: adds form: 2",
        "  Nothing has to be trained again: no stage reads what has changed.",
    ]
    assert "now: of form 2, nothing to change." in said
    floors = "min_accuracy: 0.0, min_lead: 0.0 (the loosest, as there was none: raise it)"
    assert f"  gate: adds {floors}" in said
    stages = "fetch_sources, prepare_data, train_teacher, cache_teacher, train_student"
    assert said[-1].startswith(f"  DVC runs again: {stages}, whose sections have changed; ")


def test_an_upgrade_that_is_done_again_changes_nothing(params: Path) -> None:
    assert ask("upgrade").exit_code == 0
    before = contents(params)
    assert "nothing to change" in ask("upgrade", "old").stdout
    assert contents(params) == before


def test_an_entry_alone_is_upgraded_too(params: Path) -> None:
    assert ask("upgrade").exit_code == 0
    (params / "recipes.yaml").write_text(FIRST_LIST)
    added = "student: params/remote, more_teachers: params/remote"
    assert ask("upgrade").stdout.splitlines()[2:] == [
        "old: its entry in the list.",
        f"  params/recipes.yaml: recipes.old: adds {added}",
        "  Nothing has to be trained again: no stage reads what has changed.",
    ]
    check_inputs(params.parent, "old", load_recipe(params / "old.yaml"))


def test_a_dry_run_says_the_same_and_writes_nothing(params: Path) -> None:
    before = contents(params)
    tried = ask("upgrade", "--dry-run")
    assert contents(params) == before
    assert ask("upgrade").stdout == tried.stdout


def test_what_changed_is_there_as_json(params: Path) -> None:
    found: Any = json.loads(ask("upgrade", "last", "--json").stdout)
    change = {"recipe": "last", "form": 1, "changes": ["recipe: adds form: 2"], "stages": []}
    assert found == {"recipes": [change], "refused": []}
    load_recipe(params / "last.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "kind: teacher_layers\n      layers: uniform",
            "kind: random",
            "old.yaml:33: train_teacher: write attention_heads and intermediate_size",
        ),
        ("codec: float16", "codec: float8", "old.yaml:50: cache_teacher.codec: Input should be"),
        ("hidden.4, hidden.6]", "hidden.6]", "old.yaml:49: cache_teacher.streams: lacks hidden.4"),
        ("text_column: Text", "text_column: [", "not valid YAML"),
        ("description:", "form: 9\ndescription:", "this stillhouse is too old for the recipe"),
    ],
)
def test_a_recipe_that_can_not_be_upgraded_stays_and_the_others_do_not(
    params: Path, old: str, new: str, said: str
) -> None:
    path = params / "old.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    text, listing = path.read_bytes(), (params / "recipes.yaml").read_bytes()
    result = ask("upgrade")
    assert result.exit_code == 2
    assert said in result.stderr
    assert path.read_bytes() == text
    assert (params / "recipes.yaml").read_bytes() == listing
    load_recipe(params / "last.yaml")


def test_a_recipe_that_would_not_be_valid_is_said_to_stay(params: Path) -> None:
    path = params / "old.yaml"
    path.write_text(path.read_text().replace("codec: float16", "codec: float8"))
    assert "\n  It is left as it was: mend these first.\n" in ask("upgrade", "old").stderr


def test_a_recipe_elsewhere_is_upgraded_by_its_path(params: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    shutil.copy(OLDER / "10.yaml", path)
    said = ask("check", str(path)).stderr
    assert f"Run: stillhouse upgrade {path}\n" in said
    assert ask("upgrade", str(path)).exit_code == 0
    load_recipe(path)
    assert (params / "recipes.yaml").read_text() == FIRST_LIST


def test_a_write_that_fails_leaves_the_old_recipe(
    params: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(params)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert ask("upgrade", "old").exit_code == 1
    assert contents(params) == before


@pytest.mark.parametrize("renames", [0, 1], ids=["before any file", "between recipe and list"])
def test_an_upgrade_that_is_killed_is_completed_by_the_next(params: Path, renames: int) -> None:
    """A process of its own, ended by SIGKILL as it gives a written file its name."""
    before = contents(params)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.format(renames=renames)],
        cwd=params.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    now = contents(params)
    assert now["recipes.yaml"] == before["recipes.yaml"]
    assert (now["old.yaml"] == before["old.yaml"]) is (renames == 0)
    assert ask("upgrade", "old").exit_code == 0
    check_inputs(params.parent, "old", load_recipe(params / "old.yaml"))


def test_a_link_stays_a_link_and_its_file_is_upgraded(params: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared.yaml"
    (params / "old.yaml").rename(shared)
    (params / "old.yaml").symlink_to(shared)
    assert "recipes.old: adds student" in ask("upgrade", "old").stdout
    assert (params / "old.yaml").is_symlink()
    check_inputs(tmp_path, "old", load_recipe(shared.rename(params / "old.yaml")))


def test_permissions_stay_and_a_file_that_must_not_be_written_is_refused(params: Path) -> None:
    path = params / "old.yaml"
    path.chmod(0o600)
    (params / "last.yaml").chmod(0o444)
    before = contents(params)["last.yaml"]
    result = ask("upgrade")
    assert result.exit_code == 2
    said = f"a file that must not be written: {params}/last.yaml. Run: chmod u+w {params}/last.yaml"
    assert said in result.stderr
    assert contents(params)["last.yaml"] == before
    assert path.stat().st_mode & 0o777 == 0o600
    load_recipe(path)


def test_neither_file_is_written_unless_both_may_be(params: Path) -> None:
    before = contents(params)
    (params / "recipes.yaml").chmod(0o444)
    assert ask("upgrade", "old").exit_code == 2
    assert contents(params) == before


@pytest.mark.parametrize("command", ["upgrade", "check", "plan", "run"])
def test_a_recipe_that_is_listed_and_has_no_file_is_told_as_that(
    params: Path, command: str
) -> None:
    (params / "old.yaml").unlink()
    result = ask(command, "old")
    assert result.exit_code == 2
    assert "recipe old is listed in params/recipes.yaml and has no file" in result.stderr
    assert "Run:" not in result.stderr


def test_all_others_are_upgraded_beside_one_that_has_no_file(params: Path) -> None:
    (params / "old.yaml").unlink()
    result = ask("upgrade")
    assert result.exit_code == 2
    assert result.stderr.count("old.yaml. Bring it back, or take its line out") == 1
    load_recipe(params / "last.yaml")


@pytest.mark.parametrize("listing", ["", "- old\n", "recipes: none\n"])
def test_a_list_that_is_none_is_told_and_nothing_is_written(params: Path, listing: str) -> None:
    (params / "recipes.yaml").write_text(listing)
    before = contents(params)
    result = ask("upgrade")
    assert result.exit_code == 2
    where = f"{params}/recipes.yaml"
    assert result.stderr == f"Error: a mapping `recipes:` is missing: {where}.\n"
    assert contents(params) == before


def test_a_folder_in_the_place_of_a_recipe_is_told(params: Path) -> None:
    (params / "old.yaml").unlink()
    (params / "old.yaml").mkdir()
    assert f"a folder in the place of a file: {params}/old.yaml." in ask("upgrade").stderr


def test_a_repository_without_recipes_says_so(params: Path) -> None:
    for path in params.iterdir():
        path.unlink()
    assert ask("upgrade").stdout == "no recipe so far\n"


def test_an_entry_that_names_another_is_upgraded(params: Path) -> None:
    text = "recipes:\n  old: {train: params/remote, <<: *it}\n"
    shared = "it: &it {test: params/remote, teacher: params/remote}\n"
    (params / "recipes.yaml").write_text(shared + text)
    assert ask("upgrade", "old").exit_code == 0
    check_inputs(params.parent, "old", load_recipe(params / "old.yaml"))
