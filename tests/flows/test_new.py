"""`stillhouse new`: the copy is complete, valid, commented, and never over something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from flows.cli import main
from flows.new import list_presets
from tasks.kd.recipes import check_inputs, load_recipe, read_inputs

PATHS = ["--train", "data/a.csv", "--test", "data/b.csv", "--teacher", "data/encoder"]


@pytest.fixture
def repository(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own recipe and list, in a folder of its own."""
    (tmp_path / "params").mkdir()
    for name in ("quickstart.yaml", "recipes.yaml"):
        shutil.copyfile(root / "params" / name, tmp_path / "params" / name)
    shutil.copytree(root / "params" / "presets", tmp_path / "params" / "presets")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "data" / "encoder").mkdir(parents=True)
    for name in ("a.csv", "b.csv"):
        (tmp_path / "data" / name).write_text("Text,Category,body,team\nhello,a,hello,b\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["new", *arguments])


def test_a_plain_copy_differs_in_nothing_but_its_name(repository: Path) -> None:
    assert new("triage").exit_code == 0
    recipe = load_recipe(repository / "params" / "triage.yaml")
    check_inputs(repository, "triage", recipe)
    base = load_recipe(repository / "params" / "quickstart.yaml")
    unlike = [name for name, value in base if getattr(recipe, name) != value]
    assert unlike == ["description", "register_"]
    assert recipe.register_.model == recipe.register_.experiment == "triage"
    lines = (repository / "params" / "quickstart.yaml").read_text().splitlines()
    copied = (repository / "params" / "triage.yaml").read_text().splitlines()
    changed = [line for line in lines if line not in copied]
    assert all(line.startswith(("#", "description", "  experiment", "  model")) for line in changed)


def test_comments_and_other_entries_stay(repository: Path) -> None:
    path = repository / "params" / "quickstart.yaml"
    path.write_text(path.read_text().replace("  seed: 7", "  seed: 7  # chosen by hand", 1))
    before = (repository / "params" / "recipes.yaml").read_text()
    assert new("triage").exit_code == 0
    assert "seed: 7  # chosen by hand" in (repository / "params" / "triage.yaml").read_text()
    assert (repository / "params" / "recipes.yaml").read_text().startswith(before)


def test_paths_and_columns_replace_the_sources(repository: Path) -> None:
    columns = ["--text-column", "body", "--label-column", "team"]
    assert new("triage", *PATHS, *columns).exit_code == 0
    recipe = load_recipe(repository / "params" / "triage.yaml")
    check_inputs(repository, "triage", recipe)
    assert read_inputs(repository)["triage"] == {
        "train": "data/a.csv",
        "test": "data/b.csv",
        "teacher": "data/encoder",
        "student": "params/remote",
        "more_teachers": "params/remote",
    }
    assert recipe.fetch_sources.data.model_dump()["format"] == {"kind": "csv", "skip_lines": 0}
    assert (recipe.prepare_data.text_column, recipe.prepare_data.label_column) == ("body", "team")


def test_the_student_is_shaped_after_a_teacher_that_is_at_hand(repository: Path) -> None:
    shape = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    (repository / "data" / "encoder" / "config.json").write_text(json.dumps(shape))
    assert new("triage", *PATHS).exit_code == 0
    recipe = load_recipe(repository / "params" / "triage.yaml")
    student = recipe.train_student.student
    assert (recipe.train_teacher.layers, recipe.train_teacher.hidden_size) == (12, 768)
    assert (student.layers, student.hidden_size, student.intermediate_size) == (6, 768, 3072)
    assert recipe.cache_teacher.streams[-1] == "hidden.12"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quickstart"], "there is such a recipe already"),
        (["recipes"], "can't be named 'recipes'"),
        (["../evil"], "can't be named '../evil'"),
        (["Upper"], "can't be named 'Upper'"),
        (["x", "--from", "nobody"], "no recipe 'nobody'"),
        (["x", "--train", "a.csv"], "--train and --test together"),
        (["x", "--train", "a.csv", "--test", "b.tsv"], "both splits must have one format"),
        (["x", "--train", "a.doc", "--test", "b.doc"], "can't tell the format of 'a.doc'"),
        (["x", "--train", "../a.csv", "--test", "b.csv"], "not a path inside this repository"),
        (["x", "--teacher", "a; touch b"], "not a path inside this repository"),
        (["x", "--teacher", "data/none"], "fetch_sources.teacher.folder: no such folder, expected"),
        (["x", "--train", "data/a.csv", "--test", "c.csv"], "no such file, expected c.csv or c.cs"),
        (["x", *PATHS, "--text-column", "words"], "no column 'words' in data/a.csv, found Text, C"),
    ],
)
def test_what_can_not_be_is_refused_and_writes_nothing(
    repository: Path, arguments: list[str], said: str
) -> None:
    before = {path.name: path.read_bytes() for path in (repository / "params").glob("*.yaml")}
    result = new(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert {
        path.name: path.read_bytes() for path in (repository / "params").glob("*.yaml")
    } == before


def test_a_base_with_faults_is_named_as_such(repository: Path) -> None:
    path = repository / "params" / "quickstart.yaml"
    path.write_text(path.read_text().replace("codec: float16", "codec: float8"))
    result = new("triage")
    assert result.exit_code == 2
    assert f"{path}:" in result.stderr
    assert "cache_teacher.codec" in result.stderr


PRESETS = list_presets(Path(__file__).resolve().parents[2])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_section_of_that_name_under_its_own_words(
    repository: Path, preset: str
) -> None:
    result = new("triage", "--preset", preset)
    assert result.exit_code == 0, result.output
    written = (repository / "params" / "triage.yaml").read_text()
    recipe = load_recipe(repository / "params" / "triage.yaml")
    base = load_recipe(repository / "params" / "quickstart.yaml")
    unlike = {name for name, value in base if getattr(recipe, name) != value}
    assert unlike <= {"description", "register_", "train_student", "cache_teacher", "prepare_data"}
    # Not one line of the preset is lost, nor of what stands around it.
    preset_text = (repository / "params" / "presets" / f"{preset}.yaml").read_text()
    taught, _, prepared = preset_text.partition("prepare_data:\n")
    assert taught in written
    fields = YAML(typ="safe").load(prepared) or {"random_texts": 0}
    assert recipe.prepare_data == base.prepare_data.model_copy(update=fields)
    assert "\n\nexport_student:\n" in written
    # The cache holds what this preset's levels read, and no more.
    assert recipe.cache_teacher.streams == (recipe.streams_read or ("logits",))


def test_every_preset_has_the_same_number_of_steps(repository: Path) -> None:
    """So that one can be measured against another: as many as six passes over labelled texts."""
    for preset in PRESETS:
        assert new(preset, "--preset", preset).exit_code == 0
        recipe = load_recipe(repository / "params" / f"{preset}.yaml")
        more = recipe.prepare_data.random_texts
        assert sum(phase.passes(more) for phase in recipe.train_student.phases) == 6, preset


def test_a_preset_brings_its_own_texts_and_no_others(repository: Path) -> None:
    assert new("ours", "--preset", "stillhouse_broad").exit_code == 0
    ours = repository / "params" / "ours.yaml"
    assert load_recipe(ours).prepare_data.random_texts == 2
    assert new("theirs", "--from", "ours", "--preset", "logits_only").exit_code == 0
    assert load_recipe(repository / "params" / "theirs.yaml").prepare_data.random_texts == 0


def test_a_preset_fits_another_teacher(repository: Path) -> None:
    folder = repository / "data" / "encoder"
    shape = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12}
    (folder / "config.json").write_text(json.dumps({**shape, "intermediate_size": 3072}))
    assert new("triage", "--preset", "tinybert", "--teacher", "data/encoder").exit_code == 0
    recipe = load_recipe(repository / "params" / "triage.yaml")
    assert recipe.train_teacher.hidden_size == 768
    assert recipe.train_student.student.hidden_size == 192  # narrower, as the preset has it
    assert recipe.train_student.student.layers == 6
    assert "hidden.12" in recipe.cache_teacher.streams
    assert new("wide", "--preset", "distilbert", "--teacher", "data/encoder").exit_code == 0
    assert load_recipe(repository / "params" / "wide.yaml").train_student.student.hidden_size == 768


def test_a_preset_that_is_not_there_is_refused_with_those_that_are(repository: Path) -> None:
    result = new("triage", "--preset", "tinybird")
    assert result.exit_code == 2
    assert "no preset 'tinybird'" in result.output
    assert "tinybert" in result.output
    assert not (repository / "params" / "triage.yaml").exists()
