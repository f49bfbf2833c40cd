"""One run: a student of one kind, taught by one arm on one data set from one seed.

A run's file is named by a digest of all that decides it but the code: data, teacher, student,
phases, optimizer, seed, probes. The code has a digest too, which the file records.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from study.arms import Arm, fitted
from study.corpora import (
    Corpus,
    digest,
    open_corpus,
    open_random,
    open_texts,
    sample,
)
from study.probes import bits, probe
from study.settings import FOLDER, ROOT, StudentKind, Study, decisive
from study.teachers import Say, Teacher, cached, habits
from tasks.kd.cache.writing.calibration import deviations
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import NoTargets, Targets
from tasks.kd.digests import sha256_file, sha256_json, write_json
from tasks.kd.encoders.shape import count_parameters, depth, width
from tasks.kd.levels.objective import Objective, TeacherShape, banked_layers, standardised_layers
from tasks.kd.recipe.phases import Phase, streams_read
from tasks.kd.recipe.streams import in_order
from tasks.kd.recipe.student import InitialWidthReduction
from tasks.kd.recipe.training import Optimizer
from tasks.kd.students.building import build_student
from tasks.kd.students.weighing import hidden_moment
from tasks.kd.targets.banks import banks
from tasks.kd.training.course import Parts, steps_in_all
from tasks.kd.training.dev import predict
from tasks.kd.training.loop import Report, train

_VERSION = 1
_taken: dict[tuple[str, int], Split] = {}  # samples, which all runs of a data set share


@dataclass(frozen=True)
class Key:
    """What is run."""

    data: str
    student: str
    arm: str
    seed: int
    rate: float

    def __str__(self) -> str:
        return f"{self.data}.{self.student}.{self.arm}.{self.seed} at {self.rate:g}"


@dataclass(frozen=True)
class Run:
    """A key with all that it stands for."""

    key: Key
    study: Study
    arm: Arm
    corpus: Corpus
    teacher: Teacher
    folder: Path = FOLDER

    @property
    def kind(self) -> StudentKind:
        """The student's shape and schedule."""
        return self.study.students[self.key.student]

    @cached_property
    def train(self) -> Split:
        """The texts that it is taught on: the same for all."""
        at = (self.corpus.sha256, self.study.data[self.key.data].examples)
        if at not in _taken:
            _taken[at] = sample(self.corpus.train, at[1])
        return _taken[at]

    @cached_property
    def optimizer(self) -> Optimizer:
        """With the run's own seed and the student's batch."""
        own = {"seed": self.key.seed, "batch_examples": self.kind.batch_examples}
        return self.study.optimizer.model_copy(update=own)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The arm's phases over the student's epochs.

        The one that reads random texts sees each text once, and so many of them that it has its
        steps.
        """
        return tuple(
            phase.model_copy(update={"epochs": 1}) if self._is_widened(phase) else phase
            for phase in self._fitted
        )

    @cached_property
    def texts(self) -> Split:
        """The texts with random ones behind them, if the arm has such: the same for all seeds."""
        if not self.random_texts:
            return self.train
        lengths = self.train.lengths.tolist() * self.random_texts
        return self.train.followed_by(open_random(self.study, lengths, self.folder))

    @property
    def random_texts(self) -> int:
        """For each text so many random ones."""
        return sum(phase.epochs - 1 for phase in self._fitted if self._is_widened(phase))

    @cached_property
    def _random_sha256(self) -> str | None:
        more = self.texts.input_ids[len(self.train) :]
        return sha256_json([ids.tolist() for ids in more]) if more else None

    @cached_property
    def _fitted(self) -> tuple[Phase, ...]:
        return fitted(self.arm, self.kind.epochs[self.key.data], self.key.rate)

    def _is_widened(self, phase: Phase) -> bool:
        return bool(self.arm.random_texts) and phase.reads_unlabelled

    @property
    def steps(self) -> int:
        """Updates in all: the same for every arm."""
        return steps_in_all(self.optimizer, self.phases, self.texts)

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """All that decides the outcome, but the code."""
        unseen = self.study.data[self.key.data].unseen
        corpora = [open_corpus(self.study, name, self.folder) for name in unseen]
        transfer = self.arm.transfer
        return {
            "version": _VERSION,
            "corpus": self.corpus.sha256,
            "teacher": self.teacher.sha256,
            "texts": sha256_json(self.train.example_ids),
            "student": self.kind.shape.model_dump(mode="json"),
            "phases": [phase.model_dump(mode="json") for phase in self.phases],
            "transfer": transfer.model_dump(mode="json") if transfer else None,
            "random_texts": self._random_sha256,
            "optimizer": self.optimizer.model_dump(mode="json"),
            "codec": self.study.cache.codec,
            "probes": self.study.probes.model_dump(mode="json"),
            "unseen": {corpus.name: corpus.sha256 for corpus in corpora},
        }

    @property
    def path(self) -> Path:
        """Its result, there or not."""
        named = (self.key.data, self.key.student, self.key.arm, str(self.key.seed))
        digest = sha256_json(decisive(self.made_of))[:12]
        return self.folder / "runs" / f"{'.'.join(named)}.{digest}.json"


@dataclass(frozen=True)
class Part:
    """Phases that are trained on the same texts."""

    name: str
    phases: tuple[Phase, ...]
    split: Split


def parts_of(run: Run) -> list[Part]:
    """The run's phases with their texts: transfer first, if there is any.

    A phase of e epochs on transfer text sees e times as many texts as the data set has, each
    once: so many steps as it would take on the data set.
    """
    transfer = run.arm.transfer
    if transfer is None:
        return [Part("own", run.phases, run.texts)]
    before, after = run.phases[: transfer.phases], run.phases[transfer.phases :]
    count = sum(phase.epochs for phase in before) * len(run.train)
    once = tuple(phase.model_copy(update={"epochs": 1}) for phase in before)
    if len(before) > 1:
        raise SystemExit(f"{run.arm.name}: one phase at most is of transfer text")
    others = open_texts(run.study, transfer.corpora, run.folder)
    texts = mixed(others, run.train if transfer.own else None, count)
    return [Part("transfer", once, texts), Part("own", after, run.train)]


def mixed(others: Split, own: Split | None, count: int) -> Split:
    """So many texts: a data set's own, if they are given, and others; their labels say nothing.

    Raises SystemExit where there are too few.
    """
    lacking = count - (len(own) if own is not None else 0)
    if not 0 < lacking <= len(others):
        raise SystemExit(f"transfer asks for {lacking} texts of {len(others)}")
    order = sorted(range(len(others)), key=lambda row: digest(others.texts[row]))[:lacking]
    chosen = others.take(np.asarray(sorted(order), dtype=np.int64))
    both = chosen if own is None else own.followed_by(chosen)
    return replace(both, labels=np.zeros(count, dtype=np.int64))


def prepare(runs: Sequence[Run]) -> None:
    """Write what the runs read of their teachers: one pass over the same texts for all of them."""
    asked: dict[tuple[str, str], tuple[Run, Split, set[str]]] = {}
    for run in runs:
        for part in parts_of(run):
            texts = sha256_json(sorted(part.split.example_ids))
            found = asked.setdefault((run.teacher.sha256, texts), (run, part.split, set()))
            found[2].update(_streams(run, part))
    for run, split, streams in asked.values():
        if streams:
            cached(run.study, run.teacher, split, in_order(streams), run.folder)


def execute(run: Run, say: Say) -> None:
    """Train, answer the test split, probe, write the result; nothing if it is there.

    A run that was stopped goes on from its last checkpoint. Another process at the same run is
    left to finish it.
    """
    if run.path.exists():
        return
    work = run.folder / "work" / run.path.stem
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work) as is_alone:
        if not is_alone:
            say(f"{run.key}: another process is at it")
            return
        if run.path.exists():
            return
        student, reports = _taught(run, work)
        result = _measured(run, student) | {
            "key": vars(run.key),
            "made_of": run.made_of,
            "code_sha256": code_sha256(),
            "parameters": count_parameters(student),
            "steps": sum(report.steps for report in reports),
            "seconds": sum(report.seconds for report in reports),
            "dev_accuracy": reports[-1].dev_accuracy,
            "best_epoch": reports[-1].best_epoch,
        }
        run.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(run.path, result)
    shutil.rmtree(work)
    say(
        f"{run.key}: test {100 * result['accuracy']:.2f} %, "
        + ", ".join(f"{k} {100 * v['accuracy']:.1f}" for k, v in result["probes"].items())
        + f"; {result['seconds']:.0f} s"
    )


def code_sha256() -> str:
    """Of the library's source files."""
    files = sorted((ROOT / "tasks" / "kd").rglob("*.py"))
    return sha256_json([[str(path.relative_to(ROOT)), sha256_file(path)] for path in files])


def _taught(run: Run, work: Path) -> tuple[torch.nn.Module, list[Report]]:
    """The trained student, and how each part ended."""
    torch.set_num_threads(run.study.compute.threads or 1)
    teacher = run.teacher.model()
    student = _new_student(run, teacher)
    reports: list[Report] = []
    carried: dict[str, torch.Tensor] = {}
    for part in parts_of(run):
        targets = _targets(run, part)
        depths = (run.kind.shape.layers, depth(teacher))
        banked, count = banked_layers(part.phases, *depths)
        texts, seed = part.split.take(part.split.labelled).input_ids, run.key.seed
        shape = TeacherShape(
            depth(teacher),
            width(teacher),
            deviations(targets, texts, standardised_layers(part.phases, *depths)),
            banks(targets, texts, banked, count=count, seed=seed),
        )
        objective = Objective(student, part.phases, shape, seed=seed)
        _carry(carried, objective)
        parts = Parts(objective, targets, part.split, _dev(run, part), run.corpus.pad_id)
        folder = work / part.name
        folder.mkdir(exist_ok=True)
        reports.append(train(run.optimizer, parts, habits(folder, run.study.compute)))
        carried = {n: v.detach().clone() for n, v in objective.projections.state_dict().items()}
    return student, reports


def _new_student(run: Run, teacher: torch.nn.Module) -> torch.nn.Module:
    """The student before its first step, with what it takes over from its teacher."""
    shape, moment = run.kind.shape, None
    if isinstance(shape.initial, InitialWidthReduction) and shape.initial.examples is not None:
        moment = hidden_moment(teacher, run.train.input_ids, shape.initial.examples)
    return build_student(shape, teacher, seed=run.key.seed, moment_DD=moment)


def _carry(carried: dict[str, torch.Tensor], objective: Objective) -> None:
    """Projections go on where the part before left them."""
    own = objective.projections.state_dict()
    known = {name: value for name, value in carried.items() if name in own}
    objective.projections.load_state_dict(known, strict=False)


def _dev(run: Run, part: Part) -> Split:
    """What decides the best epoch; after a single epoch on transfer text there is no choice."""
    return run.corpus.dev if part.name == "own" else sample(run.corpus.dev, 32)


def _measured(run: Run, student: torch.nn.Module) -> dict[str, Any]:
    logits = predict(student, run.corpus.test, pad_id=run.corpus.pad_id, max_tokens=4096)
    right = logits.argmax(1).numpy() == run.corpus.test.labels
    probes = {
        name: probe(student, open_corpus(run.study, name, run.folder), run.study.probes).as_json()
        for name in run.study.data[run.key.data].unseen
    }
    return {"accuracy": float(right.mean()), "correct": bits(right), "probes": probes}


def _targets(run: Run, part: Part) -> Targets:
    """What the part's levels read, from the cache."""
    streams = _streams(run, part)
    if not streams:
        return NoTargets()
    return cached(run.study, run.teacher, part.split, streams, run.folder)


def _streams(run: Run, part: Part) -> tuple[str, ...]:
    return streams_read(part.phases, run.kind.shape.layers, depth(run.teacher.model()))


@contextmanager
def _alone(work: Path) -> Iterator[bool]:
    """Whether no other process holds this run."""
    with (work.parent / f"{work.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
