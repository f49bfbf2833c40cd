"""`stillhouse check` on sources: what is named must be there, with the columns that are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from flows.cli import main
from tasks.kd.digests import read_json, write_json
from tasks.kd.recipe.files import inputs_of, load_recipe
from tests.flows.conftest import Project, write_model
from tests.makers.small_tables import layout_of

ROW = {"text": "hello", "label": "greeting"}
HEADER, LINE = ",".join(ROW), ",".join(ROW.values())


@pytest.fixture
def local(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The recipe `tiny` with all of its sources in data/, and all of them there."""
    monkeypatch.chdir(project.root)
    for folder in ("teacher", "student", "more/second"):
        write_model(project.root / "data" / folder)
    for split in ("train", "test"):
        (project.root / "data" / f"{split}.csv").write_text(f"{HEADER}\n{LINE}\n")
    name_sources(project, "csv")
    return project


def name_sources(project: Project, kind: str) -> None:
    recipe = read_json(project.recipe)
    recipe["prepare_data"] |= {"text_column": "text", "label_column": "label"}
    recipe["fetch_sources"] = {
        "data": {
            "kind": "path",
            "train": f"data/train.{kind}",
            "test": f"data/test.{kind}",
            "format": layout_of(kind).model_dump(mode="json"),
        },
        "teacher": {"kind": "path", "folder": "data/teacher"},
        "student": None,
        "more_teachers": {},
    }
    write_json(project.recipe, recipe)
    listed = {"recipes": {"tiny": inputs_of(load_recipe(project.recipe))}}
    write_json(project.root / "params" / "recipes.yaml", listed)


def check() -> Result:
    return CliRunner().invoke(main, ["check", "tiny"])


def write(path: Path, kind: str, row: dict[str, str]) -> None:
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    elif kind == "jsonl":
        path.write_text("\n" + json.dumps(row) + "\n")
    else:
        path.write_text("\n".join("\t".join(cells) for cells in (row, row.values())))


def test_sources_that_are_here_are_valid(local: Project) -> None:
    result = check()
    assert (result.exit_code, result.stdout) == (0, "valid: tiny\n"), result.output


def test_every_source_that_is_missing_is_named_with_its_line(local: Project) -> None:
    (local.root / "data").rename(local.root / "elsewhere")
    result = check()
    assert (result.exit_code, result.stdout) == (2, "")
    for place, named in (
        ("data.train: no such file", "data/train.csv"),
        ("data.test: no such file", "data/test.csv"),
        ("teacher.folder: no such folder", "data/teacher"),
    ):
        said = f": fetch_sources.{place}, expected {named} or {named}.dvc, found neither"
        assert said in result.stderr
    line = next(
        number
        for number, text in enumerate(local.recipe.read_text().splitlines(), 1)
        if "data/train.csv" in text
    )
    assert f"{local.recipe}:{line}: fetch_sources.data.train" in result.stderr


@pytest.mark.parametrize("tracked", ["data/train.csv.dvc", "data.dvc"])
def test_what_dvc_tracks_may_be_absent(local: Project, tracked: str) -> None:
    (local.root / "data" / "train.csv").unlink()
    assert check().exit_code == 2
    (local.root / tracked).write_text("outs: []\n")
    assert check().exit_code == 0


def test_what_another_stage_makes_may_be_absent(local: Project) -> None:
    (local.root / "data" / "train.csv").unlink()
    pipeline = read_json(local.root / "dvc.yaml")
    pipeline["stages"]["query"] = {"cmd": "./query", "outs": [{"data/train.csv": {"push": False}}]}
    write_json(local.root / "dvc.yaml", pipeline)
    assert check().exit_code == 0


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet"])
def test_columns_are_looked_for_in_every_format(local: Project, kind: str) -> None:
    name_sources(local, kind)
    for split in ("train", "test"):
        write(local.root / "data" / f"{split}.{kind}", kind, ROW)
    assert check().exit_code == 0, check().output
    write(local.root / "data" / f"test.{kind}", kind, {"text": "hello", "topic": "greeting"})
    result = check()
    assert result.exit_code == 2
    said = f"prepare_data.label_column: no column 'label' in data/test.{kind}, found text, topic"
    assert said in result.stderr
    assert "data/train" not in result.stderr


@pytest.mark.parametrize(
    ("kind", "content"),
    [("csv", b'"unclosed'), ("csv", b"\xff\xfe"), ("jsonl", b"[1]"), ("parquet", b"PAR2")],
)
def test_what_is_no_such_table_is_told(local: Project, kind: str, content: bytes) -> None:
    name_sources(local, kind)
    for split in ("train", "test"):
        (local.root / "data" / f"{split}.{kind}").write_bytes(content)
    result = check()
    assert result.exit_code == 2
    assert "fetch_sources.data.train: not a" in result.stderr


# --- tokenizers -----------------------------------------------------------------------------------


def test_a_teacher_without_a_tokenizer_is_told_with_what_is_missing(local: Project) -> None:
    (local.root / "data" / "teacher" / "tokenizer.json").unlink()
    result = check()
    assert result.exit_code == 2
    said = "fetch_sources.teacher.folder: no tokenizer with the model"
    assert said in result.stderr
    assert "Expected tokenizer.json or vocab.txt (BertTokenizer), found neither" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bpe.codes", "a b", "bpe.codes (as BERTweet and PhoBERT have)"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ("tokenizer.json", '{"version": "1.0", "model": {"vo', "is cut, or is no JSON object"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        (
            "tokenizer_config.json",
            '{"word_tokenizer_type": "mecab"}',
            "word_tokenizer_type 'mecab'",
        ),
        (
            "tokenizer_config.json",
            '{"truncation_side": "middle"}',
            "truncation_side. Expected left",
        ),
    ],
)
def test_tokenizers_that_can_not_be_used_are_told_before_anything_runs(
    local: Project, name: str, content: str, said: str
) -> None:
    if name == "bpe.codes":
        (local.root / "data" / "teacher" / "tokenizer.json").unlink()
    (local.root / "data" / "teacher" / name).write_text(content)
    result = check()
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert str(local.root / "data" / "teacher") in result.stderr


# --- models --------------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def change_config(project: Project, **fields: object) -> None:
    path = project.root / "data" / "teacher" / "config.json"
    write_json(path, read_json(path) | fields)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
def test_a_file_that_git_lfs_left_is_told_with_its_path_and_line(local: Project, name: str) -> None:
    (local.root / "data" / "teacher" / name).write_text(POINTER)
    result = check()
    assert (result.exit_code, result.stdout) == (2, "")
    path = local.root / "data" / "teacher" / name
    assert f"fetch_sources.teacher.folder: a Git LFS pointer in the place of the file: {path}" in (
        result.stderr
    )
    assert "Run: git lfs pull" in result.stderr
    assert f"{local.recipe}:" in result.stderr


def test_weights_only_as_pickles_are_told_with_the_command_that_converts(local: Project) -> None:
    weights = local.root / "data" / "teacher" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    result = check()
    assert result.exit_code == 2
    assert "no safetensors weights" in result.stderr
    assert "found pytorch_model.bin" in result.stderr
    assert "Run: python -c " in result.stderr


def put_head(project: Project, rows: int) -> None:
    path = project.root / "data" / "teacher" / "model.safetensors"
    save_file({**load_file(path), "classifier.weight": np.zeros((rows, 3), np.float32)}, path)


def test_a_given_teacher_without_a_head_is_told_before_anything_runs(local: Project) -> None:
    assert check().exit_code == 0  # it is to be tuned
    local.change("train_teacher", mode="given")
    result = check()
    assert result.exit_code == 2
    assert "fetch_sources.teacher.folder: no classifier among the weights" in result.stderr
    put_head(local, 2)
    assert check().exit_code == 0


def test_a_field_that_the_model_would_not_use_is_told(local: Project) -> None:
    change_config(local, position_embedding_type="relative_key")
    result = check()
    assert result.exit_code == 2
    assert "would not use what its configuration says: position_embedding_type" in result.stderr


def test_a_folder_without_a_model_is_told_unless_dvc_brings_it(local: Project) -> None:
    (local.root / "data" / "teacher" / "config.json").unlink()
    result = check()
    assert result.exit_code == 2
    assert "fetch_sources.teacher.folder: not a model folder: data/teacher" in result.stderr
    (local.root / "data" / "teacher.dvc").write_text("outs: []\n")
    assert check().exit_code == 0


def test_a_given_teacher_s_labels_are_held_against_the_recipe_s_map(local: Project) -> None:
    put_head(local, 2)
    change_config(local, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert check().exit_code == 0
    local.change("train_teacher", mode="given", labels={"LABEL_0": "greeting"})
    result = check()
    assert result.exit_code == 2
    assert "train_teacher.labels: the recipe's map does not name the teacher's" in result.stderr
    assert "found none for LABEL_1" in result.stderr
    local.change("train_teacher", labels={"LABEL_0": "greeting", "LABEL_1": "farewell"})
    assert check().exit_code == 0
    change_config(local, id2label={"0": "LABEL_0", "2": "LABEL_1"})
    result = check()
    assert result.exit_code == 2
    assert "id2label can't be read" in result.stderr
    local.change("train_teacher", mode="fine_tune")  # its labels are nobody's
    assert check().exit_code == 0


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", "text,label,label\n"),
        ("tsv", "text\tlabel\tlabel\n"),
        ("jsonl", '{"text": "x", "label": 1, "label": 2}'),
    ],
)
def test_one_name_for_two_columns_is_told(local: Project, kind: str, content: str) -> None:
    name_sources(local, kind)
    for split in ("train", "test"):
        (local.root / "data" / f"{split}.{kind}").write_text(content)
    result = check()
    assert result.exit_code == 2
    assert "fetch_sources.data.train: two columns are named 'label': data/train" in result.stderr


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_of_objects_is_told_and_a_field_of_them_is_none(local: Project, kind: str) -> None:
    name_sources(local, kind)
    row = {"text": {"body": "hello"}, "label": "greeting"}
    for split in ("train", "test"):
        path = local.root / "data" / f"{split}.{kind}"
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps(row))
    result = check()
    assert result.exit_code == 2
    assert "prepare_data.text_column: data/train" in result.stderr
    assert "expected text, found an object with the fields body" in result.stderr
    recipe = read_json(local.recipe)
    recipe["prepare_data"]["text_column"] = "text.body"
    write_json(local.recipe, recipe)
    assert check().exit_code == 0, check().output


def name_train(project: Project, named: str) -> None:
    recipe = read_json(project.recipe)
    recipe["fetch_sources"]["data"]["train"] = named
    write_json(project.recipe, recipe)
    listed = {"recipes": {"tiny": inputs_of(load_recipe(project.recipe))}}
    write_json(project.root / "params" / "recipes.yaml", listed)


@pytest.mark.parametrize("named", ["data/parts", "data/parts/p-*.csv"])
def test_parts_have_their_heads_looked_at(local: Project, named: str) -> None:
    folder = local.root / "data" / "parts"
    folder.mkdir()
    name_train(local, named)
    assert f"expected {named}" in check().stderr or "without csv parts" in check().stderr
    for part in ("p-1.csv", "p-2.csv"):
        (folder / part).write_text(f"{HEADER}\n{LINE}\n")
    assert check().exit_code == 0, check().output
    (folder / "p-2.csv").write_text(f"{LINE}\n")
    assert "a part has other columns than the first one: data/parts/p-2.csv" in check().stderr


@pytest.mark.parametrize("named", ["data/parts", "data/parts/p-*.csv"])
def test_parts_that_dvc_tracks_may_be_absent(local: Project, named: str) -> None:
    (local.root / "data" / "parts").mkdir()
    name_train(local, named)
    (local.root / "data" / "parts" / "p-1.csv.dvc").write_text("outs: []\n")
    assert check().exit_code == 0, check().output


def test_links_that_lead_out_are_told(local: Project) -> None:
    outside = local.root.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (outside / "train.csv").write_text(f"{HEADER}\n{LINE}\n")
    for name in ("train.csv", "teacher/config.json"):
        (local.root / "data" / name).unlink()
    (local.root / "data" / "train.csv").symlink_to(outside / "train.csv")
    (local.root / "data" / "teacher" / "config.json").symlink_to(outside / "config.json")
    result = check()
    assert result.exit_code == 2
    for field in ("data.train", "teacher.folder"):
        assert f"fetch_sources.{field}: a link leads out of the repository" in result.stderr


def test_an_id_of_the_hub_that_is_a_folder_here_is_told(local: Project) -> None:
    recipe = read_json(local.recipe)
    recipe["fetch_sources"]["teacher"] = {"kind": "hub", "id": "data/teacher", "revision": "x"}
    write_json(local.recipe, recipe)
    listed = {"recipes": {"tiny": inputs_of(load_recipe(local.recipe))}}
    write_json(local.root / "params" / "recipes.yaml", listed)
    assert "fetch_sources.teacher.id: 'data/teacher' is an id of the hub, and" in check().stderr
