"""Fine-tune the teacher, or check and freeze a given one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.kd.data.examples.prepared import Split, read_split
from tasks.kd.data.examples.targets import NoTargets
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.history import HISTORY
from tasks.kd.documents.training import Standing, TeacherReport
from tasks.kd.encoders.files.architectures import shape_of
from tasks.kd.encoders.files.folder import read_config
from tasks.kd.encoders.files.label_names import order_labels, read_label_names
from tasks.kd.encoders.files.weights import classifier_rows, read_headers
from tasks.kd.encoders.loading import load_classifier, load_config, new_classifier
from tasks.kd.encoders.shape import count_parameters
from tasks.kd.errors import DataError
from tasks.kd.processes.launch import run_training
from tasks.kd.recipe.teachers import MAIN, EnsembleRule
from tasks.kd.recipe.training import TrainTeacher
from tasks.kd.teacher.ensemble import (
    Ensemble,
    classifiers_of,
    load_teacher,
    save_rule,
    teacher_sha256,
)
from tasks.kd.teacher.fine_tuning import FineTuning
from tasks.kd.teacher.standing import find_causes, find_order, take_standing
from tasks.kd.training.course import Parts
from tasks.kd.training.dev import predict
from tasks.stages import Stage, run_stage, trainings

_BATCH_TOKENS = 8192


def main(stage: Stage) -> None:
    """Write model/, report.json and metrics.jsonl; for an ensemble, members/ and its rule too."""
    sources, data = stage.input("fetch_sources"), stage.input("prepare_data")
    base, rule = sources / "teacher", stage.params.ensemble
    is_main = rule is None or rule.layers == MAIN
    check_shape(base if is_main else sources / "teachers" / rule.layers, stage.params)
    (stage.draft / HISTORY).touch()
    if stage.params.mode == "given":
        _freeze(stage, base, data)
    else:
        run_training(fine_tune, stage, compute=stage.compute, environment=os.environ)
    trainings.add_tokenizer(stage)
    if rule is not None:
        _gather(stage, sources / "teachers", data, rule)


def _gather(stage: Stage, others: Path, data: Path, rule: EnsembleRule) -> None:
    """Check the other teachers, put them beside the first, measure each one and the ensemble."""
    card, dev = DataCard.read(data), read_split(data / "dev.arrow")
    for other in sorted(others.iterdir()):
        names = require_labels(other, card.labels, stage.params.labels)
        member: Any = load_classifier(other, card.labels)
        require_worth(stage, other, _ask(member, dev, card), names)
        member.save_pretrained(stage.draft / "members" / other.name)
    save_rule(stage.draft, rule)
    teacher = load_teacher(stage.draft)
    assert isinstance(teacher, Ensemble)
    standings = {
        name: _ask(member, dev, card).standing
        for name, member in zip(teacher.members, classifiers_of(teacher), strict=True)
    }
    together = _ask(teacher, dev, card).standing
    accuracies = {name: standing.accuracy for name, standing in standings.items()}
    of_all = {
        "dev_accuracies": accuracies,
        "dev_standings": standings,
        "dev_accuracy": together.accuracy,
        "dev_standing": together,
        "parameters": count_parameters(teacher),
        "teacher_sha256": teacher_sha256(stage.draft),
    }
    of_main = TeacherReport.read(stage.draft).given
    TeacherReport(**{**of_main, **of_all}).write(stage.draft)
    each = ", ".join(f"{name} {100 * x:.2f} %" for name, x in accuracies.items())
    stage.log(f"{each}; together {together}")


@dataclass(frozen=True)
class Answers:
    """A classifier's answers on the dev split."""

    standing: Standing
    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64]  # labels by answers
    confidence: float  # the mean of the highest probabilities


def _ask(model: torch.nn.Module, dev: Split, card: DataCard) -> Answers:
    """A classifier's answers on the dev split. Raises DataError for logits that are not finite."""
    logits = predict(model, dev, pad_id=card.pad_token_id, max_tokens=_BATCH_TOKENS)
    if not logits.isfinite().all():
        raise DataError(
            "the teacher's logits are not finite",
            where="the dev split",
            found=f"NaN or infinity on {int((~logits.isfinite().all(-1)).sum())} of {len(dev)}",
        )
    labels, said = card.labels, logits.argmax(-1).numpy()
    count = len(labels)
    cells = np.bincount(dev.labels * count + said, minlength=count * count)
    standing = take_standing(
        [labels[label] for label in dev.labels], [labels[answer] for answer in said], count
    )
    confidence = float(logits.softmax(-1).max(-1).values.mean())
    return Answers(standing, labels, cells.reshape(count, count), confidence)


def require_worth(stage: Stage, teacher: Path, answers: Answers, own_names: Sequence[str]) -> None:
    """Raise DataError unless a given teacher is significantly better than a constant answer."""
    standing, params = answers.standing, stage.params
    if standing.lead is None:
        raise DataError(
            "the dev split has a single label, on which no teacher can be measured",
            where="prepare_data.dev_fraction",
            found=f"{standing.examples} examples of {standing.constant_label!r}",
        )
    order = find_order(answers.confusion, answers.labels, own_names)
    if standing.is_above_chance and standing.lead >= params.min_lead:
        if order is not None and order.is_far_better:
            raise DataError(
                "the given teacher's labels stand in another order",
                where=teacher,
                expected=f"names under which most of the dev split is right: {order}",
                found=str(standing),
            )
        if order is not None:
            stage.log(f"warning: some of the teacher's labels may be mixed up: {order}")
        return
    causes = find_causes(answers.confusion, answers.labels, answers.confidence, own_names)
    listed = "; ".join(f"({number}) {cause}" for number, cause in enumerate(causes, 1))
    raise DataError(
        "the given teacher is hardly better than one answer for all texts",
        where=teacher,
        expected=f"a lead of {params.min_lead:.2%} (train_teacher.min_lead) on the dev split, and "
        "significantly above 0",
        found=str(standing),
        advice=f"Likely causes, in this order: {listed}.",
    )


def check_shape(base: Path, params: TrainTeacher) -> None:
    """Raise DataError unless the model has the shape in the recipe."""
    shape = vars(shape_of(load_config(base).to_dict()))
    wrong = [name for name, value in shape.items() if value != getattr(params, name)]
    if wrong:
        raise DataError(
            "the teacher is not as the recipe says",
            where="train_teacher",
            expected=", ".join(f"{name} {getattr(params, name)}" for name in wrong),
            found=", ".join(f"{name} {shape[name]}" for name in wrong),
        )


def fine_tune(stage: Stage) -> None:
    """Train the teacher on labels; runs in every process."""
    params: TrainTeacher = stage.params
    data = stage.input("prepare_data")
    card = DataCard.read(data)
    torch.manual_seed(params.optimizer.seed)
    teacher = new_classifier(stage.input("fetch_sources") / "teacher", card.labels)
    tuning = FineTuning(teacher, epochs=params.epochs, learning_rate=params.learning_rate)
    parts = Parts(
        tuning,
        NoTargets(),
        read_split(data / "train.arrow"),
        read_split(data / "dev.arrow"),
        card.pad_token_id,
    )
    report = trainings.run(stage, params.optimizer, parts)
    if report is None:
        return
    standing = _ask(teacher, parts.dev, card).standing
    saved = trainings.save(stage, teacher)
    TeacherReport(
        mode=params.mode,
        **vars(report),
        dev_standing=standing,
        parameters=saved.parameters,
        teacher_sha256=saved.sha256,
    ).write(stage.draft)
    stage.log(f"dev {standing} after epoch {report.best_epoch}, {report.seconds:.0f} s")
    if not standing.is_above_chance:
        stage.log("warning: the teacher is not significantly better than a constant answer")


def require_labels(
    model: Path, expected: Sequence[str], labels: Mapping[str, str] | None = None
) -> list[str]:
    """A tuned classifier's own label names.

    Raises DataError unless they are `expected`, in that order. `labels` is the recipe's map of
    names, used if its keys are this teacher's names.
    """
    config = model / "config.json"
    fields = read_config(model)
    problem = fields.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise DataError(
            "the teacher does not choose one label for a text",
            where=config,
            expected="problem_type single_label_classification, or none",
            found=problem,
            advice="Its logits are not those of a softmax; tune one that they are of.",
        )
    names = read_label_names(fields, config, classifier_rows(read_headers(model)))
    if names != list(expected):
        is_meant = labels is not None and set(labels) == set(names)
        known = order_labels(expected, names, labels if is_meant else None, config)
        if known != list(expected):
            raise DataError(
                "the teacher's labels are not those of the data, or stand in another order",
                where=config,
                expected=f"{len(expected)} labels: {', '.join(expected)}"[:300],
                found=f"{len(known)} labels: {', '.join(known)}"[:300],
            )
    return names


def _freeze(stage: Stage, base: Path, data: Path) -> None:
    """Check a tuned teacher's labels, measure it, and save it with its weights unchanged."""
    started = time.monotonic()
    card, dev = DataCard.read(data), read_split(data / "dev.arrow")
    names = require_labels(base, card.labels, stage.params.labels)
    teacher = load_classifier(base, card.labels)
    answers = _ask(teacher, dev, card)
    require_worth(stage, base, answers, names)
    seconds = time.monotonic() - started
    saved = trainings.save(stage, teacher)
    TeacherReport(
        mode="given",
        steps=0,
        seconds=seconds,
        best_epoch=0,
        dev_accuracy=answers.standing.accuracy,
        dev_standing=answers.standing,
        parameters=saved.parameters,
        teacher_sha256=saved.sha256,
    ).write(stage.draft)
    stage.log(f"given; dev {answers.standing}")


if __name__ == "__main__":
    run_stage("train_teacher", main)
