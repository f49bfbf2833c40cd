from __future__ import annotations

import json
import shutil
from typing import Any

from safetensors.torch import load_file, save_file

from tasks.kd.encoders import load_classifier, model_sha256
from tasks.kd.ensemble import parse_rule, save_rule, teacher_sha256


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


def test_a_given_teacher_with_another_number_of_labels_is_refused(broken: Any) -> None:
    give_tuned(broken)
    path = broken.out("prepare_data") / "data_card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "labels": [*card["labels"], "wheat"]}))
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
    for stage in ("fetch_sources", "prepare_data", "train_teacher", "cache_teacher"):
        done = broken.run(stage)
        assert done.returncode == 0, done.stderr
    report = broken.json("train_teacher", "report.json")
    assert set(report["dev_accuracies"]) == {"main", "second", "third"}
    assert report["teacher_sha256"] == teacher_sha256(broken.out("train_teacher"))
    assert report["teacher_sha256"] != alone["teacher_sha256"]
    assert report["parameters"] == 3 * alone["parameters"]
    for stage in ("train_student", "export_student", "evaluate_student"):
        done = broken.run(stage)
        assert done.returncode == 0, done.stderr
    # Another rule is another teacher: what the old one left is not taken for its own.
    save_rule(broken.out("train_teacher"), parse_rule({"logits": "mean", "layers": "second"}))
    done = broken.run("train_student")
    assert done.returncode == 2
    assert "the teacher is not the one that its report is of" in done.stderr


def test_a_further_teacher_of_other_labels_is_refused(broken: Any) -> None:
    add_teachers(broken, logits="mean", layers="main")
    config = broken.root / "models" / "third" / "config.json"
    labels = {"0": "corn", "1": "ships", "2": "money"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "id2label": labels}))
    for stage in ("fetch_sources", "prepare_data"):
        assert broken.run(stage).returncode == 0
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
