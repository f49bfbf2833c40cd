"""The runbook's heading for each error, shown below the error's message.

A symptom is a heading of RUNBOOK.md. An error gets the first symptom whose kind and words fit it; a
finding of the doctor names its own. A test compares words, kinds and headings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.kd.errors import (
    CacheError,
    CacheQuotaError,
    DataError,
    ExportError,
    KDError,
    NonFiniteLossError,
    ParamsError,
    RegistryError,
    ShapeError,
    StageError,
    TransientError,
)

PAGE = Path(__file__).with_name("RUNBOOK.md")
DISK_FULL = "the-disk-is-full"
GATE_REFUSED = "the-gate-refused"
MLFLOW_REFUSED = "mlflow-refused-or-could-not-be-reached"
PORT_IN_USE = "a-port-is-in-use"
PREFECT_DOES_NOT_START = "a-prefect-server-does-not-start"


@dataclass(frozen=True)
class Symptom:
    """A heading's anchor, and its errors: those of a kind whose message holds one of the words."""

    anchor: str
    kind: type[KDError]
    words: tuple[str, ...] = ()


# Narrow symptoms come first; one without words covers all other errors of its kind.
SYMPTOMS = (
    Symptom("a-recipe-cant-be-run", ParamsError, ("can't be run",)),
    Symptom(
        "the-recipe-is-of-another-form",
        ParamsError,
        ("the recipe is of an older form", "this stillhouse is too old for the recipe"),
    ),
    Symptom(PORT_IN_USE, ParamsError, (" is in use",)),
    Symptom(
        "registermodel-is-the-name-of-a-prompt-in-mlflow",
        ParamsError,
        ("register.model is the name of a prompt in MLflow",),
    ),
    Symptom(
        "the-given-teacher-is-hardly-better-than-one-answer-for-all-texts",
        DataError,
        ("the given teacher is hardly better than one answer for all texts",),
    ),
    Symptom(
        "the-teachers-labels-are-not-those-of-the-data-or-stand-in-another-order",
        DataError,
        (
            "the teacher's labels are not those of the data, or stand in another order",
            "the given teacher's labels stand in another order",
            "the recipe's map",
        ),
    ),
    Symptom(
        "the-teachers-tokenizer-does-not-know-the-training-texts",
        DataError,
        ("the teacher's tokenizer does not know the training texts",),
    ),
    Symptom(
        "a-link-leads-out-of-the-repository", DataError, ("a link leads out of the repository",)
    ),
    Symptom("dvcs-remote-does-not-answer", DataError, ("dvc can't use the remote",)),
    Symptom(
        "what-a-stage-left-cant-be-read",
        DataError,
        ("is not JSON, or is cut short", "Another version wrote it, or a hand"),
    ),
    Symptom(
        "a-models-folder-is-refused",
        DataError,
        (
            "Git LFS pointer",
            "a page of a web server",
            "safetensors",
            "the weights",
            "sets of weights",
            "weights that are quantised",
            "an adapter beside the model",
            "not a model folder",
            "the source holds no model",
            "no such model folder",
            "index of shards",
            "shards without their index",
            "what its configuration says",
            "the configuration of a model",
            "an activation that is not known",
            "this family of encoders is not supported",
            "tokenizer",
            "special piece",
            "not a vocabulary",
        ),
    ),
    Symptom("a-source-is-refused", DataError),
    Symptom("something-changed-while-the-stage-ran", StageError, ("changed while the stage ran",)),
    Symptom("something-changed-while-the-flow-ran", KDError, ("changed while the flow ran",)),
    Symptom(
        "dvc-could-not-store-what-a-stage-made",
        StageError,
        ("DVC could not store what a stage made",),
    ),
    Symptom("a-stage-ended-and-named-no-error", StageError),
    Symptom(
        DISK_FULL,
        CacheError,
        ("the disk is too full for the teacher cache", "the disk filled up"),
    ),
    Symptom("the-teacher-caches-take-the-room", CacheQuotaError),
    Symptom("the-remote-store-cant-be-reached", KDError, ("the remote store",)),
    Symptom("the-teacher-cache-is-damaged-stale-or-not-there", CacheError),
    Symptom("the-champions-files-are-lost", RegistryError, ("The model's files are gone",)),
    Symptom(MLFLOW_REFUSED, RegistryError),
    Symptom(MLFLOW_REFUSED, TransientError, ("MLflow",)),
    Symptom("dvcs-remote-does-not-answer", TransientError, (" did not succeed",)),
    Symptom(
        "a-prefect-server-does-not-answer",
        TransientError,
        (
            "there is no Prefect server that could keep a schedule",
            "the Prefect server does not answer",
        ),
    ),
    Symptom("the-network-or-a-lock-failed-for-a-moment", TransientError),
    Symptom("a-prefect-server-plans-no-runs", KDError, ("the Prefect server plans no runs",)),
    Symptom(PREFECT_DOES_NOT_START, KDError, (" did not answer within ", " ended by itself")),
    Symptom("tensors-or-models-do-not-fit-together", ShapeError),
    Symptom("a-number-is-not-finite", NonFiniteLossError),
    Symptom("the-exported-student-differs-from-the-trained-one", ExportError),
)


def find_anchor(error: KDError) -> str | None:
    """The anchor of an error's heading; None if the page says no more than the message."""
    message = str(error)
    for symptom in SYMPTOMS:
        words_fit = not symptom.words or any(words in message for words in symptom.words)
        if isinstance(error, symptom.kind) and words_fit:
            return symptom.anchor
    return None


def show_place(anchor: str) -> str:
    """The page and the heading, as a relative path if the page lies below the current folder."""
    here = Path.cwd()
    shown = PAGE.relative_to(here) if PAGE.is_relative_to(here) else PAGE
    return f"{shown}#{anchor}"
