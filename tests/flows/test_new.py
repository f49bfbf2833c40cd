"""`stillhouse new`: the copy is complete, valid, commented, and never over something else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from ruamel.yaml import YAML
from tokenizers import Tokenizer

from flows.cli import main
from flows.presets import list_presets
from tasks.kd.recipe.files import check_inputs, load_recipe, read_inputs
from tasks.kd.recipe.matching import match
from tasks.kd.recipe.phases import layer_levels, streams_read
from tasks.kd.recipe.recipe import Recipe
from tests.flows.conftest import write_model
from tests.makers.small_tables import CSV
from tests.makers.tiny import WORDS as TEAM_WORDS
from tests.makers.tiny import tiny_model, tiny_tokenizer
from tests.makers.tokenizer_folders import WORDS, wordpiece, write_folder

PATHS = ["--train", "data/a.csv", "--test", "data/b.csv", "--teacher", "data/encoder"]


@pytest.fixture
def repository(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own recipe and list, in a folder of its own."""
    (tmp_path / "params").mkdir()
    for name in ("quickstart.yaml", "recipes.yaml"):
        shutil.copyfile(root / "params" / name, tmp_path / "params" / name)
    shutil.copytree(root / "params" / "presets", tmp_path / "params" / "presets")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    write_model(tmp_path / "data" / "encoder")
    for name in ("a.csv", "b.csv"):
        (tmp_path / "data" / name).write_text("Text,Category,body,team\nhello,a,hello,b\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["new", *arguments])


def streams_of(recipe: Recipe) -> tuple[str, ...]:
    """What the recipe's levels read."""
    student = recipe.train_student
    return streams_read(student.phases, student.student.layers, recipe.train_teacher.layers)


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
    assert recipe.fetch_sources.data.model_dump()["format"] == CSV.model_dump()
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
    told = result.stderr.count("/params/x.yaml:")  # and not of the trial's own folder
    assert result.stderr.count(f"{repository}/params/x.yaml:") == told
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
    own = re.sub(r"written_for: .*\n\n", "", preset_text)
    assert re.split(r"\n(?=prepare_data:|per_channel:)", own)[0] in written
    fields = YAML(typ="safe").load(preset_text).get("prepare_data", {"random_texts": 0})
    assert recipe.prepare_data == base.prepare_data.model_copy(update=fields)
    assert "\n\nexport_student:\n" in written
    # The cache holds what this preset's levels read, and no more.
    assert recipe.cache_teacher.streams == (streams_of(recipe) or ("logits",))


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
    (repository / "data" / "encoder" / "config.json").write_text(json.dumps(fields))


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
    assert streams_of(recipe) == (
        "logits",
        *(f"{level}.{layer}" for layer in (4, 8, 12) for level in ("attention", "hidden")),
    )


def preset(repository: Path, name: str, *changes: tuple[str, str]) -> None:
    """A preset of the user's own, made of another."""
    text = (repository / "params" / "presets" / "mobilebert.yaml").read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (repository / "params" / "presets" / f"{name}.yaml").write_text(text)


@pytest.mark.usefixtures("base_sized")
def test_a_preset_for_another_teacher_is_fitted_and_that_is_said(repository: Path) -> None:
    result = new("large", "--preset", "mobilebert", "--teacher", "data/encoder")
    assert (
        "preset mobilebert is written for a teacher of 6 layers and width 384, this one has 12 and "
        "768: moved the teacher's layers\n"
    ) in result.stdout
    assert "is written for" not in new("small", "--preset", "mobilebert").stdout
    said = new("other", "--preset", "minilm", "--teacher", "data/encoder").stdout
    assert "moved nothing, as nothing depends on them" in said
    said = new("mean", "--preset", "rail_kd", "--teacher", "data/encoder").stdout
    assert "moved the student's width, the weight of hidden.pooled_mse\n" in said


def test_a_preset_written_for_another_depth_says_so_itself(repository: Path) -> None:
    """What it names are layers of the teacher that it says, and not of 6."""
    deep = [("layers: 6, hidden", "layers: 12, hidden"), ("[1, 2]", "[1, 4]"), ("[2, 4]", "[2, 8]")]
    preset(repository, "deep", *deep, ("[3, 6]", "[3, 12]"))
    assert new("small", "--preset", "deep").exit_code == 0
    recipe = load_recipe(repository / "params" / "small.yaml")
    pairs = [x.layer_map for x in layer_levels(recipe.train_student.phases)]
    assert sorted(set(pairs)) == [((1, 2),), ((2, 4),), ((3, 6),)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("layers: 6, hidden", "layers: 4, hidden")], "contradicts itself: {}. Expected teacher"),
        ([("    layers: 3\n", "    layers: 9\n")], "not for a teacher of 6 layers: {}. Expected"),
        ([("written_for: {layers: 6, hidden_size: 384}\n", "")], "{}:1: written_for: is missing"),
        (
            [("layers: 6, hidden", "layers: six, hidden")],
            "{}:7: written_for.layers: Input should be",
        ),
        ([("train_student:", "train_pupil:")], "{}:1: train_student: is missing"),
        (
            [("layers: 6, hidden", "layers: 2026-01-02, hidden")],
            "{}:7: written_for.layers: no text, number, list or mapping, found 2026-01-02",
        ),
    ],
)
def test_a_preset_that_does_not_fit_is_refused_and_writes_nothing(
    repository: Path, changes: list[tuple[str, str]], said: str
) -> None:
    preset(repository, "mine", *changes)
    result = new("triage", "--preset", "mine")
    assert result.exit_code == 2
    assert said.split("{}", maxsplit=1)[0] in result.stderr
    assert "params/presets/mine.yaml" in result.stderr
    assert said.split("{}")[1].partition(":")[2] in result.stderr
    assert not (repository / "params" / "triage.yaml").exists()


def test_a_recipe_that_would_not_be_valid_is_said_not_to_be_written(repository: Path) -> None:
    preset(repository, "mine", ("    layers: 3\n", "    layers: 0\n"))
    result = new("triage", "--preset", "mine")
    assert result.exit_code == 2
    assert "Nothing is written: the lines are those it would have.\n" in result.stderr
    assert not (repository / "params" / "triage.yaml").exists()


def test_a_preset_takes_the_place_of_another_with_its_words(repository: Path) -> None:
    assert new("one", "--preset", "pkd").exit_code == 0
    assert new("two", "--from", "one", "--preset", "minilm").exit_code == 0
    written = (repository / "params" / "two.yaml").read_text()
    assert "# MiniLM (arXiv:2002.10957)" in written
    assert "1908.09355" not in written
    assert "\n\nexport_student:\n" in written


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


# --- the length that texts are cut at -------------------------------------------------------------


def write_texts(repository: Path, lengths: list[int]) -> None:
    """Training texts of so many words of one token each, no two the same."""
    words = ["where", "is", "my", "parcel", "please"]
    texts = [
        " ".join(words[row // len(words) ** place % len(words)] for place in range(length))
        for row, length in enumerate(lengths)
    ]
    rows = [f"{text},{'ab'[row % 2]}" for row, text in enumerate(texts)]
    (repository / "data" / "a.csv").write_text("\n".join(["body,team", *rows, ""]))


COLUMNS = ["--text-column", "body", "--label-column", "team"]


@pytest.mark.parametrize(
    ("lengths", "positions", "expected"),
    [
        ([5] * 99 + [40], 64, 8),  # 5 and two around them; one of a hundred is cut
        ([5] * 98 + [40] * 2, 64, 48),
        ([7] * 100, 64, 16),
        ([90] * 100, 64, 64),
        ([90] * 100, 60, 60),
    ],
)
def test_the_length_is_what_keeps_99_percent_of_the_texts_whole(
    repository: Path, lengths: list[int], positions: int, expected: int
) -> None:
    encoder = repository / "data" / "encoder"
    write_folder(encoder, wordpiece(), max_position_embeddings=positions)
    write_texts(repository, lengths)
    result = new("triage", *PATHS, *COLUMNS)
    assert result.exit_code == 0, result.output
    assert f"max_length_tokens {expected} (was 64): " in result.stdout
    assert ("96 would keep 99 % of 100 training" in result.stdout) == (90 in lengths)
    recipe = load_recipe(repository / "params" / "triage.yaml")
    assert recipe.prepare_data.max_length_tokens == expected


def test_a_length_is_copied_where_the_texts_can_not_be_read(repository: Path) -> None:
    write_folder(repository / "data" / "encoder", wordpiece())
    (repository / "data" / "a.csv").write_text("body,team\n,a\n")
    result = new("triage", *PATHS, *COLUMNS)
    assert result.exit_code == 0, result.output
    assert "max_length_tokens" not in result.stdout
    recipe = load_recipe(repository / "params" / "triage.yaml")
    assert recipe.prepare_data.max_length_tokens == 64


def test_a_tokenizer_that_contradicts_itself_is_refused_at_once(repository: Path) -> None:
    cased = {"do_lower_case": False}
    write_texts(repository, [5] * 20)
    write_folder(repository / "data" / "encoder", wordpiece(WORDS), cased)
    result = new("triage", *PATHS, *COLUMNS)
    assert result.exit_code == 2
    assert "contradict one another in do_lower_case" in result.stderr
    assert not (repository / "params" / "triage.yaml").exists()


# --- a teacher whose labels have no names --------------------------------------------------------

TEAMS = {"orders": TEAM_WORDS[:12], "payments": TEAM_WORDS[12:24], "returns": TEAM_WORDS[24:36]}
MATCH = ("payments", "returns", "orders")  # what LABEL_0, LABEL_1 and LABEL_2 are


def write_sorter(repository: Path, *, is_tuned: bool) -> None:
    """A teacher that knows teams by their words, with numbers for names; and texts for it."""
    model: Any = tiny_model(1)
    model.classifier = torch.nn.Linear(model.config.hidden_size, 3)
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer(repository / "data/encoder/tokenizer.json")))
    if is_tuned:
        set_by_hand(model, [tokenizer.encode(" ".join(TEAMS[team])).ids for team in MATCH])
    names = {i: f"LABEL_{i}" for i in range(3)}
    model.config.update({"id2label": names, "label2id": {v: k for k, v in names.items()}})
    model.save_pretrained(repository / "data" / "encoder")
    for split, times in (("a", 2), ("b", 3)):
        rows = [
            f"{' '.join([word] * times)},{team}" for team, words in TEAMS.items() for word in words
        ]
        (repository / "data" / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")


def set_by_hand(model: Any, words: list[list[int]]) -> None:
    """Give each class's words a direction of their own, which all layers let through."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1)
        for label, ids in enumerate(words):
            model.bert.embeddings.word_embeddings.weight[ids, label] = 4
            model.classifier.weight[label, label] = 5
        layer = model.bert.encoder.layer[0].attention
        for part in (layer.self.value, layer.output.dense, model.bert.pooler.dense):
            part.weight.copy_(torch.eye(len(part.weight)))


SORTER = [*PATHS, "--text-column", "text", "--label-column", "label"]


def test_the_map_that_a_teacher_s_answers_show_is_proposed_with_them(repository: Path) -> None:
    write_sorter(repository, is_tuned=True)
    result = new("sorter", *SORTER)
    assert result.exit_code == 0, result.output
    assert "asks the teacher about 36 training texts (loads torch)" in result.stderr
    path = repository / "params" / "sorter.yaml"
    assert load_recipe(path).train_teacher.labels is None
    proposed = "in place of null: {LABEL_0: payments, LABEL_1: returns, LABEL_2: orders}\n"
    assert "labels have no names (id2label). So named, 100.0% of 36" in result.stdout
    assert proposed in result.stdout
    assert re.search(r"# orders +0 +0 +12\n", path.read_text())
    given = path.read_text().replace("mode: fine_tune", "mode: given")
    path.write_text(given.replace("labels: null", f"labels: {proposed.split('null: ')[1]}"))
    assert CliRunner().invoke(main, ["check", "sorter"]).exit_code == 0
    assert load_recipe(path).train_teacher.labels == {f"LABEL_{i}": x for i, x in enumerate(MATCH)}


def test_a_teacher_that_tells_nothing_leaves_the_map_open_and_says_so(repository: Path) -> None:
    write_sorter(repository, is_tuned=False)
    result = new("sorter", *SORTER)
    assert result.exit_code == 0, result.output
    path = repository / "params" / "sorter.yaml"
    assert load_recipe(path).train_teacher.labels is None
    assert "that settles nothing" in result.stdout
    assert "for example: labels: {LABEL_0: orders, LABEL_1: payments, LABEL_2: returns}" in (
        path.read_text()
    )


def test_a_copy_for_other_data_has_the_floors_of_any_student(repository: Path) -> None:
    assert new("other", *PATHS, "--text-column", "body", "--label-column", "team").exit_code == 0
    recipe = load_recipe(repository / "params" / "other.yaml")
    assert (recipe.gate.min_accuracy, recipe.gate.min_lead) == (0.5, 0.1)
    assert recipe.train_teacher.min_lead == 0.1
    assert recipe.train_teacher.labels is None


# --- what it finds out about tables ---------------------------------------------------------------


def write_rows(repository: Path, name: str, lines: list[str]) -> None:
    (repository / "data" / name).parent.mkdir(exist_ok=True)
    (repository / "data" / name).write_text("\n".join(lines))


def recipe_of(repository: Path, *arguments: str) -> tuple[Any, str]:
    """The recipe that `new` writes of these sources, and what it says."""
    result = new("triage", *arguments)
    assert result.exit_code == 0, result.output
    return load_recipe(repository / "params" / "triage.yaml"), result.stdout


def test_the_dialect_is_found_and_told_in_a_line(repository: Path) -> None:
    for name in ("s.csv", "t.csv"):
        write_rows(repository, name, ["Text;Category", f'"{name} \\"x\\"; y";a', "z;NA"])
    recipe, told = recipe_of(repository, "--train", "data/s.csv", "--test", "data/t.csv")
    found = {**CSV.model_dump(), "separator": ";", "escape": "\\", "missing": ("NA",)}
    assert recipe.fetch_sources.data.format.model_dump() == found
    said = 'data/s.csv: semicolons between cells, quotes ", inside a cell behind \\'
    assert f"{said}, no value spelled NA; columns Text, Category\n" in told


def test_columns_that_no_dialect_has_are_told_as_they_were_found(repository: Path) -> None:
    for name in ("s.csv", "t.csv"):
        write_rows(repository, name, ["text;label", "x, y;a"])
    result = new("triage", "--train", "data/s.csv", "--test", "data/t.csv")
    assert result.exit_code == 2
    assert "no column 'Text' in data/s.csv, found text, label" in result.stderr


def test_a_training_file_that_is_the_test_file_is_told(repository: Path) -> None:
    for name in ("s.csv", "t.csv"):
        write_rows(repository, name, ["Text,Category", "x,a", "y,b"])
    recipe, told = recipe_of(repository, "--train", "data/s.csv", "--test", "data/t.csv")
    assert "rows are not counted: all training texts are in the test split as well" in told
    assert "usable training rows" not in told
    assert recipe.prepare_data.min_train_examples == 1


def test_half_of_today_s_usable_rows_must_always_be_there(repository: Path) -> None:
    rows = [f"word{i},{'ab'[i % 2]}" for i in range(20)]
    write_rows(repository, "s.csv", ["Text,Category", *rows, "word1,b", "tested,a"])
    write_rows(repository, "t.csv", ["Text,Category", "tested,a"])
    recipe, told = recipe_of(repository, "--train", "data/s.csv", "--test", "data/t.csv")
    assert recipe.prepare_data.min_train_examples == 10
    assert "20 usable training rows (left out of train: 1 repeated, 1 in the test split)" in told


@pytest.mark.parametrize("is_here", [True, False])
def test_rows_that_can_not_be_counted_are_no_obstacle(repository: Path, is_here: bool) -> None:
    for name in ("s.csv", "t.csv"):
        write_rows(repository, name, ["Text,Category", "x,a", ",b"])
        if not is_here:
            (repository / "data" / name).unlink()
            write_rows(repository, f"{name}.dvc", ["outs: []"])
    recipe, told = recipe_of(repository, "--train", "data/s.csv", "--test", "data/t.csv")
    assert recipe.prepare_data.min_train_examples == 1
    assert (
        "rows are not counted: 1 rows without text or label: data/s.csv, row 2" in told
    ) == is_here


@pytest.mark.parametrize("named", ["data/{}", "data/{}/", "data/{}/part-*.csv"])
def test_a_folder_or_a_pattern_of_parts_is_a_source(repository: Path, named: str) -> None:
    for split in ("train", "test"):
        for part in range(3):
            lines = ["Text|Category", f"{split} {part}|a"]
            write_rows(repository, f"{split}/part-{part}.csv", lines)
    train, test = named.format("train"), named.format("test")
    recipe, told = recipe_of(repository, "--train", train, "--test", test)
    assert recipe.fetch_sources.data.format.separator == "|"
    assert "3 usable training rows" in told
    assert read_inputs(repository)["triage"]["train"] == "data/train"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.csv", "Text,Category\nx,a\n".encode("utf-16"), "not a csv table in UTF-8: data/s.csv"),
        ("s.parquet", b"PAR1 and no more", "not a whole Parquet file: data/s.parquet"),
        ("s.jsonl", b'[{"Text": "x", "Category": "a"}]', "not a JSON object: data/s.jsonl:1"),
        ("s.csv", b"", "an empty file: data/s.csv"),
    ],
)
def test_what_is_no_such_table_is_refused_at_once(
    repository: Path, name: str, content: bytes, said: str
) -> None:
    (repository / "data" / name).write_bytes(content)
    result = new("triage", "--train", f"data/{name}", "--test", f"data/{name}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert not (repository / "params" / "triage.yaml").exists()
