"""The run, written from files: parameters, metrics with history per level, inputs, artifacts."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.registry.produced import Produced
from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from tasks.kd.documents.evaluation import Metrics
    from tasks.kd.documents.history import Record

_PARAM_CHARACTERS = 6000  # MLflow's limit
_BATCH = {"params": 100, "metrics": 500}
_SKIPPED = {"step", "epoch", "phase", "split", "levels"}

Item = TypeVar("Item")


def track(store: Store, produced: Produced) -> str:
    """The id of the finished run with these artifacts' fingerprint, written if there is none.

    An unfinished run is marked as failed, deleted and written anew.
    """
    experiment = store.ensure_experiment(produced.recipe.register_.experiment)
    for run in store.client.search_runs(
        [experiment], f"tags.`stillhouse.fingerprint` = '{produced.fingerprint}'"
    ):
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
        store.client.set_terminated(run.info.run_id, "FAILED")
        store.client.delete_run(run.info.run_id)
    run = store.client.create_run(experiment, run_name=produced.name, tags=produced.tags)
    run_id = str(run.info.run_id)
    try:
        _write(store, produced, run_id)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            store.client.set_terminated(run_id, "FAILED")
        raise
    store.client.set_terminated(run_id, "FINISHED")  # comes last: only now the run counts
    return run_id


def _write(store: Store, produced: Produced, run_id: str) -> None:
    from mlflow.entities import Param

    client = store.client
    params = [Param(key, value) for key, value in flatten_recipe(produced).items()]
    for chunk in _chunks(params, _BATCH["params"]):
        client.log_batch(run_id, params=chunk)
    for metrics in _chunks(list(_collect_metrics(produced)), _BATCH["metrics"]):
        client.log_batch(run_id, metrics=metrics)
    _log_inputs(store, produced, run_id)
    for stage, name in _list_files():
        client.log_artifact(run_id, str(produced.path(stage, name)), stage)
    plots = produced.artifacts / "evaluate_student" / "plots"
    if plots.is_dir():
        client.log_artifacts(run_id, str(plots), "evaluate_student/plots")
    client.log_artifact(run_id, str(produced.recipe_file), "recipe")


def _list_files() -> list[tuple[str, str]]:
    """The artifacts that are logged with the run, in folders named after the stages."""
    from tasks.kd.cache.format.manifest import MANIFEST
    from tasks.kd.documents.data_card import DataCard
    from tasks.kd.documents.evaluation import Metrics
    from tasks.kd.documents.exported import Contract, ExportReport
    from tasks.kd.documents.predictions import PREDICTIONS
    from tasks.kd.documents.training import StudentReport, TeacherReport

    return [
        ("prepare_data", DataCard.FILE),
        ("train_teacher", TeacherReport.FILE),
        ("cache_teacher", MANIFEST),
        ("train_student", StudentReport.FILE),
        ("export_student", Contract.FILE),
        ("export_student", ExportReport.FILE),
        ("export_student", "model_card.md"),
        ("evaluate_student", Metrics.FILE),
        ("evaluate_student", PREDICTIONS),
        ("evaluate_student", "report.html"),
    ]


# --- parameters ----------------------------------------------------------------------------------


def flatten_recipe(produced: Produced) -> dict[str, str]:
    """The recipe as dotted names and texts, for MLflow's parameters.

    In `train_student.phases.0.levels.1.weight`, lists of sections are numbered; other lists are
    JSON. A text beyond MLflow's limit is cut and says where the whole text is.
    """
    whole = f"… (cut; whole in recipe/{produced.recipe_file.name})"
    recipe = produced.recipe.model_dump(mode="json", by_alias=True)
    return {
        key: text if len(text) <= _PARAM_CHARACTERS else text[: _PARAM_CHARACTERS - 100] + whole
        for key, text in _flatten(recipe, "")
    }


def _flatten(value: Any, key: str) -> Iterator[tuple[str, str]]:
    prefix = f"{key}." if key else ""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _flatten(part, f"{prefix}{name}")
    elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for place, part in enumerate(value):
            yield from _flatten(part, f"{prefix}{place}")
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


# --- metrics -------------------------------------------------------------------------------------


def _collect_metrics(produced: Produced) -> Iterator[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for role in ("teacher", "student"):
        for step, name, value in list_history(produced, role):
            yield Metric(name, value, now, step)
    for name, value in flatten_results(produced.metrics):
        yield Metric(name, value, now, 0)


def list_history(produced: Produced, role: str) -> Iterator[tuple[int, str, float]]:
    """A training's (step, name, value)s, with names such as `student.train.prediction.kl.raw`.

    A given teacher has none. Raises DataError for a line that can't be read.
    """
    from tasks.kd.documents.history import read_history

    for record in read_history(produced.artifacts / f"train_{role}"):
        for step, name, value in numbers_of(record):
            yield step, f"{role}.{name}", value


def numbers_of(record: Record) -> Iterator[tuple[int, str, float]]:
    """One record's (step, name, value)s, with names such as `train.prediction.kl.raw`."""
    from tasks.kd.documents.history import TrainRecord

    values = {name: value for name, value in record.given.items() if name not in _SKIPPED}
    if isinstance(record, TrainRecord):
        for level, part in record.levels.items():
            values |= {f"{level}.{name}": value for name, value in part.given.items()}
    for name, value in sorted(values.items()):
        if _is_number(value):
            yield record.step, f"{record.split}.{_metric_name(name)}", float(value)


def _metric_name(name: str) -> str:
    """A name for MLflow, which takes no brackets: a level's name may hold its map in brackets."""
    return re.sub(r"[^\w.\-/ :]", "_", name)


def flatten_results(metrics: Metrics) -> Iterator[tuple[str, float]]:
    """An evaluation's names and numbers: `test.student.accuracy`, `.low`, `.high`, and so on."""
    parts = {
        "teacher": metrics.teacher,
        "student": metrics.student,
        "student_torch": metrics.student_torch,
        "retention": metrics.retention,
        "agreement": metrics.agreement,
    }
    for name, part in parts.items():
        yield from _flatten_numbers(part.as_json(), f"test.{name}")
    yield "test.examples", float(metrics.examples)


def _flatten_numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, part in value.items():
            # {value, n, low, high}: the value has the plain name; n is test.examples
            if name != "n":
                yield from _flatten_numbers(part, key if name == "value" else f"{key}.{name}")
    elif _is_number(value):
        yield key, float(value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


# --- data ----------------------------------------------------------------------------------------


def _log_inputs(store: Store, produced: Produced, run_id: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    card = produced.data_card
    source = produced.recipe.fetch_sources.data
    inputs = []
    for split, context, digest, described in (
        ("train", "training", card.encoded_sha256, card.splits.train),
        ("test", "testing", card.test_sha256, card.splits.test),
    ):
        data = Dataset(
            name=f"{produced.name}.{split}",
            digest=digest[:32],  # MLflow takes 36 characters at most
            source_type=source.kind,
            source=source.model_dump_json(),
            profile=json.dumps(described.as_json(), sort_keys=True),
        )
        tags = [
            InputTag("mlflow.data.context", context),
            InputTag("sha256", digest),
            InputTag("dvc.prepare_data", produced.tags["dvc.prepare_data"]),
        ]
        inputs.append(DatasetInput(data, tags))
    store.client.log_inputs(run_id, inputs)


def _chunks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
