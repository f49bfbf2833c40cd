"""Fine-tune the teacher, or check and freeze one that is given."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from tasks.kd.architectures import shape_of
from tasks.kd.data import Split, read_data_card, read_split
from tasks.kd.digests import read_json, write_json
from tasks.kd.encoders import load_classifier, load_config, model_sha256, new_classifier
from tasks.kd.ensemble import Ensemble, classifiers_of, load_teacher, save_rule, teacher_sha256
from tasks.kd.ensemble_sections import MAIN, EnsembleRule
from tasks.kd.errors import DataError
from tasks.kd.launch import run_training
from tasks.kd.levels import LabelsLevel
from tasks.kd.objective import Objective
from tasks.kd.params import TrainTeacher
from tasks.kd.phases import Phase
from tasks.kd.sinks import Bar, JsonLines, Messages, Sink
from tasks.kd.students import count_parameters
from tasks.kd.targets import NoTargets
from tasks.kd.training import Habits, Parts, evaluate, steps_in_all, train
from tasks.stages import Stage, run_stage


def main(stage: Stage) -> None:
    """Write model/, report.json and metrics.jsonl; with other teachers, members/ and their rule."""
    sources, data = stage.input("fetch_sources"), stage.input("prepare_data")
    base, rule = sources / "teacher", stage.params.ensemble
    is_main = rule is None or rule.layers == MAIN
    check_shape(base if is_main else sources / "teachers" / rule.layers, stage.params)
    (stage.draft / "metrics.jsonl").touch()
    if stage.params.mode == "given":
        _freeze(stage, base, data)
    else:
        run_training(fine_tune, stage, compute=stage.compute, environment=os.environ)
    shutil.copytree(data / "tokenizer", stage.draft / "model", dirs_exist_ok=True)
    if rule is not None:
        _gather(stage, sources / "teachers", data, rule)


def _gather(stage: Stage, others: Path, data: Path, rule: EnsembleRule) -> None:
    """Check the other teachers, put them beside the first, and measure each and all together."""
    card, dev = read_data_card(data), read_split(data / "dev.arrow")
    for other in sorted(others.iterdir()):
        require_labels(other, card["labels"])
        member: Any = load_classifier(other)
        member.save_pretrained(stage.draft / "members" / other.name)
    save_rule(stage.draft, rule)
    teacher = load_teacher(stage.draft)
    assert isinstance(teacher, Ensemble)
    report = read_json(stage.draft / "report.json")
    report["dev_accuracies"] = {
        name: _measure(member, dev, card["pad_token_id"])
        for name, member in zip(teacher.members, classifiers_of(teacher), strict=True)
    }
    report |= {
        "dev_accuracy": _measure(teacher, dev, card["pad_token_id"]),
        "parameters": count_parameters(teacher),
        "teacher_sha256": teacher_sha256(stage.draft),
    }
    write_json(stage.draft / "report.json", report)
    each = ", ".join(f"{name} {100 * x:.2f} %" for name, x in report["dev_accuracies"].items())
    stage.log(f"{each}; together {100 * report['dev_accuracy']:.2f} %")


def _measure(model: torch.nn.Module, dev: Split, pad_id: int) -> float:
    accuracy, _ = evaluate(model, dev, pad_id=pad_id, max_tokens=8192)
    return accuracy


def check_shape(base: Path, params: TrainTeacher) -> None:
    """Raise DataError unless the model has the shape that the recipe says."""
    found = vars(shape_of(load_config(base).to_dict()))
    wrong = [name for name, value in found.items() if value != getattr(params, name)]
    if wrong:
        raise DataError(
            "the teacher is not as the recipe says",
            where="train_teacher",
            expected=", ".join(f"{name} {getattr(params, name)}" for name in wrong),
            found=", ".join(f"{name} {found[name]}" for name in wrong),
        )


def fine_tune(stage: Stage) -> None:
    """Train on labels; runs in every process."""
    params: TrainTeacher = stage.params
    data = stage.input("prepare_data")
    card = read_data_card(data)
    torch.manual_seed(params.optimizer.seed)
    teacher = new_classifier(stage.input("fetch_sources") / "teacher", card["labels"])
    phase = Phase(
        name="fine_tune",
        epochs=params.epochs,
        learning_rate=params.learning_rate,
        optimizer="anew",
        trained_layers="all",
        balance_every=None,
        levels=(LabelsLevel(level="prediction", loss="labels", weight=1.0),),
    )
    parts = Parts(
        Objective(teacher, (phase,)),
        NoTargets(),
        read_split(data / "train.arrow"),
        read_split(data / "dev.arrow"),
        card["pad_token_id"],
    )
    steps = steps_in_all(params.optimizer, (phase,), parts.train)
    report = train(params.optimizer, parts, habits(stage, steps))
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    save(stage, teacher, {"mode": params.mode, **vars(report)})
    stage.log(
        f"dev accuracy {100 * report.dev_accuracy:.2f} % after epoch {report.best_epoch}, "
        f"{report.seconds:.0f} s"
    )


def habits(stage: Stage, steps: int) -> Habits:
    """Where a training keeps its checkpoints and tells its figures."""

    def sinks(step: int) -> list[Sink]:
        lines = JsonLines(stage.work / "metrics.jsonl", resume_at=step)
        if step:
            stage.log(f"resumes at step {step} of {steps}")
        return [lines, Bar(stage.bar(steps, "step", done=step)), Messages(stage.log)]

    profiles = stage.work.parent / "profiles" / f"{stage.name}-{stage.recipe}"
    return Habits(stage.work, profiles, stage.compute, sinks)


def save(stage: Stage, model: Any, report: dict[str, Any]) -> None:
    """Write a trained model with its metrics and report."""
    model.save_pretrained(stage.draft / "model")
    if (stage.work / "metrics.jsonl").exists():
        shutil.copyfile(stage.work / "metrics.jsonl", stage.draft / "metrics.jsonl")
    report |= {
        "parameters": count_parameters(model),
        f"{stage.name.removeprefix('train_')}_sha256": model_sha256(stage.draft / "model"),
    }
    write_json(stage.draft / "report.json", report)


def require_labels(model: Path, expected: list[str]) -> None:
    """Raise DataError unless a tuned classifier gives one of those labels, in that order."""
    config = load_config(model)
    if config.problem_type not in (None, "single_label_classification"):
        raise DataError(
            "the teacher does not choose one label for a text",
            where=model / "config.json",
            expected="problem_type single_label_classification, or none",
            found=config.problem_type,
            advice="Its logits are not those of a softmax; tune one that they are of.",
        )
    labels = [config.id2label[i] for i in sorted(config.id2label)]
    if labels != expected:
        raise DataError(
            "the teacher's labels are not those of the data",
            where=model / "config.json",
            expected=f"{len(expected)} labels: {', '.join(expected)}"[:300],
            found=f"{len(labels)} labels: {', '.join(labels)}"[:300],
        )


def _freeze(stage: Stage, base: Path, data: Path) -> None:
    """Check a tuned teacher's labels and measure it; its weights stay as they are."""
    started = time.monotonic()
    card = read_data_card(data)
    require_labels(base, card["labels"])
    teacher = load_classifier(base)
    dev = read_split(data / "dev.arrow")
    accuracy = _measure(teacher, dev, card["pad_token_id"])
    figures = {"steps": 0, "seconds": time.monotonic() - started, "best_epoch": 0}
    save(stage, teacher, {"mode": "given", "dev_accuracy": accuracy, **figures})
    stage.log(f"given; dev accuracy {100 * accuracy:.2f} %")


if __name__ == "__main__":
    run_stage("train_teacher", main)
