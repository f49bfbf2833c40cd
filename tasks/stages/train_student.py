"""Train the student on the recipe's levels, the teacher's part read from the cache."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from tasks.kd.cache.audit import audit
from tasks.kd.cache.calibration import deviations
from tasks.kd.cache.fingerprint import base_fields_of
from tasks.kd.cache.manifest import MANIFEST, Live, Manifest, read_document
from tasks.kd.cache.reader import open_cache, require_fresh
from tasks.kd.data import Split, read_data_card, read_split
from tasks.kd.encoders import load_classifier
from tasks.kd.errors import CacheCorruptError, CacheIncompleteError
from tasks.kd.families import depth, width
from tasks.kd.launch import run_training
from tasks.kd.levels import streams_read
from tasks.kd.objective import Objective, TeacherShape, standardised_layers
from tasks.kd.params import Student, TrainStudent
from tasks.kd.students import build_student
from tasks.kd.targets import LiveTargets, Targets
from tasks.kd.training import Parts, steps_per_epoch, train
from tasks.stages import Stage, run_stage
from tasks.stages.train_teacher import habits, save
from tasks.stored import read_report, store_of

# Records compared with the teacher before a training; cache_teacher compared more.
_AUDITED = 4


def main(stage: Stage) -> None:
    """Write model/, report.json and metrics.jsonl."""
    run_training(distil, stage, compute=stage.compute, environment=os.environ)
    tokenizer = stage.input("prepare_data") / "tokenizer"
    shutil.copytree(tokenizer, stage.draft / "model", dirs_exist_ok=True)


def distil(stage: Stage) -> None:
    """Build the student and train it; runs in every process."""
    params: TrainStudent = stage.params
    data = stage.input("prepare_data")
    card = read_data_card(data)
    teacher = load_classifier(stage.input("train_teacher") / "model")
    split = read_split(data / "train.arrow")
    targets, fingerprint = _open_targets(stage, card, teacher, split)
    layers = standardised_layers(params.phases, params.student.layers, depth(teacher))
    shape = TeacherShape(
        depth(teacher), width(teacher), deviations(targets, split.input_ids, layers)
    )
    student = build_student(params.student, teacher, seed=params.optimizer.seed)
    del teacher
    parts = Parts(
        Objective(student, params.phases, shape),
        targets,
        split,
        read_split(data / "dev.arrow"),
        card["pad_token_id"],
    )
    epochs = sum(phase.epochs for phase in params.phases)
    steps = epochs * steps_per_epoch(params.optimizer, len(parts.train))
    report = train(params.optimizer, parts, habits(stage, steps))
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    figures = {
        "cache_fingerprint": fingerprint,
        "phases": [phase.model_dump(mode="json") for phase in params.phases],
        **vars(report),
    }
    save(stage, student, figures)
    stage.log(
        f"dev accuracy {100 * report.dev_accuracy:.2f} % after epoch {report.best_epoch}, "
        f"{report.seconds:.0f} s"
    )


def _open_targets(
    stage: Stage, card: dict[str, Any], teacher: torch.nn.Module, split: Split
) -> tuple[Targets, str]:
    """The cache, checked against the teacher and the data as they are now, or the teacher itself.

    With the fingerprint of what `cache_teacher` decided.
    """
    mend = f"dvc repro -s -f cache_teacher@{stage.recipe}"
    document = read_document(stage.input("cache_teacher") / MANIFEST)
    if not isinstance(document, Manifest | Live):
        raise CacheCorruptError(
            "not the manifest of a recipe's cache",
            where=stage.input("cache_teacher") / MANIFEST,
            expected="kind cache or live",
            found=document.kind,
            mend=mend,
        )
    student: Student = stage.params.student
    needed = streams_read(stage.params.phases, student.layers, depth(teacher))
    kept = document.served if isinstance(document, Manifest) else document.made_of["streams"]
    if missing := [stream for stream in needed if stream not in kept]:
        raise CacheIncompleteError(
            "the teacher cache lacks what a level reads",
            where="cache_teacher.streams",
            expected=", ".join(needed),
            found=f"no {', '.join(missing)}",
            mend=mend,
        )
    report = read_report(stage.input("train_teacher"))
    expected = {**document.made_of, **base_fields_of(card, report)}
    pad_id = card["pad_token_id"]
    if isinstance(document, Live):
        require_fresh(document, expected, mend=mend)
        stage.log(f"the teacher itself is run: {document.why}")
        return LiveTargets(teacher, needed, pad_id=pad_id), document.fingerprint
    cached = open_cache(document, store_of(stage), expected=expected, pad_id=pad_id, mend=mend)
    live = LiveTargets(teacher, cached.streams, pad_id=pad_id)
    audit(cached, live, split.input_ids, count=_AUDITED)
    return cached, document.fingerprint


if __name__ == "__main__":
    run_stage("train_student", main)
