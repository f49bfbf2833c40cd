"""The sections of a recipe, typed: sources and data, export, evaluation, registry and gate.

A section is named after the stage that reads it, and a stage reads no other, so that DVC reruns
what a change touches and nothing more. No field has a default: what a run does stands in its file.
Models here only declare and refuse; what is worked out from them is in `derived`. `training.py`
and `compute.py` have the other sections, `recipe.py` the whole.
"""

from __future__ import annotations

import os.path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.fields import (
    Fraction,
    NotNegative,
    OpenFraction,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Text,
)
from tasks.kd.recipe.sources import DataSource, ModelSource, PathModel
from tasks.kd.recipe.teachers import MEMBER

LONGEST_TEXT = 8192  # tokens
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


# --- fetch_sources -------------------------------------------------------------------------------


class FetchSources(Section):
    """Where the text and the teacher's weights come from."""

    data: Annotated[DataSource, Field(description="labelled text with its own test split")]
    teacher: Annotated[ModelSource, Field(description="the encoder that the teacher starts from")]
    student: Annotated[
        ModelSource | None,
        Field(
            description="the encoder that the student starts from (`initial.kind: checkpoint`), "
            "with the teacher's vocabulary; null for all other starts"
        ),
    ]
    more_teachers: Annotated[
        dict[Annotated[str, Field(pattern=MEMBER)], ModelSource],
        Field(
            description="by name, classifiers tuned to the same labels, of the teacher's "
            "vocabulary, that teach together with it (`train_teacher.ensemble`); {} for none; "
            "those of this repository lie in one folder, all that DVC sees change"
        ),
    ]

    @model_validator(mode="after")
    def _further_teachers_lie_in_one_folder(self) -> FetchSources:
        if self.more_folder == "":
            raise ValueError("more_teachers of kind path must lie in one folder of the repository")
        return self

    @property
    def more_folder(self) -> str | None:
        """The folder that holds all local further teachers; None if there are none."""
        sources = self.more_teachers.values()
        folders = [x.folder for x in sources if isinstance(x, PathModel)]
        return os.path.commonpath(folders) if folders else None


# --- prepare_data --------------------------------------------------------------------------------


class PrepareData(Section):
    """From raw tables to token ids, labels, stable example ids and splits."""

    text_column: Annotated[Text, Field(description="column with the text")]
    label_column: Annotated[Text, Field(description="column with the label")]
    max_length_tokens: Annotated[
        int, Field(ge=8, le=LONGEST_TEXT, description="longer texts are cut to this many tokens")
    ]
    dev_fraction: Annotated[
        OpenFraction, Field(description="share of the training split kept aside, stratified")
    ]
    train_examples: Annotated[
        Positive | None,
        Field(description="stratified sub-sample of the training split, or null for all of it"),
    ]
    on_overlap: Annotated[
        Literal["drop_from_train", "refuse"],
        Field(description="what to do with a training text that is also in the test split"),
    ]
    min_train_examples: Annotated[
        Positive,
        Field(
            description="fewer usable rows in the training file are refused: what arrives is not "
            "what it was"
        ),
    ]
    on_unreadable: Annotated[
        Literal["refuse", "replace", "drop"],
        Field(
            description="what to do with a text that no tokenizer can encode (half of a surrogate "
            "pair): refuse names its row, replace puts U+FFFD there, drop leaves the row out; "
            "both are counted"
        ),
    ]
    max_unknown_fraction: Annotated[
        Fraction,
        Field(
            description="largest share of unknown tokens among those of the training texts; more "
            "is refused"
        ),
    ]
    random_texts: Annotated[
        NotNegative,
        Field(
            description="for each training text so many of random tokens, as long as it: "
            "unlabelled, read by phases without a prediction level, so that layers are matched on "
            "words that the training texts lack; the cache grows by as much; 0 for none"
        ),
    ]
    seed: Annotated[
        Seed, Field(description="of the sub-sample, the dev split and the random texts")
    ]

    @model_validator(mode="after")
    def _a_label_is_no_text(self) -> PrepareData:
        if self.text_column == self.label_column:
            raise ValueError("text_column and label_column must be two columns")
        return self


# --- export, evaluation, registry, gate ----------------------------------------------------------


class ExportStudent(Section):
    """ONNX files: float32 and int8."""

    serve: Annotated[
        Literal["float32", "int8"], Field(description="the file that is evaluated and registered")
    ]
    max_logit_difference: Annotated[
        PositiveFloat, Field(description="float32 ONNX against torch, largest absolute")
    ]
    min_int8_agreement: Annotated[
        Fraction, Field(description="share of equal predictions, int8 against float32")
    ]
    parity_examples: Annotated[Positive, Field(description="dev examples compared")]


class EvaluateStudent(Section):
    """The test split: teacher against student."""

    bootstrap_resamples: Annotated[
        int, Field(ge=200, description="draws of the test split, teacher and student together")
    ]
    confidence: Annotated[OpenFraction, Field(description="of the intervals, for example 0.95")]
    latency_examples: Annotated[
        int, Field(ge=20, description="test texts timed one by one, tokenizer included, one thread")
    ]
    similarity_examples: Annotated[
        int, Field(ge=16, description="test texts used for the layer-by-layer similarity")
    ]
    seed: Annotated[Seed, Field(description="of resampling and of the choice of texts")]


class Register(Section):
    """Where the run and the model version go in MLflow."""

    experiment: Annotated[
        str, Field(pattern=MODEL_NAME, description="MLflow experiment of the run")
    ]
    model: Annotated[str, Field(pattern=MODEL_NAME, description="name of the registered model")]


class Gate(Section):
    """What a candidate must show before it may become champion. Each rule is checked."""

    min_accuracy: Annotated[
        Fraction,
        Field(description="lower confidence bound of the student's own accuracy, whatever else"),
    ]
    min_lead: Annotated[
        Fraction,
        Field(
            description="lower confidence bound of the share of errors that the student removes "
            "of those that the best constant answer makes: 0 is chance, 1 is perfect"
        ),
    ]
    min_retention: Annotated[
        Fraction,
        Field(description="lower confidence bound of student accuracy / teacher accuracy"),
    ]
    max_accuracy_drop: Annotated[
        Fraction,
        Field(
            description="non-inferiority margin: the lower confidence bound of candidate minus "
            "champion accuracy, on the same examples, must not be below minus this"
        ),
    ]
    confidence: Annotated[OpenFraction, Field(description="of both one-sided bounds")]
    min_examples: Annotated[Positive, Field(description="fewer test examples decide nothing")]
    max_size_mib: Annotated[PositiveFloat, Field(description="of the served ONNX file")]
    max_latency_p95_ms: Annotated[PositiveFloat, Field(description="one text, one thread")]
