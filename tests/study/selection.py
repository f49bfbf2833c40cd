"""From keys to runs, to the results that are there, and to the rate that an arm gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tasks.kd.digests import read_json
from tests.study.arms import read_arm
from tests.study.corpora import open_corpus
from tests.study.runs import Key, Run
from tests.study.settings import FOLDER, Study
from tests.study.teachers import Say, Teacher, open_teacher

_teachers: dict[tuple[str, Path], Teacher] = {}


def open_run(study: Study, key: Key, say: Say, folder: Path = FOLDER) -> Run:
    """A run with its data and teacher, which are made if they are not there."""
    if (key.data, folder) not in _teachers:
        _teachers[key.data, folder] = open_teacher(study, key.data, say, folder)
    corpus = open_corpus(study, key.data, folder)
    return Run(key, study, read_arm(key.arm), corpus, _teachers[key.data, folder], folder)


def at_each_rate(
    study: Study, data: str, student: str, arm: str, say: Say, folder: Path = FOLDER
) -> list[Run]:
    """The first seed's runs by rising rate, there or not: one for each rate of the student.

    Of an arm that the study brackets, as long as the best is at an end of those tried, also the
    half or the double of it: the one that comes next.
    """

    def at(rate: float) -> Run:
        return open_run(study, Key(data, student, arm, 0, rate), say, folder)

    tried = [at(rate) for rate in sorted(study.students[student].learning_rates[data])]
    while arm in study.bracketed and (best := _best(tried)) in (tried[0], tried[-1]):
        beyond = at(best.key.rate * (2 if best is tried[-1] else 0.5))
        tried = sorted([*tried, beyond], key=lambda run: run.key.rate)
    return tried


def _best(tried: Sequence[Run]) -> Run | None:
    """The run that did best on dev, the first of equals; None until all have been done."""
    if not all(run.path.exists() for run in tried):
        return None
    return max(tried, key=lambda run: float(read_json(run.path)["dev_accuracy"]))


def at_the_best(tried: Sequence[Run], seeds: int) -> list[Run]:
    """Every seed's run at the rate that is best on dev; empty until all rates have been tried."""
    best = _best(tried)
    if best is None:
        return []
    return [replace(best, key=replace(best.key, seed=seed)) for seed in range(seeds)]
