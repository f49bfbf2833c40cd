from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.kd.digests import read_json
from tasks.kd.documents.training import TeacherReport
from tests.makers.documents import change
from tests.stages.conftest import CODE


def test_it_leaves_half_the_layers_and_the_whole_story(finished: Any) -> None:
    report = finished.json("train_student", "report.json")
    config = finished.json("train_student", "model/config.json")
    assert config["num_hidden_layers"] == 2
    assert report["parameters"] < finished.json("train_teacher", "report.json")["parameters"]
    manifest = finished.json("cache_teacher", "manifest.json")
    assert report["cache_fingerprint"] == manifest["fingerprint"]
    lines = (finished.out("train_student") / "metrics.jsonl").read_text().splitlines()
    levels = [set(json.loads(line).get("levels", {})) for line in lines]
    assert {"hidden.mse", "attention.kl", "relation.kl"} in levels
    assert {"prediction.labels", "prediction.kl", "hidden.mse"} in levels


def test_texts_without_labels_are_read_where_no_prediction_is_taught(broken: Any) -> None:
    before = broken.json("train_student", "report.json")
    broken.change(lambda recipe: recipe["prepare_data"].update(random_texts=2))
    broken.run_all("prepare_data", "cache_teacher", "train_student")
    labelled = broken.json("prepare_data", "data_card.json")["splits"]["train"]["examples"] // 3
    lines = (broken.out("train_student") / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if record["split"] == "train"]
    taught = Counter(record["phase"] for record in steps)
    # Batches of 32: one pass over all in the first phase, two over the labelled in the second.
    assert taught == {
        "hidden": math.ceil(3 * labelled / 32),
        "prediction": 2 * math.ceil(labelled / 32),
    }
    report = broken.json("train_student", "report.json")
    assert report["steps"] == len(steps) > before["steps"]
    assert report["best_epoch"] in (2, 3)
    assert steps[-1]["epoch"] == 3


def test_the_teacher_is_tuned_on_labelled_texts_alone(broken: Any) -> None:
    before = broken.json("train_teacher", "report.json")
    broken.change(lambda recipe: recipe["prepare_data"].update(random_texts=2))
    broken.run_all("prepare_data", "train_teacher")
    assert broken.json("train_teacher", "report.json")["teacher_sha256"] == before["teacher_sha256"]


def test_a_cache_of_another_teacher_is_refused_with_what_mends_it(broken: Any) -> None:
    broken.tune_teacher_further()
    done = broken.run("train_student")
    assert done.returncode == 1
    assert broken.error("train_student")["type"] == "CacheStaleError"
    assert "teacher_sha256: expected" in done.stderr
    assert "Run: dvc repro -s -f cache_teacher@small" in done.stderr


@pytest.mark.parametrize("stage", ["cache_teacher", "train_student"])
def test_a_teacher_that_is_not_the_one_of_its_report_is_refused(broken: Any, stage: str) -> None:
    folder = broken.out("train_teacher")
    change(TeacherReport.read(folder), teacher_sha256="0" * 64).write(folder)
    done = broken.run(stage)
    assert done.returncode == 2
    assert f"the teacher is not the one that its report is of: {folder / 'model'}" in done.stderr


def test_a_cluster_s_launcher_is_used_and_its_first_process_keeps_the_results(broken: Any) -> None:
    before = broken.json("train_student", "report.json")
    shutil.rmtree(broken.out("train_student"))
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tasks.stages.train_student", "params/small.yaml"],
        cwd=broken.root,
        env={**os.environ, "PYTHONPATH": str(CODE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the first process keeps the results" in done.stderr
    assert broken.json("train_student", "report.json")["steps"] == before["steps"]
    assert (broken.out("train_student") / "model" / "model.safetensors").exists()
    assert not list((broken.root / ".work").glob("train_student-*"))


def test_the_manifest_of_something_else_is_refused(broken: Any) -> None:
    manifest = broken.out("cache_teacher") / "manifest.json"
    stream = read_json(manifest)["streams"]["logits"]["fingerprint"]
    shutil.copy(broken.root / ".store" / stream / "manifest.json", manifest)
    done = broken.run("train_student")
    assert done.returncode == 1
    assert "Expected kind cache or live, found stream" in done.stderr


def test_a_damaged_shard_is_found_before_the_first_step(broken: Any) -> None:
    shard = next((broken.root / ".store").rglob("shard-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1  # damage that is found by its digest alone
    shard.write_bytes(bytes(content))
    done = broken.run("train_student")
    assert done.returncode == 1
    assert broken.error("train_student")["type"] == "CacheCorruptError"
    assert not broken.out("train_student").exists()
    assert "Run: dvc repro -s -f cache_teacher@small" in done.stderr
    assert broken.run("cache_teacher").returncode == 0
    assert broken.run("train_student").returncode == 0


def test_a_level_whose_stream_was_not_cached_is_refused_by_name(broken: Any) -> None:
    def change(recipe: Any) -> None:
        recipe["cache_teacher"]["streams"].append("attention.3")
        recipe["train_student"]["phases"][0]["levels"][1]["layer_map"] = [[1, 3]]

    broken.change(change)
    done = broken.run("train_student")
    assert done.returncode == 1
    assert broken.error("train_student")["type"] == "CacheIncompleteError"
    assert "found no attention.3" in done.stderr


def test_two_processes_are_two(broken: Any) -> None:
    before = broken.json("train_student", "report.json")
    broken.change(lambda recipe: recipe["compute"].update(processes=2))
    done = broken.run("train_student")
    assert done.returncode == 0, done.stderr
    assert broken.json("train_student", "report.json")["steps"] == before["steps"]


@pytest.mark.slow
def test_a_stage_killed_at_any_moment_goes_on_and_ends_bit_identical(
    broken: Any, finished: Any
) -> None:
    broken.change(lambda recipe: recipe["compute"].update(checkpoint_every_s=0.01))
    expected = finished.json("train_student", "report.json")["student_sha256"]
    metrics = Path(finished.out("train_student") / "metrics.jsonl").read_text().splitlines()
    killed = 0
    for wanted in (2, 5, 9):
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.stages.train_student", "params/small.yaml"],
            cwd=broken.root,
            env={**os.environ, "PYTHONPATH": str(CODE)},
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and steps_done(broken.root) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 3
    done = broken.run("train_student")
    assert done.returncode == 0, done.stderr
    assert "resumes at step" in done.stderr
    assert broken.json("train_student", "report.json")["student_sha256"] == expected
    again = (broken.out("train_student") / "metrics.jsonl").read_text().splitlines()
    assert len(again) == len(metrics)


def steps_done(root: Path) -> int:
    """Steps that the newest metrics file holds."""
    files = list((root / ".work").glob("train_student-*/metrics.jsonl"))
    return sum(len(path.read_text().splitlines()) for path in files)
