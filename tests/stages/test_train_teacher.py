from __future__ import annotations

import json
import shutil
from typing import Any

from tasks.kd.encoders import load_classifier, model_sha256


def test_it_fine_tunes_and_says_how_it_went(finished: Any) -> None:
    report = finished.json("train_teacher", "report.json")
    assert report["dev_accuracy"] > 0.6
    model = finished.out("train_teacher") / "model"
    assert report["teacher_sha256"] == model_sha256(model)
    assert load_classifier(model).config.id2label == {0: "corn", 1: "money", 2: "ships"}  # type: ignore[union-attr]
    lines = (finished.out("train_teacher") / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["split"] == "dev" for line in lines) == 6


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


def test_a_teacher_of_another_shape_than_the_recipe_says_is_refused(broken: Any) -> None:
    path = broken.out("fetch_sources") / "teacher" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    done = broken.run("train_teacher")
    assert done.returncode == 2
    assert "Expected layers 4, found layers 3" in done.stderr
