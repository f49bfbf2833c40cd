"""Train the student on the recipe's levels, with the teacher's streams read from the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import torch

from tasks.kd.cache.care.users import register
from tasks.kd.cache.format.manifest import MANIFEST, Live
from tasks.kd.cache.opening import open_targets, own_part, read_inputs
from tasks.kd.cache.writing.calibration import deviations
from tasks.kd.data.examples.prepared import Ids, Split, read_split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.training import StudentReport
from tasks.kd.encoders.shape import depth, width
from tasks.kd.levels.objective import Objective, TeacherShape, banked_layers, standardised_layers
from tasks.kd.processes import ranks
from tasks.kd.processes.agreement import agreed
from tasks.kd.processes.launch import run_training
from tasks.kd.recipe.phases import streams_read
from tasks.kd.recipe.student import InitialCheckpoint, InitialWidthReduction, Student
from tasks.kd.recipe.training import TrainStudent
from tasks.kd.students.building import build_student, require_positions
from tasks.kd.students.weighing import hidden_moment
from tasks.kd.targets.banks import banks
from tasks.kd.targets.targets import own_device
from tasks.kd.teacher.ensemble import load_teacher, named_member
from tasks.kd.training.course import Parts
from tasks.stages import Stage, run_stage, trainings
from tasks.stages.stored import store_of


def main(stage: Stage) -> None:
    """Write model/, report.json and metrics.jsonl."""
    run_training(distil, stage, compute=stage.compute, environment=os.environ)
    trainings.add_tokenizer(stage)


def distil(stage: Stage) -> None:
    """Build the student and train it; runs in every process."""
    params: TrainStudent = stage.params
    data = stage.input("prepare_data")
    card = DataCard.read(data)
    teacher = load_teacher(stage.input("train_teacher"))
    split = read_split(data / "train.arrow")
    targets, fingerprint = _open_targets(stage, card, teacher, split)
    texts = split.take(split.labelled).input_ids
    shape = _shape_of(teacher, params, targets, texts)
    student = _new_student(stage, named_member(teacher), texts)
    require_positions(student, card.max_length_tokens)
    del teacher
    parts = Parts(
        Objective(student, params.phases, shape, seed=params.optimizer.seed),
        targets,
        split,
        read_split(data / "dev.arrow"),
        card.pad_token_id,
    )
    report = trainings.run(stage, params.optimizer, parts)
    if report is None:
        return
    saved = trainings.save(stage, student)
    StudentReport(
        **vars(report),
        cache_fingerprint=fingerprint,
        phases=tuple(phase.model_dump(mode="json") for phase in params.phases),
        parameters=saved.parameters,
        student_sha256=saved.sha256,
    ).write(stage.draft)
    stage.log(
        f"dev accuracy {100 * report.dev_accuracy:.2f} % after epoch {report.best_epoch}, "
        f"{report.seconds:.0f} s"
    )


def _shape_of(
    teacher: torch.nn.Module, params: TrainStudent, targets: Targets, texts: Sequence[Ids]
) -> TeacherShape:
    """What the levels need of the teacher besides its streams."""
    depths = params.student.layers, depth(teacher)
    banked, count = banked_layers(params.phases, *depths)
    return TeacherShape(
        depth(teacher),
        width(teacher),
        deviations(targets, texts, standardised_layers(params.phases, *depths)),
        banks(targets, texts, banked, count=count, seed=params.optimizer.seed),
    )


def _new_student(stage: Stage, teacher: torch.nn.Module, texts: Sequence[Ids]) -> torch.nn.Module:
    """The student before its first step, with the initial weights that the recipe names."""
    params: TrainStudent = stage.params
    initial, moment = params.student.initial, None
    if isinstance(initial, InitialWidthReduction) and initial.examples is not None:
        moment = hidden_moment(teacher, texts, initial.examples)
    is_given = isinstance(initial, InitialCheckpoint)
    return build_student(
        params.student,
        teacher,
        seed=params.optimizer.seed,
        checkpoint=stage.input("fetch_sources") / "student" if is_given else None,
        moment_DD=moment,
    )


def _open_targets(
    stage: Stage, card: DataCard, teacher: torch.nn.Module, split: Split
) -> tuple[Targets, str]:
    """The teacher's streams, and the fingerprint of what `cache_teacher` decided.

    The processes of one machine share the work of comparing the cache's bytes. An error in one of
    them ends all.
    """
    student: Student = stage.params.student
    with agreed(own_device()):
        opened = open_targets(
            stage.input("cache_teacher") / MANIFEST,
            read_inputs(stage.input("train_teacher"), teacher, card, split.input_ids),
            streams_read(stage.params.phases, student.layers, depth(teacher)),
            open_store=partial(store_of, stage),
            part=own_part(os.environ),
            mend=f"dvc repro -s -f cache_teacher@{stage.recipe}",
        )
        manifest = opened.manifest
        if isinstance(manifest, Live):
            stage.log(f"the teacher itself is run: {manifest.why}")
        elif ranks.rank() == 0:
            register(store_of(stage), stage.root, stage.recipe, manifest.fingerprints)
    return opened.targets, manifest.fingerprint


if __name__ == "__main__":
    run_stage("train_student", main)
