"""The common parts of both trainings: running one, watching it, and saving its model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from tasks.kd.documents.history import HISTORY
from tasks.kd.encoders.loading import model_sha256
from tasks.kd.encoders.shape import count_parameters
from tasks.kd.processes import ranks
from tasks.kd.recipe.training import Optimizer
from tasks.kd.training.course import Parts, steps_in_all
from tasks.kd.training.loop import Habits, Report, train
from tasks.kd.training.sinks import Bar, JsonLines, Messages, Sink
from tasks.stages import Stage


@dataclass(frozen=True)
class Saved:
    """A saved model's number of weights, and the digest of its folder."""

    parameters: int
    sha256: str


def run(stage: Stage, settings: Optimizer, parts: Parts) -> Report | None:
    """Run a training and return its report; None in a process that keeps no results."""
    steps = steps_in_all(settings, parts.objective.phases, parts.train)
    report = train(settings, parts, _habits(stage, steps))
    return None if ranks.rank() else report


def save(stage: Stage, model: Any) -> Saved:
    """Write a model and its training's history into the draft."""
    model.save_pretrained(stage.draft / "model")
    if (stage.work / HISTORY).exists():
        shutil.copyfile(stage.work / HISTORY, stage.draft / HISTORY)
    return Saved(count_parameters(model), model_sha256(stage.draft / "model"))


def add_tokenizer(stage: Stage) -> None:
    """Put the prepared data's tokenizer beside the model in the draft."""
    tokenizer = stage.input("prepare_data") / "tokenizer"
    shutil.copytree(tokenizer, stage.draft / "model", dirs_exist_ok=True)


def _habits(stage: Stage, steps: int) -> Habits:
    """The places of a training's checkpoints and profiles, and the sinks of its figures."""

    def sinks(step: int) -> list[Sink]:
        lines = JsonLines(stage.work / HISTORY, resume_at=step)
        if step:
            stage.log(f"resumes at step {step} of {steps}")
        return [lines, Bar(stage.bar(steps, "step", done=step)), Messages(stage.log)]

    profiles = stage.work.parent / "profiles" / f"{stage.name}-{stage.recipe}"
    return Habits(stage.work, profiles, stage.compute, sinks)
