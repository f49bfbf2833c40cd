from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.documents.data_card import DataCard
from tasks.kd.encoders.loading import load_classifier, model_sha256
from tasks.kd.errors import DataError
from tasks.kd.teacher.ensemble import parse_rule, save_rule, teacher_sha256
from tasks.kd.teacher.standing import take_standing
from tasks.stages import INPUTS
from tasks.stages.train_teacher import Answers, require_worth
from tests.makers.documents import change


def test_it_fine_tunes_and_says_how_it_went(finished: Any) -> None:
    report = finished.json("train_teacher", "report.json")
    assert report["dev_accuracy"] > 0.6
    model = finished.out("train_teacher") / "model"
    assert report["teacher_sha256"] == model_sha256(model)
    assert load_classifier(model).config.id2label == {0: "corn", 1: "money", 2: "ships"}  # type: ignore[union-attr]
    lines = (finished.out("train_teacher") / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["split"] == "dev" for line in lines) == 6


def test_a_training_whose_recipe_changed_is_kept_for_when_the_change_is_undone(broken: Any) -> None:
    expected = broken.json("train_teacher", "report.json")
    recipe = broken.root / "params" / "small.yaml"
    before = recipe.read_text()
    change = "sed -i 's/^\\( *\\)seed: .*/\\1seed: 99/' params/small.yaml"
    done = broken.run("train_teacher", meanwhile=change)
    assert done.returncode == 1, done.stderr
    assert "params/small.yaml: train_teacher changed while the stage ran" in done.stderr
    assert not broken.out("train_teacher").exists()
    recipe.write_text(before)
    done = broken.run("train_teacher")
    assert done.returncode == 0, done.stderr
    steps = expected["steps"]
    assert f"resumes at step {steps} of {steps}" in done.stderr
    again = broken.json("train_teacher", "report.json")
    assert again["teacher_sha256"] == expected["teacher_sha256"]


def give_tuned(project: Any) -> None:
    """Make the tuned teacher the source, as a team would that has one."""
    base = project.out("fetch_sources") / "teacher"
    shutil.rmtree(base)
    shutil.copytree(project.out("train_teacher") / "model", base)
    project.change(lambda recipe: recipe["train_teacher"].update(mode="given"))


def test_a_given_teacher_is_measured_and_left_as_it_is(broken: Any) -> None:
    before = broken.json("train_teacher", "report.json")
    give_tuned(broken)
    done = broken.run("train_teacher")
    assert done.returncode == 0, done.stderr
    after = broken.json("train_teacher", "report.json")
    assert after["mode"] == "given"
    assert after["steps"] == 0
    assert after["teacher_sha256"] == before["teacher_sha256"]
    assert after["dev_accuracy"] == before["dev_accuracy"]
    assert after["dev_standing"] == before["dev_standing"]
    standing = after["dev_standing"]
    errors = 1 - standing["constant"]
    assert standing["lead"] == pytest.approx(1 - (1 - after["dev_accuracy"]) / errors)
    assert 0 < standing["lead_bound"] < standing["lead"]
    assert standing["chance"] == pytest.approx(1 / 3)
    assert "given; dev accuracy" in done.stderr
    assert f"lead {standing['lead']:.2%}" in done.stderr


def edit_teacher(project: Any, **fields: Any) -> None:
    path = project.out("fetch_sources") / "teacher" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def run_given(project: Any) -> Any:
    """Prepare the data for the given teacher, and measure it."""
    for stage in ("prepare_data", "train_teacher"):
        done = project.run(stage)
        if done.returncode:
            break
    return done


GENERIC = {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "label2id": None}


def test_a_teacher_whose_labels_have_no_names_is_named_by_the_recipe(broken: Any) -> None:
    before = broken.json("train_teacher", "report.json")
    give_tuned(broken)
    edit_teacher(broken, **GENERIC)
    done = run_given(broken)
    assert done.returncode == 2
    assert "prepare_data: the teacher's labels have no names, and the data's have" in done.stderr
    pasted = "train_teacher.labels: {LABEL_0: corn, LABEL_1: money, LABEL_2: ships}"
    assert pasted in done.stderr
    assert "id2label" in done.stderr
    assert "config.json" in done.stderr
    names = {"LABEL_0": "corn", "LABEL_1": "money", "LABEL_2": "ships"}
    broken.change(lambda recipe: recipe["train_teacher"].update(labels=names))
    done = run_given(broken)
    assert done.returncode == 0, done.stderr
    assert broken.json("train_teacher", "report.json")["dev_accuracy"] == before["dev_accuracy"]
    config = json.loads((broken.out("train_teacher") / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "corn", "1": "money", "2": "ships"}
    assert config["label2id"] == {"corn": 0, "money": 1, "ships": 2}
    # A wrong order shows, with the right one to paste.
    names = {"LABEL_0": "money", "LABEL_1": "ships", "LABEL_2": "corn"}
    broken.change(lambda recipe: recipe["train_teacher"].update(labels=names))
    done = run_given(broken)
    assert done.returncode == 2
    assert "the given teacher is hardly better than one answer for all texts" in done.stderr
    assert f"(1) its labels stand in another order: so named, {before['dev_accuracy']:.2%}" in (
        done.stderr
    )
    assert f"Write {pasted}" in done.stderr


def test_a_given_teacher_that_guesses_is_refused_with_its_figures(broken: Any) -> None:
    give_tuned(broken)
    path = broken.out("fetch_sources") / "teacher" / "model.safetensors"
    weights = load_file(path)
    weights["classifier.weight"] = torch.zeros_like(weights["classifier.weight"])
    save_file(weights, path, {"format": "pt"})
    done = broken.run("train_teacher")
    assert done.returncode == 2
    assert "the given teacher is hardly better than one answer for all texts" in done.stderr
    assert "lead of 10.00% (train_teacher.min_lead)" in done.stderr
    assert "(1) a classifier head that was never trained (100% of its answers" in done.stderr
    assert "chance 33.33%" in done.stderr


def test_a_given_teacher_of_which_two_labels_are_exchanged_is_refused(tmp_path: Path) -> None:
    said: list[str] = []
    stage: Any = SimpleNamespace(params=SimpleNamespace(min_lead=0.1), log=said.append)
    labels = ["corn", "money", "ships", "trade"]

    def judge(rows: list[int]) -> None:
        cells = np.diag(rows)[[1, 0, 2, 3]]
        truth, answers = (
            [labels[i] for i in np.repeat(np.indices(cells.shape)[axis].ravel(), cells.ravel())]
            for axis in (0, 1)
        )
        standing = take_standing(truth, answers, 4)
        assert standing.is_above_chance
        require_worth(stage, tmp_path, Answers(standing, tuple(labels), cells, 0.9), labels)

    with pytest.raises(DataError, match=r"another order.*{corn: money, money: corn, ships: ship"):
        judge([25, 25, 25, 25])
    assert not said
    judge([5, 5, 45, 45])
    assert len(said) == 1
    assert "warning: some of the teacher's labels may be mixed up: so named, 100.00%" in said[0]
    judge([2, 2, 48, 48])
    assert len(said) == 1


def test_a_given_teacher_below_the_recipe_s_lead_is_refused(broken: Any) -> None:
    give_tuned(broken)
    path = broken.out("fetch_sources") / "teacher" / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"][2] -= 30  # it never answers ships
    save_file(weights, path, {"format": "pt"})
    assert broken.run("train_teacher").returncode == 0
    broken.change(lambda recipe: recipe["train_teacher"].update(min_lead=1.0))
    done = broken.run("train_teacher")
    assert done.returncode == 2
    assert "Expected a lead of 100.00% (train_teacher.min_lead)" in done.stderr


def test_weights_that_the_teacher_would_not_use_are_refused(broken: Any) -> None:
    give_tuned(broken)
    path = broken.out("fetch_sources") / "teacher" / "model.safetensors"
    extra = {"bert.encoder.layer.9.output.dense.weight": torch.zeros(2)}
    save_file(load_file(path) | extra, path, {"format": "pt"})
    done = broken.run("train_teacher")
    assert done.returncode == 2
    assert "1 weights would not be used" in done.stderr
    assert "layer.9.output.dense.weight" in done.stderr


@pytest.mark.slow
def test_a_label_that_today_s_texts_lack_goes_all_the_way(broken: Any) -> None:
    """The teacher knows wheat; no text is of it, in any split."""
    give_tuned(broken)
    folder = broken.out("fetch_sources") / "teacher"
    weights = load_file(folder / "model.safetensors")
    places = torch.tensor([0, 0, 1, 2])  # wheat is first, with corn's weights and no bias for it
    weights = {k: v[places] if k.startswith("classifier") else v for k, v in weights.items()}
    weights["classifier.bias"][0] -= 30
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    names = ("wheat", "corn", "money", "ships")
    edit_teacher(broken, id2label={str(i): name for i, name in enumerate(names)}, label2id=None)
    told = broken.run_all(*list(INPUTS)[1:])
    card = broken.json("prepare_data", "data_card.json")
    assert card["labels"] == ["wheat", "corn", "money", "ships"]
    assert all(split["label_counts"]["wheat"] == 0 for split in card["splits"].values())
    warning = "the training split has no text of label 'wheat', which the teacher knows"
    assert warning in card["warnings"]
    assert f"prepare_data: warning: {warning}" in told
    metrics = broken.json("evaluate_student", "metrics.json")
    assert metrics["per_class"][0]["support"] == 0
    assert metrics["teacher"]["macro_f1"]["value"] > 0.5
    assert [row[0] for row in metrics["confusion"]["teacher"]] == [0, 0, 0, 0]


def test_a_given_teacher_with_another_number_of_labels_is_refused(broken: Any) -> None:
    give_tuned(broken)
    folder = broken.out("prepare_data")
    card = DataCard.read(folder)
    change(card, labels=(*card.labels, "wheat")).write(folder)
    done = broken.run("train_teacher")
    assert done.returncode == 2
    assert "teacher's labels are not those of the data" in done.stderr
    assert "Expected 4 labels" in done.stderr
    assert "found 3 labels" in done.stderr


def test_a_given_teacher_that_gives_several_labels_is_refused(broken: Any) -> None:
    give_tuned(broken)
    path = broken.out("fetch_sources") / "teacher" / "config.json"
    kind = {"problem_type": "multi_label_classification"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **kind}))
    done = broken.run("train_teacher")
    assert done.returncode == 2
    assert "the teacher does not choose one label for a text" in done.stderr
    assert "found multi_label_classification" in done.stderr


def test_a_teacher_of_another_shape_than_the_recipe_says_is_refused(broken: Any) -> None:
    path = broken.out("fetch_sources") / "teacher" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    done = broken.run("train_teacher")
    assert done.returncode == 2
    assert "Expected layers 4, found layers 3" in done.stderr


def add_teachers(project: Any, **rule: Any) -> None:
    """The tuned teacher once more under another name, its head turned around."""
    for name in ("second", "third"):
        folder = project.root / "models" / name
        shutil.copytree(project.out("train_teacher") / "model", folder)
        weights = load_file(folder / "model.safetensors")
        weights["classifier.weight"] *= 3
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    sources = {name: {"kind": "path", "folder": f"models/{name}"} for name in ("second", "third")}
    project.change(lambda recipe: recipe["fetch_sources"].update(more_teachers=sources))
    project.change(lambda recipe: recipe["train_teacher"].update(ensemble=rule))


def test_several_teachers_teach_as_one(broken: Any) -> None:
    give_tuned(broken)
    shutil.rmtree(broken.root / "models" / "base")
    shutil.copytree(broken.out("train_teacher") / "model", broken.root / "models" / "base")
    add_teachers(broken, logits="confidence", layers="second")
    alone = broken.json("train_teacher", "report.json")
    broken.run_all(*INPUTS)
    report = broken.json("train_teacher", "report.json")
    assert set(report["dev_accuracies"]) == {"main", "second", "third"}
    assert report["teacher_sha256"] == teacher_sha256(broken.out("train_teacher"))
    assert report["teacher_sha256"] != alone["teacher_sha256"]
    assert report["parameters"] == 3 * alone["parameters"]
    # Another rule is another teacher: what the old one left is not taken for its own.
    save_rule(broken.out("train_teacher"), parse_rule({"logits": "mean", "layers": "second"}))
    done = broken.run("train_student")
    assert done.returncode == 2
    assert "the teacher is not the one that its report is of" in done.stderr


def test_a_further_teacher_of_other_labels_is_refused(broken: Any) -> None:
    add_teachers(broken, logits="mean", layers="main")
    config = broken.root / "models" / "third" / "config.json"
    labels = {"0": "corn", "1": "ships", "2": "money"}
    fields = {"id2label": labels, "label2id": None}
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    broken.run_all("fetch_sources", "prepare_data")
    done = broken.run("train_teacher")
    assert done.returncode == 2
    assert "teacher's labels are not those of the data" in done.stderr
    assert "third" in done.stderr


def test_a_further_teacher_of_another_vocabulary_is_refused(broken: Any) -> None:
    add_teachers(broken, logits="mean", layers="main")
    tokenizer = broken.root / "models" / "third" / "tokenizer.json"
    words = json.loads(tokenizer.read_text())
    vocabulary = words["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer.write_text(json.dumps(words))
    done = broken.run("fetch_sources")
    assert done.returncode == 2
    assert "a tokenizer is not the teacher's: fetch_sources.more_teachers.third" in done.stderr
