"""`stillhouse new`: the copy is complete, valid, commented, and never over something else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from flows.cli import main
from flows.new import list_presets
from tasks.kd.levels import match
from tasks.kd.phases import layer_levels
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


def test_dvc_shows_the_figures_of_every_listed_recipe(repository: Path) -> None:
    assert new("triage").exit_code == 0
    shown = YAML(typ="safe").load(repository / "params" / "figures" / "dvc.yaml")
    folder = "../../artifacts/{}/evaluate_student/summary.json"
    assert shown["metrics"] == [folder.format("quickstart"), folder.format("triage")]
    assert sum("triage" in name for plot in shown["plots"] for name in plot) == 3


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


@pytest.mark.usefixtures("base_sized")
def test_the_student_is_shaped_after_a_teacher_that_is_at_hand(repository: Path) -> None:
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
    assert re.split(r"\n(?=prepare_data:|per_channel:)", preset_text)[0] in written
    fields = YAML(typ="safe").load(preset_text).get("prepare_data", {"random_texts": 0})
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


@pytest.fixture
def base_sized(repository: Path) -> str:
    """The folder of an encoder of 12 layers, 768 wide, of which there is a config.json alone."""
    shape = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12}
    write_config(repository, {"model_type": "bert", **shape, "intermediate_size": 3072})
    return "data/encoder"


def write_config(repository: Path, fields: dict[str, Any]) -> None:
    folder = repository / "data" / "encoder"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_another_teacher(repository: Path, base_sized: str, preset: str) -> None:
    assert new("small", "--preset", preset).exit_code == 0
    assert new("large", "--preset", preset, "--teacher", base_sized).exit_code == 0
    small, large = (load_recipe(repository / "params" / f"{x}.yaml") for x in ("small", "large"))
    assert large.train_teacher.hidden_size == 768
    own, other = small.train_student.student, large.train_student.student
    assert other.layers == own.layers == 3  # its weights are made for so many
    is_narrow = own.hidden_size == 192
    assert other.hidden_size == (192 if is_narrow else 768)
    for before, after in zip(small.train_student.phases, large.train_student.phases, strict=True):
        for one, two in zip(before.levels, after.levels, strict=True):
            if one.loss == "pooled_mse":  # the paper's is a sum over channels
                assert (one.weight, two.weight) == (384, 768)
            else:
                assert two.weight == one.weight
        for one, two in zip(*(layer_levels([x]) for x in (before, after)), strict=True):
            pairs = [match(x, 3, n).fixed for x, n in ((one, 6), (two, 12))]
            assert pairs[1] == tuple((s, 2 * t) for s, t in pairs[0])


def test_layers_that_phases_name_are_those_of_the_deeper_teacher(
    repository: Path, base_sized: str
) -> None:
    assert new("small", "--preset", "mobilebert").exit_code == 0
    assert new("large", "--from", "small", "--teacher", base_sized).exit_code == 0
    recipe = load_recipe(repository / "params" / "large.yaml")
    assert recipe.train_student.student.layers == 3
    assert recipe.streams_read == (
        "logits",
        *(f"{level}.{layer}" for layer in (4, 8, 12) for level in ("attention", "hidden")),
    )


def test_a_family_with_names_of_its_own_is_understood(repository: Path) -> None:
    sizes = {"n_layers": 8, "dim": 768, "n_heads": 12, "hidden_dim": 3072}
    write_config(repository, {"model_type": "distilbert", **sizes})
    assert new("triage", "--teacher", "data/encoder").exit_code == 0
    recipe = load_recipe(repository / "params" / "triage.yaml")
    assert recipe.train_teacher.layers == 8
    assert recipe.train_student.student.layers == 4
    assert recipe.train_student.student.hidden_size == 768


def test_a_teacher_of_a_family_that_is_not_known_is_refused(repository: Path) -> None:
    write_config(repository, {"model_type": "gpt2", "n_layer": 12})
    result = new("triage", "--teacher", "data/encoder")
    assert result.exit_code == 2
    assert "gpt2" in result.output
    assert not (repository / "params" / "triage.yaml").exists()


def test_a_preset_that_is_not_there_is_refused_with_those_that_are(repository: Path) -> None:
    result = new("triage", "--preset", "tinybird")
    assert result.exit_code == 2
    assert "no preset 'tinybird'" in result.output
    assert "tinybert" in result.output
    assert not (repository / "params" / "triage.yaml").exists()
