"""Train the student on the recipe's levels, the teacher's part read from the cache."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import torch

from tasks.kd.cache.audit import audit
from tasks.kd.cache.manifest import MANIFEST, read_manifest
from tasks.kd.cache.reader import CachedTargets, open_cache
from tasks.kd.data import Split, read_data_card, read_split
from tasks.kd.digests import read_json
from tasks.kd.encoders import embeddings_of, load_classifier
from tasks.kd.errors import CacheIncompleteError
from tasks.kd.launch import run_processes
from tasks.kd.objective import Objective, TeacherShape
from tasks.kd.params import TrainStudent, streams_needed
from tasks.kd.students import build_student, depth
from tasks.kd.targets import LiveTargets
from tasks.kd.training import Parts, steps_per_epoch, train
from tasks.stages import Stage, run_stage
from tasks.stages.train_teacher import habits, save

# Records compared with the teacher before a training; cache_teacher compared more.
_AUDITED = 4


def main(stage: Stage) -> None:
    """Write model/, report.json and metrics.jsonl."""
    run_processes(distil, stage, processes=stage.compute.processes)
    tokenizer = stage.input("prepare_data") / "tokenizer"
    shutil.copytree(tokenizer, stage.draft / "model", dirs_exist_ok=True)


def distil(stage: Stage) -> None:
    """Build the student and train it; runs in every process."""
    params: TrainStudent = stage.params
    data = stage.input("prepare_data")
    card = read_data_card(data)
    teacher = load_classifier(stage.input("train_teacher") / "model")
    split = read_split(data / "train.arrow")
    targets = _open_cache(stage, card, teacher, split)
    shape = TeacherShape(depth(teacher), _width(teacher), targets.deviations)
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
        "cache_fingerprint": targets.manifest.fingerprint,
        "phases": [phase.model_dump(mode="json") for phase in params.phases],
        **vars(report),
    }
    save(stage, student, figures)
    stage.log(
        f"dev accuracy {100 * report.dev_accuracy:.2f} % after epoch {report.best_epoch}, "
        f"{report.seconds:.0f} s"
    )


def _open_cache(
    stage: Stage, card: dict[str, Any], teacher: torch.nn.Module, split: Split
) -> CachedTargets:
    """The cache, checked against the teacher and the data as they are now."""
    mend = f"dvc repro -s -f cache_teacher@{stage.recipe}"
    manifest = read_manifest(stage.input("cache_teacher") / MANIFEST)
    needed = streams_needed(stage.params, depth(teacher))
    kept = (*manifest.streams, *manifest.computed)
    if missing := [stream for stream in needed if stream not in kept]:
        raise CacheIncompleteError(
            "the teacher cache lacks what a level reads",
            where="cache_teacher.streams",
            expected=", ".join(needed),
            found=f"no {', '.join(missing)}",
            mend=mend,
        )
    report = read_json(stage.input("train_teacher") / "report.json")
    now = {
        "teacher_sha256": report["teacher_sha256"],
        "tokenizer_sha256": card["tokenizer_sha256"],
        "encoded_sha256": card["encoded_sha256"],
    }
    targets = open_cache(
        manifest,
        stage.store,
        expected={**manifest.made_of, **now},
        mend=mend,
    )
    if manifest.computed:
        embeddings = copy.deepcopy(embeddings_of(teacher))
        targets.use_embeddings(embeddings, pad_id=card["pad_token_id"])
    live = LiveTargets(teacher, kept, pad_id=card["pad_token_id"])
    audit(targets, live, split.input_ids, count=_AUDITED)
    return targets


def _width(model: torch.nn.Module) -> int:
    config: Any = model.config
    return int(config.hidden_size)


if __name__ == "__main__":
    run_stage("train_student", main)
