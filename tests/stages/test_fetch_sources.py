from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from tasks.kd.digests import sha256_file
from tasks.kd.errors import DataError
from tasks.stages.fetch_sources import require_one_vocabulary
from tests.makers.tiny import tiny_model, tiny_tokenizer


def test_it_leaves_the_sources_with_their_digests(finished: Any) -> None:
    sources = finished.json("fetch_sources", "sources.json")
    out: Path = finished.out("fetch_sources")
    assert {"data/train.csv", "data/test.csv", "teacher/model.safetensors"} <= set(sources["files"])
    for name, digest in sources["files"].items():
        assert sha256_file(out / name) == digest
    assert not list((finished.root / ".work").glob("fetch_sources*"))


def test_a_missing_file_ends_with_2_and_a_record_for_the_flow(bare: Any) -> None:
    (bare.root / "data" / "test.csv").unlink()
    done = bare.run("fetch_sources")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    error = bare.error("fetch_sources")
    assert error["type"] == "DataError"
    assert not error["transient"]
    assert error["message"] in done.stderr
    assert not bare.out("fetch_sources").exists()


def test_the_record_of_a_fault_goes_when_it_is_mended(bare: Any) -> None:
    hidden = bare.root / "test.csv"
    (bare.root / "data" / "test.csv").rename(hidden)
    assert bare.run("fetch_sources").returncode == 2
    hidden.rename(bare.root / "data" / "test.csv")
    assert bare.run("fetch_sources").returncode == 0
    assert not list((bare.root / ".work" / "errors").iterdir())


def test_a_recipe_that_cannot_be_run_is_refused_before_anything_is_written(bare: Any) -> None:
    bare.change(lambda recipe: recipe["prepare_data"].update(seed="x"))
    done = bare.run("fetch_sources")
    assert done.returncode == 2
    assert "params/small.yaml:" in done.stderr
    assert "prepare_data.seed" in done.stderr
    assert not bare.out("fetch_sources").exists()


def test_an_out_that_cannot_be_written_is_said_in_one_line(bare: Any) -> None:
    (bare.root / "artifacts").write_text("in the way")
    done = bare.run("fetch_sources")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the system refused" in done.stderr


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("data/train.csv", "echo word1,corn >> data/train.csv"),
        ("models/base", "echo {} > models/base/more.json"),
        ("models/base", "rm models/base/config.json"),
        ("data/test.csv", "rm data/test.csv"),
    ],
)
def test_a_copy_of_what_is_no_longer_there_is_not_kept(bare: Any, what: str, command: str) -> None:
    done = bare.run("fetch_sources", meanwhile=command)
    assert done.returncode == 1, done.stderr
    said = f"{what} changed while the stage ran: fetch_sources@small."
    assert bare.error("fetch_sources")["message"].startswith(said)
    assert not bare.out("fetch_sources").exists()


# --- a model for the student to start from --------------------------------------------------------


def give_student(project: Any, **config: Any) -> Path:
    """A model of half the depth with the tokenizer, and the recipe that starts from it."""
    folder: Path = project.root / "models" / "student"
    shutil.copytree(project.root / "models" / "base", folder)
    model = tiny_model(2, seed=5)
    model.config.update(config)
    model.save_pretrained(folder)

    def change(recipe: Any) -> None:
        recipe["fetch_sources"]["student"] = {"kind": "path", "folder": "models/student"}
        recipe["train_student"]["student"]["initial"] = {"kind": "checkpoint"}

    project.change(change)
    return folder


def test_the_student_s_start_is_fetched_like_the_teacher(bare: Any) -> None:
    folder = give_student(bare)
    done = bare.run("fetch_sources")
    assert done.returncode == 0, done.stderr
    assert "student's base from path models/student" in done.stderr
    sources = bare.json("fetch_sources", "sources.json")
    assert sources["student"] == {"kind": "path", "folder": "models/student"}
    digest = sources["files"]["student/model.safetensors"]
    assert digest == sha256_file(folder / "model.safetensors")


def test_without_one_there_is_none(finished: Any) -> None:
    assert finished.json("fetch_sources", "sources.json")["student"] is None
    assert not (finished.out("fetch_sources") / "student").exists()


def rename_word(tokenizer: Any) -> None:
    tokenizer["model"]["vocab"]["other"] = tokenizer["model"]["vocab"].pop("word7")


def swap_words(tokenizer: Any) -> None:
    words = tokenizer["model"]["vocab"]
    words["word3"], words["word7"] = words["word7"], words["word3"]


def fold_case(tokenizer: Any) -> None:
    tokenizer["normalizer"] = {"type": "Lowercase"}


def split_otherwise(tokenizer: Any) -> None:
    tokenizer["pre_tokenizer"] = {"type": "WhitespaceSplit"}


def add_token(tokenizer: Any) -> None:
    tokenizer["added_tokens"].append(
        {**tokenizer["added_tokens"][0], "id": len(tokenizer["model"]["vocab"]), "content": "[NEW]"}
    )


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two models' folders with one tokenizer."""
    for name in ("teacher", "student"):
        tokenizer = tiny_tokenizer(tmp_path / name / "tokenizer.json")
        PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer), pad_token="[PAD]", unk_token="[UNK]"
        ).save_pretrained(tmp_path / name)
    return tmp_path / "teacher", tmp_path / "student"


def damage_tokenizer(folder: Path, damage: Callable[[Any], None]) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    damage(tokenizer)
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            rename_word,
            "the teacher's model, found 64 tokens for its 64, the first unlike one 'other'",
        ),
        (swap_words, "found 64 tokens for its 64, the first unlike one 'word3'"),
        (fold_case, 'Expected the teacher\'s normalizer, found {"type": "Lowercase"}'),
        (split_otherwise, "Expected the teacher's pre_tokenizer, found"),
        (add_token, "Expected the teacher's added_tokens, found"),
    ],
)
def test_a_start_of_another_vocabulary_is_refused(
    folders: tuple[Path, Path], damage: Callable[[Any], None], said: str
) -> None:
    require_one_vocabulary(*folders, "student")
    damage_tokenizer(folders[1], damage)
    with pytest.raises(DataError) as caught:
        require_one_vocabulary(*folders, "student")
    assert "a tokenizer is not the teacher's: fetch_sources.student." in str(caught.value)
    assert said in str(caught.value)


def test_the_stage_refuses_a_start_of_another_vocabulary(bare: Any) -> None:
    damage_tokenizer(give_student(bare), rename_word)
    done = bare.run("fetch_sources")
    assert done.returncode == 2, done.stderr
    assert "a tokenizer is not the teacher's: fetch_sources.student." in done.stderr
    assert not bare.out("fetch_sources").exists()


def test_what_is_said_around_a_text_is_no_other_vocabulary(folders: tuple[Path, Path]) -> None:
    def cut(tokenizer: Any) -> None:
        ends = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
        tokenizer["truncation"] = ends

    damage_tokenizer(folders[1], cut)
    require_one_vocabulary(*folders, "student")


def test_a_start_without_a_tokenizer_is_refused(bare: Any) -> None:
    folder = give_student(bare)
    for path in folder.glob("*token*"):
        path.unlink()
    done = bare.run("fetch_sources")
    assert done.returncode == 2, done.stderr
    assert bare.error("fetch_sources")["type"] == "DataError"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", None, "no tokenizer with the model"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("tokenizer_config.json", '{"tokenizer_class": "BertweetTokenizer"}', "Python alone"),
        ("tokenizer_config.json", '{"mask_token": "[MASK]"}', "lacks special pieces"),
    ],
)
def test_a_teacher_whose_tokenizer_can_not_be_used_is_refused_as_it_is_fetched(
    bare: Any, name: str, content: str | None, said: str
) -> None:
    path = bare.root / "models" / "base" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    done = bare.run("fetch_sources")
    assert done.returncode == 2, done.stderr
    assert said in bare.error("fetch_sources")["message"]
    assert "Traceback" not in done.stderr
    assert not bare.out("fetch_sources").exists()


# --- and the student that is built from the recipe ------------------------------------------------


def start_at_once(recipe: Any) -> None:
    """A training that hardly moves its first weights."""
    for phase in recipe["train_student"]["phases"]:
        phase["learning_rate"] = 1e-12


def test_the_student_starts_from_what_was_fetched(broken: Any) -> None:
    folder = give_student(broken)
    broken.change(start_at_once)
    broken.run_all("fetch_sources", "train_student")
    weights = load_file(broken.out("train_student") / "model" / "model.safetensors")
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("bert."):  # its labels are others: the head is new
            assert (weights[name] - value).abs().max() < 1e-5, name


def test_a_start_of_another_shape_is_refused_before_the_training(broken: Any) -> None:
    folder = give_student(broken)
    tiny_model(2, width=32).save_pretrained(folder)
    assert broken.run("fetch_sources").returncode == 0
    done = broken.run("train_student")
    assert done.returncode == 2, done.stderr
    assert broken.error("train_student")["type"] == "ShapeError"
    assert "Expected hidden_size 16, intermediate_size 32, found hidden_size 32" in done.stderr


def test_a_start_that_reads_shorter_texts_only_is_refused(broken: Any) -> None:
    folder = give_student(broken, max_position_embeddings=12)
    weights = load_file(folder / "model.safetensors")
    name = "bert.embeddings.position_embeddings.weight"
    weights[name] = weights[name][:12].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert broken.run("fetch_sources").returncode == 0
    done = broken.run("train_student")
    assert done.returncode == 2, done.stderr
    assert "prepare_data.max_length_tokens. Expected at most 12, found 16" in done.stderr


@pytest.mark.parametrize("examples", [None, 20])
def test_a_narrower_student_is_trained(broken: Any, examples: int | None) -> None:
    def change(recipe: Any) -> None:
        start_at_once(recipe)
        recipe["train_student"]["student"].update(
            hidden_size=8,
            intermediate_size=16,
            initial={
                "kind": "width_reduction",
                "method": "pca",
                "layers": "uniform",
                "examples": examples,
            },
        )
        for phase in recipe["train_student"]["phases"]:
            for level in phase["levels"]:
                if "projection" in level:
                    level["projection"] = "linear"

    broken.change(change)
    done = broken.run("train_student")
    assert done.returncode == 0, done.stderr
    assert broken.json("train_student", "model/config.json")["hidden_size"] == 8
    agreement = broken.json("train_student", "report.json")["dev_accuracy"]
    assert agreement > 0.6  # untrained; of three topics the most frequent is half of the texts


def test_a_pointer_in_a_model_is_refused_before_anything_is_copied(bare: Any) -> None:
    weights = bare.root / "models" / "base" / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    done = bare.run("fetch_sources")
    assert done.returncode == 2
    assert f"a Git LFS pointer in the place of the file: {weights}" in done.stderr
    assert "git lfs pull" in done.stderr
    assert bare.error("fetch_sources")["type"] == "DataError"


def test_weights_only_as_pickles_are_refused_with_what_converts_them(bare: Any) -> None:
    weights = bare.root / "models" / "base" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    done = bare.run("fetch_sources")
    assert done.returncode == 2
    assert f"no safetensors weights: {weights}" in done.stderr
    assert "Run: python -c" in done.stderr


def test_names_of_labels_get_the_form_that_all_libraries_read(bare: Any) -> None:
    config = bare.root / "models" / "base" / "config.json"
    fields = json.loads(config.read_text()) | {"id2label": ["a", 1, 2], "label2id": None}
    config.write_text(json.dumps(fields))
    assert bare.run("fetch_sources").returncode == 0
    found = bare.json("fetch_sources", "teacher/config.json")
    assert found == fields | {
        "id2label": {"0": "a", "1": "1", "2": "2"},
        "label2id": {"a": 0, "1": 1, "2": 2},
    }
