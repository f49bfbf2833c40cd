"""`stillhouse cache plan`: from the recipe alone, from one whose streams are wrong, and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flows import cache_plan
from flows.cli import main
from tasks.kd.cache.format.fingerprint import FORMAT_VERSION, fingerprint
from tasks.kd.cache.format.manifest import Live
from tasks.kd.recipe.files import load_recipe
from tests.isolation import ROOT
from tests.makers.documents import make_data_card, make_split_card

STREAMS = ["logits", "hidden.0", "hidden.2", "hidden.4", "hidden.6"]
LINE = "  streams: [logits, hidden.0, hidden.2, hidden.4, hidden.6]\n"
Ask = Callable[..., Result]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The quickstart, in a repository of its own in which nothing has run."""
    (tmp_path / "params").mkdir()
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params" / "recipes.yaml").write_text(
        "recipes:\n  triage: {train: params/remote, test: params/remote, teacher: params/remote, "
        "student: params/remote, more_teachers: params/remote}\n"
    )
    path = tmp_path / "params" / "triage.yaml"
    shutil.copy(ROOT / "params" / "quickstart.yaml", path)
    monkeypatch.chdir(tmp_path)
    return path


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cache", "plan", *arguments])


def read(*arguments: str) -> Any:
    result = ask(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def prepare_data(recipe: Path, examples: int = 1000, tokens: int = 50_000) -> None:
    folder = recipe.parents[1] / "artifacts" / recipe.stem / "prepare_data"
    folder.mkdir(parents=True)
    train = make_split_card(("a", "b"), examples=examples, tokens=tokens)
    make_data_card(("a", "b"), splits={"train": train}).write(folder)


# --- figures -------------------------------------------------------------------------------------


def test_a_plan_needs_nothing_but_the_recipe(recipe: Path) -> None:
    found = read("triage")
    assert (found["streams"], found["unread"], found["mode"]) == (STREAMS, [], "cache")
    assert (found["stale"], found["wrote"], found["texts"], found["bytes"]) == (
        False, False, None, None,
    )  # fmt: skip
    served = {one["stream"]: one for one in found["served"]}
    assert (served["hidden.0"]["source"], served["hidden.0"]["piece"]) == (
        "the token ids", "embeddings",
    )  # fmt: skip
    assert served["hidden.2"]["bytes_per_token"] == 2 * 384 + 4
    assert found["tokens_per_example"] == 64
    assert found["naive_bytes_per_token"] == 4 * 4 * 384
    assert (found["recompute_share"], found["break_even_epochs"], found["epochs"]) == (0, 1, 3)
    said = ask("triage").stdout
    for part in (LINE.strip(), "as the recipe has them", "Totals once the data are prepared"):
        assert part in said
    for part in ("and 4 a", "float16 (the recipe's)", "int8", "64", "quota 4.0 GiB", "1.00 epochs"):
        assert part in said


def test_prepared_data_give_totals_for_every_codec(recipe: Path) -> None:
    prepare_data(recipe)
    found = read("triage")
    ids, logits = 4 * 50_000 + 24 * 1000, 8 * 1000
    expected = {
        codec: 3 * (size * 50_000 + ids) + logits + ids
        for codec, size in {
            "float32": 4 * 384, "float16": 2 * 384, "bfloat16": 2 * 384, "int8": 384 + 2,
        }.items()
    }  # fmt: skip
    assert {codec: size["bytes"] for codec, size in found["codecs"].items()} == expected
    assert (found["bytes"], found["tokens_per_example"]) == (expected["float16"], 50)
    assert found["fits"]
    assert "MiB fits: quota" in ask("triage").stdout


def test_a_cache_over_its_quota_or_the_disk_is_said_not_to_fit(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_data(recipe)
    change(recipe, "quota_gib: 4.0", "quota_gib: 0.01")
    assert read("triage")["fits"] is False
    assert "DOES NOT FIT: quota 10.2 MiB" in ask("triage").stdout
    change(recipe, "quota_gib: 0.01", "quota_gib: 4.0")
    monkeypatch.setattr(
        cache_plan, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1))
    )
    found = read("triage")
    assert (found["free_bytes"], found["fits"]) == (1, False)


def test_attention_is_planned_as_recomputed_and_priced(recipe: Path) -> None:
    change(
        recipe,
        "        - {level: prediction, loss: labels, weight: 0.5}\n",
        "        - {level: prediction, loss: labels, weight: 0.5}\n"
        "        - {level: attention, loss: kl, layer_map: uniform, heads: each, weight: 1.0}\n",
    )
    change(recipe, LINE, "  streams: [logits]\n")
    found = read("triage")
    served = {one["stream"]: one for one in found["served"]}
    assert (served["attention.4"]["source"], served["attention.4"]["piece"]) == (
        "hidden.3", "layer.4",
    )  # fmt: skip
    assert (served["hidden.3"]["read"], served["hidden.3"]["needed_for"]) == (
        False, ["attention.4"],
    )  # fmt: skip
    share = 3 * 3 / (12 * 6)  # three of six layers of 12·d², for 3·d² each
    assert found["recompute_share"] == pytest.approx(share)
    assert found["break_even_epochs"] == pytest.approx(1 / (1 - share))
    said = ask("triage").stdout
    assert "NOT as the recipe has them" in said
    assert "12.5 % of a teacher's pass" in said
    assert "1.14 epochs on, this recipe reads in 3" in said


def test_a_live_recipe_is_planned_as_if_it_were_cached(recipe: Path) -> None:
    change(recipe, "mode: cache\n", "mode: live\n")
    assert read("triage")["mode"] == "live"
    assert "mode live: nothing is stored" in ask("triage").stdout


def test_what_mode_auto_measured_is_told(recipe: Path) -> None:
    change(recipe, "mode: cache\n", "mode: auto\n")
    assert read("triage")["measured"] is None
    made_of: dict[str, Any] = {"mode": "live"}
    manifest = recipe.parents[1] / "artifacts" / "triage" / "cache_teacher" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    why = "a pass of the teacher takes 10 µs a token"
    Live(
        format_version=FORMAT_VERSION, fingerprint=fingerprint(made_of), made_of=made_of,
        kind="live", why=why, layers=6,
    ).write(manifest)  # fmt: skip
    assert read("triage")["measured"] == why
    assert why in ask("triage").stdout
    manifest.write_text("{")
    assert read("triage")["measured"] is None


def test_a_plan_makes_no_store(recipe: Path) -> None:
    before = set(recipe.parents[1].rglob("*"))
    assert ask("triage").exit_code == 0
    assert set(recipe.parents[1].rglob("*")) == before


# --- streams -------------------------------------------------------------------------------------


WRONG = [
    "  streams: [logits]\n",
    "  streams: []\n",
    "",
    "  streams: [logits, hidden.99]\n",
    "  streams: [logits, logits]\n",
    "  streams: hidden\n",
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_recipe_whose_streams_are_wrong_can_be_planned_and_mended(
    recipe: Path, wrong: str
) -> None:
    whole = recipe.read_text()
    change(recipe, LINE, wrong)
    found = read("triage")
    assert (found["streams"], found["stale"]) == (STREAMS, True)
    assert "NOT as the recipe has them" in ask("triage").stdout
    assert wrong in recipe.read_text()  # nothing was written
    done = read("triage", "--write")
    assert (done["wrote"], done["stale"]) == (True, False)
    assert load_recipe(recipe).cache_teacher.streams == tuple(STREAMS)
    if wrong:
        assert recipe.read_text() == whole  # comments, blanks and numbers as they were
    assert read("triage", "--write")["wrote"] is False


def test_a_list_in_lines_of_its_own_stays_one_and_keeps_what_follows(recipe: Path) -> None:
    lines = "  streams:\n{}  # of the hidden states\n  codec: float16\n"
    change(recipe, LINE + "  codec: float16\n", lines.format("    - logits\n    - hidden.2\n\n"))
    assert "written to" in ask("triage", "--write").stdout
    wanted = "".join(f"    - {stream}\n" for stream in STREAMS)
    assert lines.format(wanted + "\n") in recipe.read_text()


def test_streams_that_no_level_reads_are_named_priced_and_left_out_when_written(
    recipe: Path,
) -> None:
    whole = recipe.read_text()
    change(recipe, "hidden.6]\n", "hidden.5, hidden.6]\n")
    found = read("triage")
    assert (found["streams"], found["unread"]) == (STREAMS, ["hidden.5"])
    assert "hidden.5" in {one["stream"] for one in found["served"]}
    assert "No level reads hidden.5" in ask("triage").stdout
    ask("triage", "--write")
    assert recipe.read_text() == whole


def test_the_order_of_streams_is_the_recipes_own_business(recipe: Path) -> None:
    change(recipe, "[logits, hidden.0,", "[hidden.0, logits,")
    before = recipe.read_text()
    assert read("triage", "--write")["wrote"] is False
    assert recipe.read_text() == before


def test_labels_alone_need_no_teacher_and_are_not_written(recipe: Path) -> None:
    text = recipe.read_text()
    levels = [line for line in text.splitlines(True) if "- {level:" in line]
    for line in levels:
        labels = "        - {level: prediction, loss: labels, weight: 0.5}\n"
        text = text.replace(line, "" if line in levels[2:] else labels, 1)
    recipe.write_text(text)
    found = read("triage")
    assert (found["streams"], found["unread"], found["epochs"]) == ([], STREAMS, 0)
    result = ask("triage", "--write")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no level of this recipe reads its teacher" in result.stderr
    assert recipe.read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  codec: float16\n", "  codec: zip\n", "cache_teacher.codec"),
        ("  layers: 6\n", "  layers: six\n", "train_teacher.layers"),
        ("train_student:\n", "train_students:\n", "train_student"),
        ("cache_teacher:\n", "cache_teacher: [\n", "not valid YAML"),
        ("gate:\n", "gates:\n", "gates: unknown field"),
    ],
)
def test_other_faults_are_told_with_their_lines_and_nothing_is_written(
    recipe: Path, old: str, new: str, said: str
) -> None:
    change(recipe, LINE, "  streams: [logits]\n")
    change(recipe, old, new)
    before = recipe.read_text()
    for arguments in (["triage"], ["triage", "--write"]):
        result = ask(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr
        assert f"{recipe}:" in result.stderr
    assert recipe.read_text() == before


def test_an_unknown_recipe_names_those_that_are_near(recipe: Path) -> None:
    result = ask("triagee")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no recipe 'triagee'. Expected one of triage" in result.stderr


def test_a_recipe_is_found_by_path_too(recipe: Path) -> None:
    assert read(str(recipe))["recipe"] == "triage"
