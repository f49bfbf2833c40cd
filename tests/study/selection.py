"""From keys to runs, and from keys to the results that are there."""

from __future__ import annotations

from pathlib import Path

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
