from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.kd.data import read_data_card, read_split
from tasks.kd.digests import Digests
from tasks.stages import digest_code
from tests.stages.conftest import CODE


def test_it_leaves_splits_that_are_what_the_card_says(finished: Any) -> None:
    out = finished.out("prepare_data")
    card = read_data_card(out)
    assert card["labels"] == ["corn", "money", "ships"]
    for name, described in card["splits"].items():
        split = read_split(out / f"{name}.arrow")
        assert len(split) == described["examples"]
        assert int(split.lengths.sum()) == described["tokens"]
        assert int(split.lengths.max()) == described["longest_tokens"] <= 16
        assert sum(described["label_counts"].values()) == len(split)
        assert all(described["label_counts"].values())
    assert card["splits"]["train"]["examples"] + card["splits"]["dev"]["examples"] == 150


def test_no_text_is_in_two_splits_and_ids_are_unique(finished: Any) -> None:
    out = finished.out("prepare_data")
    splits = {name: read_split(out / f"{name}.arrow") for name in ("train", "dev", "test")}
    ids = [key for split in splits.values() for key in split.example_ids]
    assert len(set(ids)) == len(ids)
    assert not set(splits["train"].texts) & (set(splits["dev"].texts) | set(splits["test"].texts))


def test_the_same_recipe_gives_the_same_bytes(broken: Any) -> None:
    out = broken.out("prepare_data")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert broken.run("prepare_data").returncode == 0
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_random_texts_stand_behind_the_training_texts(broken: Any) -> None:
    before = read_split(broken.out("prepare_data") / "train.arrow")
    cards = [read_data_card(broken.out("prepare_data"))]
    broken.change(lambda recipe: recipe["prepare_data"].update(random_texts=2))
    assert broken.run("prepare_data").returncode == 0
    after = read_split(broken.out("prepare_data") / "train.arrow")
    cards.append(read_data_card(broken.out("prepare_data")))
    assert after.labelled.tolist() == list(range(len(before)))
    assert after.example_ids[: len(before)] == before.example_ids
    assert len(after) == 3 * len(before)
    assert after.lengths.tolist() == before.lengths.tolist() * 3
    own, larger = (card["splits"]["train"] for card in cards)
    assert (own["unlabelled"], larger["unlabelled"]) == (0, 2 * len(before))
    assert own["label_counts"] == larger["label_counts"]
    assert cards[0]["encoded_sha256"] != cards[1]["encoded_sha256"]
    assert cards[0]["splits"]["dev"] == cards[1]["splits"]["dev"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("body,topic\nword1 word2,pebbles\n", "label that the training split lacks"),
        ("body,topic\n", "an empty split"),
        ("text,topic\nword1,corn\n", "no column 'body'"),
        ("body,topic\n ,corn\n", "without text or label"),
    ],
)
def test_a_test_split_that_cannot_be_used_is_refused(broken: Any, table: str, said: str) -> None:
    (broken.out("fetch_sources") / "data" / "test.csv").write_text(table)
    done = broken.run("prepare_data")
    assert done.returncode == 2
    assert said in done.stderr
    assert broken.error("prepare_data")["type"] == "DataError"


def test_too_few_examples_for_a_dev_split_are_refused(broken: Any) -> None:
    broken.change(lambda recipe: recipe["prepare_data"].update(dev_fraction=0.001))
    done = broken.run("prepare_data")
    assert done.returncode == 2
    assert "too few training examples for a dev split" in done.stderr


def test_texts_longer_than_the_teacher_reads_are_refused(broken: Any) -> None:
    broken.change(lambda recipe: recipe["prepare_data"].update(max_length_tokens=64))
    done = broken.run("prepare_data")
    assert done.returncode == 2
    assert "Expected at most 32, found 64" in done.stderr


@pytest.mark.parametrize(
    ("family", "positions"), [("bert", 32), ("electra", 32), ("roberta", 31), ("mpnet", 31)]
)
def test_positions_begin_after_the_padding_id_in_some_families(
    broken: Any, family: str, positions: int
) -> None:
    path = broken.out("fetch_sources") / "teacher" / "config.json"
    path.write_text(path.read_text().replace('"model_type": "bert"', f'"model_type": "{family}"'))
    broken.change(lambda recipe: recipe["prepare_data"].update(max_length_tokens=64))
    done = broken.run("prepare_data")
    assert f"Expected at most {positions}, found 64" in done.stderr


def test_a_tokenizer_with_more_tokens_than_the_teacher_s_table_is_refused(broken: Any) -> None:
    path = broken.out("fetch_sources") / "teacher" / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 64', '"vocab_size": 60'))
    done = broken.run("prepare_data")
    assert done.returncode == 2
    assert "more tokens than the model's table" in done.stderr


def test_only_its_own_work_is_cleared_when_it_is_done(broken: Any) -> None:
    work = broken.root / ".work"
    old, others = (
        work / f"prepare_data-small-{'0' * 16}",
        work / f"prepare_data-small-v2-{'0' * 16}",
    )
    for folder in (old, others):
        folder.mkdir(parents=True)
    assert broken.run("prepare_data").returncode == 0
    assert (old.exists(), others.exists()) == (False, True)


def test_what_an_earlier_stage_left_must_be_there(bare: Any) -> None:
    done = bare.run("prepare_data")
    assert done.returncode == 2
    assert "Run: dvc repro fetch_sources@small" in done.stderr


def test_work_in_progress_is_another_s_where_the_code_changed(tmp_path: Path) -> None:
    code = tmp_path / "tasks" / "stages"
    code.mkdir(parents=True)
    (code / "one.py").write_text("x = 1")
    before = digest_code(tmp_path / "tasks", Digests())
    assert digest_code(tmp_path / "tasks", Digests()) == before
    (code / "one.py").write_text("x = 2")
    assert digest_code(tmp_path / "tasks", Digests()) != before


# --- what decides its out changes while it runs ---------------------------------------------------

OTHER_SEED = "sed -i '0,/seed: .*/s//seed: 99/' params/small.yaml"


def bring_code(project: Any) -> None:
    """A copy of the programs in the project, which stands first where Python looks."""
    here = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CODE / "tasks", project.root / "tasks", ignore=here)


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("params/small.yaml: prepare_data", OTHER_SEED),
        (
            "artifacts/small/fetch_sources",
            "echo word1,corn >> artifacts/small/fetch_sources/data/train.csv",
        ),
        ("tasks/kd/tables.py", "echo '# other' >> tasks/kd/tables.py"),
        ("tasks/kd/tables.py", "rm tasks/kd/tables.py"),
        ("tasks/stages/prepare_data.py", "echo '# other' >> tasks/stages/prepare_data.py"),
    ],
)
def test_an_out_that_was_made_from_what_is_no_longer_there_is_not_kept(
    broken: Any, what: str, command: str
) -> None:
    bring_code(broken)
    done = broken.run("prepare_data", meanwhile=command, PYTHONPATH="")
    assert done.returncode == 1, done.stderr
    error = broken.error("prepare_data")
    assert error["type"] == "StageError"
    said = f"{what} changed while the stage ran: prepare_data@small."
    assert error["message"].startswith(said)
    assert error["message"].endswith("Run: dvc repro prepare_data@small")
    assert not broken.out("prepare_data").exists()
    (work,) = (broken.root / ".work").glob("prepare_data-small-*")
    assert str(work) in error["message"]
    assert (work / "out" / "data_card.json").exists()


@pytest.mark.parametrize(
    "command",
    [
        "sed -i 's/latency_examples: .*/latency_examples: 21/' params/small.yaml",
        "echo '# other' >> tasks/registry/store.py",
        "touch artifacts/small/fetch_sources/data/train.csv params/small.yaml tasks/kd/tables.py",
    ],
)
def test_what_had_no_part_in_an_out_may_change(broken: Any, command: str) -> None:
    bring_code(broken)
    done = broken.run("prepare_data", meanwhile=command, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert broken.out("prepare_data").exists()
    assert not list((broken.root / ".work").glob("prepare_data-small-*"))
