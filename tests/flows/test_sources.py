"""`stillhouse check` on sources: what is named must be there, with the columns that are read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from tasks.kd.digests import read_json, write_json
from tasks.kd.recipes import inputs_of, load_recipe
from tests.flows.conftest import Project
from tests.kd.small_tables import layout_of

ROW = {"text": "hello", "label": "greeting"}
HEADER, LINE = ",".join(ROW), ",".join(ROW.values())


@pytest.fixture
def local(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The recipe `tiny` with all of its sources in data/, and all of them there."""
    monkeypatch.chdir(project.root)
    for folder in ("teacher", "student", "more/second"):
        (project.root / "data" / folder).mkdir(parents=True)
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
    (local.root / "data" / "train.csv").unlink()
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
