from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tasks.kd.data.examples.prepared import Split, read_split
from tasks.kd.digests import Digests, read_json, write_json
from tasks.kd.documents.data_card import DataCard, Replaced
from tasks.kd.documents.sources import Sources
from tasks.kd.errors import DataError
from tasks.kd.tokens.encoding import encode
from tasks.kd.tokens.tokenizers import load_tokenizer, write_tokenizer_folder
from tasks.stages import INPUTS, digest_code
from tasks.stages.prepare_data import prove_tokens
from tests.makers.documents import change
from tests.makers.tokenizer_folders import TEXTS, WORDS, wordpiece, write_folder
from tests.stages.conftest import CODE


def test_it_leaves_splits_that_are_what_the_card_says(finished: Any) -> None:
    out = finished.out("prepare_data")
    card = DataCard.read(out)
    assert card.labels == ("corn", "money", "ships")
    for name, described in card.splits.given.items():
        split = read_split(out / f"{name}.arrow")
        assert len(split) == described.examples
        assert int(split.lengths.sum()) == described.tokens
        assert int(split.lengths.max()) == described.longest_tokens <= 16
        assert sum(described.label_counts.values()) == len(split)
        assert all(described.label_counts.values())
    assert card.splits.train.examples + card.splits.dev.examples == 150


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
    cards = [DataCard.read(broken.out("prepare_data"))]
    broken.change(lambda recipe: recipe["prepare_data"].update(random_texts=2))
    assert broken.run("prepare_data").returncode == 0
    after = read_split(broken.out("prepare_data") / "train.arrow")
    cards.append(DataCard.read(broken.out("prepare_data")))
    assert after.labelled.tolist() == list(range(len(before)))
    assert after.example_ids[: len(before)] == before.example_ids
    assert len(after) == 3 * len(before)
    assert after.lengths.tolist() == before.lengths.tolist() * 3
    own, larger = (card.splits.train for card in cards)
    assert (own.unlabelled, larger.unlabelled) == (0, 2 * len(before))
    assert own.label_counts == larger.label_counts
    assert cards[0].encoded_sha256 != cards[1].encoded_sha256
    assert cards[0].splits.dev == cards[1].splits.dev


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


# --- tokens ---------------------------------------------------------------------------------------


def test_what_is_cut_and_what_is_unknown_is_told_by_split(finished: Any) -> None:
    out = finished.out("prepare_data")
    card = DataCard.read(out)
    for name, described in card.splits.given.items():
        # A word is a token here, and two stand around a text.
        whole = [len(text.split()) + 2 for text in read_split(out / f"{name}.arrow").texts]
        assert described.cut_fraction == np.mean([length > 16 for length in whole])
        assert described.tokens_for_99_percent == sorted(whole)[-(len(whole) // 100) - 1]
        assert described.unknown_fraction == 0
    assert card.truncation_side == "right"
    (warning,) = [text for text in card.warnings if "of the training texts are cut" in text]
    assert "would keep 99 % of them whole" in warning


def use_texts(project: Any, words: list[str], count: int = 120) -> None:
    """Training texts of three of these words each."""
    texts = [" ".join(words[(row + i) % len(words)] for i in (0, 1, 2)) for row in range(count)]
    rows = [f"{text} {row},{'corn' if row % 2 else 'money'}" for row, text in enumerate(texts)]
    test = ["body,topic", "word1 word2 word3,corn", ""]
    folder = project.out("fetch_sources") / "data"
    (folder / "train.csv").write_text("\n".join(["body,topic", *rows, ""]))
    (folder / "test.csv").write_text("\n".join(test))
    project.change(lambda recipe: recipe["prepare_data"].update(train_examples=None))


def test_texts_that_the_tokenizer_does_not_know_are_refused_with_examples(broken: Any) -> None:
    use_texts(broken, ["Guten", "word1", "word2"])
    broken.change(lambda recipe: recipe["prepare_data"].update(max_unknown_fraction=0.6))
    done = broken.run("prepare_data")
    assert done.returncode == 0, done.stderr
    assert "train: 0.0% of the texts cut at 16 tokens (6 would keep 99 % whole)" in done.stderr
    assert "50.00% unknown tokens" in done.stderr  # each text's number is none of its words either
    broken.change(lambda recipe: recipe["prepare_data"].update(max_unknown_fraction=0.4))
    done = broken.run("prepare_data")
    assert done.returncode == 2
    assert "the teacher's tokenizer does not know the training texts" in done.stderr
    assert "Expected at most 40.0% unknown tokens" in done.stderr
    assert "found 50.0%, most often 'Guten'" in done.stderr


def test_ids_that_are_not_the_teacher_s_are_refused(tmp_path: Path) -> None:
    teacher = load_tokenizer(write_folder(tmp_path / "teacher", wordpiece()))
    other = load_tokenizer(write_folder(tmp_path / "other", wordpiece(WORDS[::-1])))
    params: Any = SimpleNamespace(max_length_tokens=8)

    def prove(used: Any, saved: Any) -> None:
        write_tokenizer_folder(saved, tmp_path / "saved", 8)
        ids = encode(used.cut_at(8), TEXTS)
        split = Split(TEXTS, TEXTS, np.zeros(len(TEXTS), dtype=np.int64), ids)
        prove_tokens(teacher, tmp_path / "saved", split, params)

    prove(teacher, teacher)
    with pytest.raises(DataError, match=r"other token ids .*teacher/tokenizer.json"):
        prove(other, teacher)
    with pytest.raises(DataError, match=r"other token ids .*saved"):
        prove(teacher, other)


def served_tokenizer(exported: Path) -> Tokenizer:
    """The tokenizer of the model as MLflow serves it."""
    with warnings.catch_warnings():  # mlflow.pyfunc warns of a type hint in its own base class
        warnings.simplefilter("ignore")
        from tasks.serving.served_student import ServedStudent
    served = ServedStudent()
    files = {"network": "model.onnx", "tokenizer": "tokenizer.json", "student": "student.json"}
    artifacts = {name: str(exported / file) for name, file in files.items()}
    context: Any = SimpleNamespace(artifacts=artifacts)
    served.load_context(context)
    return served.tokenizer


@pytest.mark.slow
def test_a_teacher_that_reads_the_end_of_a_text_is_followed_to_the_served_model(
    broken: Any,
) -> None:
    base = broken.root / "models" / "base"
    settings = read_json(base / "tokenizer_config.json")
    write_json(base / "tokenizer_config.json", {**settings, "truncation_side": "left"})
    broken.run_all(*list(INPUTS)[:-1])
    texts = [f"word1 {'word2 ' * 30} word3", "word1 word2", "", "word9 [PAD] other"]
    own = AutoTokenizer.from_pretrained(base, local_files_only=True)
    expected = own(texts, truncation=True, max_length=16)["input_ids"]
    assert expected[0][1] != expected[1][1]  # the first text's beginning is cut
    for folder in ("prepare_data/tokenizer", "train_teacher/model", "train_student/model"):
        loaded = AutoTokenizer.from_pretrained(broken.out("") / folder, local_files_only=True)
        assert loaded(texts, truncation=True)["input_ids"] == expected
        assert (loaded.truncation_side, loaded.pad_token) == ("left", "[PAD]")
    exported = broken.out("export_student")
    served = served_tokenizer(exported)
    assert [one.ids for one in served.encode_batch(texts)] == expected
    assert (served.truncation or {})["direction"] == "left"
    assert DataCard.read(broken.out("prepare_data")).truncation_side == "left"


# --- rows that are left out, changed or too few ---------------------------------------------------


def give_rows(project: Any, train: list[str], test: list[str] | None = None) -> None:
    """Other fetched tables; and a recipe for so few."""
    for split, rows in (("train", train), ("test", test)):
        if rows is not None:
            path = project.out("fetch_sources") / "data" / f"{split}.csv"
            path.write_text("\n".join(["body,topic", *rows]) + "\n", newline="")
    few = {"min_train_examples": 1, "max_unknown_fraction": 1.0}
    project.change(lambda recipe: recipe["prepare_data"].update(few))


def rows_of(topic: str, count: int, of: str = "word") -> list[str]:
    return [f"{of}{i} {of}{topic},{topic}" for i in range(count)]


def refusal(project: Any) -> str:
    """What the stage says, which is one line of ours and no traceback."""
    done = project.run("prepare_data")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert not project.out("prepare_data").exists()
    return str(project.error("prepare_data")["message"])


def test_a_training_file_that_is_the_test_file_is_refused(broken: Any) -> None:
    data = broken.out("fetch_sources") / "data"
    shutil.copyfile(data / "test.csv", data / "train.csv")
    said = "all training texts are in the test split as well: fetch_sources.data.train. Expected "
    assert refusal(broken).startswith(said)


def test_a_training_file_that_shrank_is_refused_with_both_figures(broken: Any) -> None:
    rows = [*rows_of("corn", 6), *rows_of("money", 6), "word0 wordcorn,corn"]
    give_rows(broken, rows, ["tested,corn"])
    broken.change(lambda recipe: recipe["prepare_data"].update(min_train_examples=110))
    assert refusal(broken) == (
        "the training file has fewer usable rows than it must have: "
        "prepare_data.min_train_examples. Expected at least 110, found 12 of 13 rows read, left "
        "out: 1 repeated. Mend the file, or lower the number if so few are right."
    )
    broken.change(lambda recipe: recipe["prepare_data"].update(min_train_examples=12))
    assert broken.run("prepare_data").returncode == 0


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (["x,corn", "x,money"], "fewer usable rows than it must have"),
        (["x,corn", "y,money"], "too few training examples for a dev split"),
        (["x,corn"] * 9, "too few training examples for a dev split"),
        (rows_of("corn", 40), "the training split has a single label"),
        (["x,corn"], "too few training examples"),
        ([], "an empty split"),
    ],
)
def test_tables_too_small_for_anything_are_refused(
    broken: Any, train: list[str], said: str
) -> None:
    give_rows(broken, train, ["tested,corn"])
    assert said in refusal(broken)


def test_classes_with_few_rows_and_none_in_the_test_are_warned_of(broken: Any) -> None:
    train = [*rows_of("corn", 40), *rows_of("money", 40), "a,ships", "b,ships", "c,rye"]
    give_rows(broken, train, ["tested,corn", "tested too,money"])
    done = broken.run("prepare_data")
    assert done.returncode == 0, done.stderr
    warnings = DataCard.read(broken.out("prepare_data")).warnings
    assert warnings == (
        "classes without test rows: rye, ships",
        "classes with fewer than 5 training rows: rye (1), ships (2)",
    )
    for warning in warnings:
        assert f"prepare_data: warning: {warning}\n" in done.stderr


def test_a_class_of_the_test_alone_stays_refused(broken: Any) -> None:
    give_rows(broken, [*rows_of("corn", 40), *rows_of("money", 40)], ["tested,ships"])
    assert "the test split has a label that the training split lacks" in refusal(broken)


def give_json_lines(project: Any, train: list[str], test: list[str]) -> None:
    """The same fetched source, had it been JSON lines."""
    folder = project.out("fetch_sources")
    for split, texts in (("train", train), ("test", test)):
        (folder / "data" / f"{split}.csv").unlink()
        rows = [
            f'{{"body": "{x}", "topic": "{("corn", "money")[i % 2]}"}}' for i, x in enumerate(texts)
        ]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(rows))
    sources = Sources.read(folder)
    data = {
        **sources.data,
        "train": "data/train.jsonl",
        "test": "data/test.jsonl",
        "format": {"kind": "jsonl"},
    }
    change(sources, data=data).write(folder)
    project.change(lambda recipe: recipe["prepare_data"].update(min_train_examples=1))


@pytest.mark.parametrize("mode", ["refuse", "replace", "drop"])
def test_texts_that_no_tokenizer_can_encode(broken: Any, mode: str) -> None:
    train = [f"word{i} word1" for i in range(60)]
    train[4] += " \\ud83d"
    give_json_lines(broken, train, ["one", "two", "\\udc00 three", "four \\udc00"])
    broken.change(lambda recipe: recipe["prepare_data"].update(on_unreadable=mode))
    if mode == "refuse":
        assert "no tokenizer can encode: data/train.jsonl, row 5, line 5, column 'body'" in refusal(
            broken
        )
        return
    done = broken.run("prepare_data")
    assert done.returncode == 0, done.stderr
    out = broken.out("prepare_data")
    card, dropped = DataCard.read(out), mode == "drop"
    assert card.dropped["unreadable"] == (1 if dropped else 0)
    assert card.dropped_from_test["unreadable"] == (2 if dropped else 0)
    assert card.replaced == (Replaced(train=0, test=0) if dropped else Replaced(train=1, test=2))
    assert card.splits.test.examples == (2 if dropped else 4)
    texts = read_split(out / "test.arrow").texts
    assert texts == (["one", "two"] if dropped else ["one", "two", "\ufffd three", "four \ufffd"])
    if dropped:
        assert "; left out of train: 1 unreadable; left out of test: 2 unreadable" in done.stderr
    else:
        assert "; U+FFFD put into 1 texts of train; U+FFFD put into 2 texts of test" in done.stderr


def test_parts_of_a_source_are_one_split(broken: Any) -> None:
    folder = broken.out("fetch_sources") / "data"
    header, *lines = (folder / "train.csv").read_text().splitlines()
    before = broken.run("prepare_data")
    whole = read_split(broken.out("prepare_data") / "train.arrow").example_ids
    (folder / "train.csv").unlink()
    (folder / "train").mkdir()
    for name, part in (("a.csv", lines[:100]), ("b.csv", lines[100:])):
        (folder / "train" / name).write_text("\n".join([header, *part]))
    assert before.returncode == broken.run("prepare_data").returncode == 0
    assert read_split(broken.out("prepare_data") / "train.arrow").example_ids == whole
    (folder / "train" / "b.csv").write_text(f"{header}\n\nx\n")
    assert "number of columns: data/train.csv/b.csv, row 1, line 3" in refusal(broken)


def test_labels_are_spelled_as_the_tuned_teacher_spells_them(broken: Any) -> None:
    """A boolean has one spelling in any table; a champion answers with the teacher's own."""
    give_rows(broken, [*rows_of("True", 40), *rows_of("false", 40)], ["tested,TRUE"])
    assert broken.run("prepare_data").returncode == 0
    assert DataCard.read(broken.out("prepare_data")).labels == ("false", "true")
    path = broken.out("fetch_sources") / "teacher" / "config.json"
    write_json(path, read_json(path) | {"id2label": {"0": "True", "1": "False"}, "label2id": None})
    assert broken.run("prepare_data").returncode == 0
    assert DataCard.read(broken.out("prepare_data")).labels == ("True", "False")


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
        ("tasks/kd/data/tables.py", "echo '# other' >> tasks/kd/data/tables.py"),
        ("tasks/kd/data/tables.py", "rm tasks/kd/data/tables.py"),
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
    assert (work / "out" / DataCard.FILE).exists()


@pytest.mark.parametrize(
    "command",
    [
        "sed -i 's/latency_examples: .*/latency_examples: 21/' params/small.yaml",
        "echo '# other' >> tasks/registry/store.py",
        "touch artifacts/small/fetch_sources/data/train.csv params/small.yaml",
        "touch tasks/kd/data/tables.py",
    ],
)
def test_what_had_no_part_in_an_out_may_change(broken: Any, command: str) -> None:
    bring_code(broken)
    done = broken.run("prepare_data", meanwhile=command, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert broken.out("prepare_data").exists()
    assert not list((broken.root / ".work").glob("prepare_data-small-*"))
