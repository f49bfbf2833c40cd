"""From keys to runs, to the results that are there, and to the rate that an arm gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from study.arms import BASELINE, read_arm
from study.corpora import open_corpus
from study.runs import Key, Run
from study.settings import FOLDER, Study
from study.teachers import Teacher, known_teachers
from tasks.kd.digests import read_json

# Dev accuracies of one seed that say nothing of which rate is better.
_CLOSE = 0.01


def open_run(study: Study, key: Key, teacher: Teacher, folder: Path = FOLDER) -> Run:
    """A run with its arm and its data, which are prepared if they are not there."""
    corpus = open_corpus(study, key.data, folder)
    return Run(key, study, read_arm(key.arm), corpus, teacher, folder)


def at_each_rate(
    study: Study, teacher: Teacher, student: str, arm: str, folder: Path = FOLDER
) -> list[Run]:
    """The first seed's runs by rising rate, there or not: one for each rate of the student.

    Of an arm that the study brackets, as long as the best is at an end of those tried, also the
    half or the double of it: the one that comes next.
    """

    def at(rate: float) -> Run:
        return open_run(study, Key(teacher.data, student, arm, 0, rate), teacher, folder)

    tried = [at(rate) for rate in sorted(study.students[student].learning_rates[teacher.data])]
    while arm in study.bracketed and (best := _best(tried)) in (tried[0], tried[-1]):
        beyond = at(best.key.rate * (2 if best is tried[-1] else 0.5))
        tried = sorted([*tried, beyond], key=lambda run: run.key.rate)
    return tried


def contenders(tried: Sequence[Run], seeds: int) -> list[list[Run]]:
    """The best rate on dev, with a run for every seed. Empty until all rates have been tried.

    One seed's dev accuracy is noise within a point: where the second best is as close, an arm that
    the study brackets has all its seeds at that as well.
    """
    best = _best(tried)
    if best is None:
        return []
    rates = [best]
    if best.key.arm in best.study.bracketed:
        others = sorted((run for run in tried if run is not best), key=_dev, reverse=True)
        rates += [run for run in others[:1] if _dev(best) - _dev(run) <= _CLOSE]
    return [
        [replace(run, key=replace(run.key, seed=seed)) for seed in range(seeds)] for run in rates
    ]


def to_do(
    study: Study,
    data: str,
    student: str,
    named: Sequence[str],
    seeds: int,
    folder: Path = FOLDER,
) -> list[str]:
    """Of those arms the ones that are in no teacher's table, after what they are compared with."""

    def is_whole(teacher: Teacher, arm: str) -> bool:
        contending = contenders(at_each_rate(study, teacher, student, arm, folder), seeds)
        return bool(contending) and all(run.path.exists() for runs in contending for run in runs)

    known = known_teachers(study, data, folder)
    tables = [teacher for teacher in known if is_whole(teacher, BASELINE)]
    found = [arm for arm in named if not any(is_whole(teacher, arm) for teacher in tables)]
    return [BASELINE, *(arm for arm in found if arm != BASELINE)] if found else []


def winner(contending: Sequence[list[Run]]) -> list[Run]:
    """Of contenders whose runs are all there, the one with the best mean on dev."""
    return max(contending, key=lambda runs: sum(_dev(run) for run in runs))


def _best(tried: Sequence[Run]) -> Run | None:
    """The run that did best on dev, the first of equals; None until all have been done."""
    return max(tried, key=_dev) if all(run.path.exists() for run in tried) else None


def _dev(run: Run) -> float:
    return float(read_json(run.path)["dev_accuracy"])
