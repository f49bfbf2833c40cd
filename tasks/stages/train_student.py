"""Train the student on the recipe's levels, the teacher's part read from the cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

import torch

from tasks.kd.cache.care.users import register
from tasks.kd.cache.format.fingerprint import base_fields_of
from tasks.kd.cache.format.manifest import MANIFEST, Live, Manifest, read_document
from tasks.kd.cache.reading.audit import audit
from tasks.kd.cache.reading.reader import open_cache, require_fresh
from tasks.kd.cache.writing.calibration import deviations
from tasks.kd.data.examples.prepared import Ids, Split, read_split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.training import StudentReport
from tasks.kd.encoders.loading import attention_kernel
from tasks.kd.encoders.shape import depth, width
from tasks.kd.errors import CacheCorruptError, CacheIncompleteError
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
from tasks.kd.targets.targets import LiveTargets, own_device
from tasks.kd.teacher.ensemble import load_teacher, named_member
from tasks.kd.training.course import Parts, steps_in_all
from tasks.kd.training.loop import train
from tasks.stages import Stage, run_stage
from tasks.stages.stored import read_report, store_of
from tasks.stages.train_teacher import habits, save

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
    card = DataCard.read(data)
    teacher = load_teacher(stage.input("train_teacher"))
    split = read_split(data / "train.arrow")
    targets, fingerprint = _open_targets(stage, card, teacher, split)
    depths, seed = (params.student.layers, depth(teacher)), params.optimizer.seed
    texts = split.take(split.labelled).input_ids
    banked, count = banked_layers(params.phases, *depths)
    shape = TeacherShape(
        depth(teacher),
        width(teacher),
        deviations(targets, texts, standardised_layers(params.phases, *depths)),
        banks(targets, texts, banked, count=count, seed=seed),
    )
    student = _new_student(stage, named_member(teacher), texts)
    require_positions(student, card.max_length_tokens)
    del teacher
    parts = Parts(
        Objective(student, params.phases, shape, seed=seed),
        targets,
        split,
        read_split(data / "dev.arrow"),
        card.pad_token_id,
    )
    steps = steps_in_all(params.optimizer, params.phases, split)
    report = train(params.optimizer, parts, habits(stage, steps))
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    saved = save(stage, student)
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


def _new_student(stage: Stage, teacher: torch.nn.Module, texts: Sequence[Ids]) -> torch.nn.Module:
    """The student before its first step, with whatever the recipe lets it start from."""
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
    """The cache, checked against the teacher and the data as they are now, or the teacher itself.

    With the fingerprint of what `cache_teacher` decided. The processes of one machine share the
    work of comparing its bytes; what one of them finds wrong ends all.
    """
    with agreed(own_device()):
        return _open_own(stage, card, teacher, split)


def _open_own(
    stage: Stage, card: DataCard, teacher: torch.nn.Module, split: Split
) -> tuple[Targets, str]:
    """This process's part of it."""
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
    base = base_fields_of(card, report, attention=attention_kernel(teacher))
    expected = {**document.made_of, **base}
    pad_id, device = card.pad_token_id, own_device()
    if isinstance(document, Live):
        require_fresh(document, expected, mend=mend)
        stage.log(f"the teacher itself is run: {document.why}")
        return LiveTargets(teacher, needed, pad_id=pad_id, device=device), document.fingerprint
    store = store_of(stage)
    cached = open_cache(
        document,
        store,
        expected=expected,
        pad_id=pad_id,
        mend=mend,
        verify=_part(os.environ),
    ).on(device)
    live = LiveTargets(teacher, cached.streams, pad_id=pad_id, device=device)
    audit(cached, live, split.input_ids, count=_AUDITED)
    if ranks.rank() == 0:
        names = [document.fingerprint, *(entry.fingerprint for entry in document.entries)]
        register(store, stage.root, stage.recipe, names)
    return cached, document.fingerprint


def _part(environment: Mapping[str, str]) -> tuple[int, int]:
    """Which part of the cache's files this process compares, of how many.

    The processes of a machine have their own disk, or their own copies. A launcher that doesn't say
    how many they are leaves the whole to each.
    """
    rank, size = (environment.get(name, "") for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    known = rank.isdecimal() and size.isdecimal() and int(rank) < int(size)
    return (int(rank), int(size)) if known else (0, 1)


if __name__ == "__main__":
    run_stage("train_student", main)
