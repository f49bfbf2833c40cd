"""Live curves against a real MLflow store on disk, and against one that is not there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.distill import newest_metrics
from tasks.kd.documents.history import HISTORY, Record
from tasks.registry import Registry, open_registry
from tasks.registry.live import TAG
from tests.makers.documents import make_dev_record, make_level_record, make_train_record


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return open_registry(tmp_path_factory.mktemp("checkout"))


def record(step: int, **changes: Any) -> str:
    levels = {"hidden.mse [[0, 0]]": make_level_record(0.5 / step)}
    return line(make_train_record(step, **{"loss": 1.0 / step, "levels": levels, **changes}))


def line(record: Record) -> str:
    return record.model_dump_json(exclude_unset=True) + "\n"


def until(condition: Callable[[], object]) -> None:
    """Wait for what happens in the other thread; the suite's own timeout ends a wait in vain."""
    while not condition():
        time.sleep(0.01)


def history(registry: Registry, experiment: str, metric: str) -> list[tuple[int, float]]:
    (run,) = runs(registry, experiment)
    found = registry.store.client.get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in found)


def runs(registry: Registry, experiment: str) -> list[Any]:
    found = registry.store.client.get_experiment_by_name(experiment)
    return list(registry.store.client.search_runs([found.experiment_id])) if found else []


def test_what_a_training_writes_is_in_mlflow_while_it_runs(
    registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / HISTORY
    said: list[str] = []
    find = lambda: path  # noqa: E731
    with registry.follow("alive", "train_student small", find, every_s=0.05, say=said.append):
        path.write_text(record(1) + record(2) + record(3)[:20])  # the third is being written
        until(lambda: said)
        until(lambda: len(history(registry, "alive", "train.loss")) == 2)
        (run,) = runs(registry, "alive")
        assert run.info.status == "RUNNING"
        path.write_text(record(1) + record(2) + record(3) + line(make_dev_record(3, accuracy=0.5)))
    assert history(registry, "alive", "train.loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert history(registry, "alive", "dev.accuracy") == [(3, 0.5)]
    assert len(history(registry, "alive", "train.hidden.mse __0_ 0__.raw")) == 3
    (run,) = runs(registry, "alive")
    assert (run.info.status, run.data.tags[TAG]) == ("FINISHED", "1")
    assert run.info.run_name == "train_student small, live"
    assert run.info.run_id in said[0]


def test_a_training_that_fails_leaves_a_failed_run(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    path.write_text(record(1))
    with (
        pytest.raises(RuntimeError, match="the training's own"),
        registry.follow("fallen", "train_student a", lambda: path, every_s=9.0, say=print),
    ):
        raise RuntimeError("the training's own")
    (run,) = runs(registry, "fallen")
    assert run.info.status == "FAILED"


def test_a_training_that_says_nothing_leaves_no_run(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    with registry.follow("silent", "train_student a", lambda: path, every_s=0.01, say=print):
        pass
    assert runs(registry, "silent") == []


@pytest.mark.parametrize("fault", ["no server", "no line"])
def test_what_goes_wrong_is_said_once_and_costs_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "no server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    path = tmp_path / HISTORY
    said: list[str] = []
    path.write_text(record(1) if fault == "no server" else "not a record\n")
    registry = open_registry(tmp_path)
    with registry.follow("gone", "train_student a", lambda: path, every_s=0.01, say=said.append):
        until(lambda: any("the training goes on" in line for line in said))
        path.write_text(record(1) * 3)
    assert sum("the training goes on" in line for line in said) == 1


def test_a_resumed_training_s_shorter_file_is_read_from_its_beginning(
    registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / HISTORY
    path.write_text(record(1) + record(2) + record(3))
    with registry.follow("again", "train_student a", lambda: path, every_s=0.05, say=print):
        until(lambda: runs(registry, "again") and history(registry, "again", "train.loss"))
        path.write_text(record(1) + record(2, loss=7.0))
    assert (2, 7.0) in history(registry, "again", "train.loss")


def test_only_the_figures_of_the_training_that_runs_are_followed(tmp_path: Path) -> None:
    old = tmp_path / ".work" / "train_student-a-0123" / HISTORY
    new = tmp_path / ".work" / "train_student-a-4567" / HISTORY
    other = tmp_path / ".work" / "train_student-b-0123" / HISTORY
    for path in (old, new, other):
        path.parent.mkdir(parents=True)
    old.write_text(record(1))
    os.utime(old, (1.0, 1.0))
    find = newest_metrics(tmp_path, "train_student", "a")
    assert find() is None
    other.write_text(record(1))
    assert find() is None
    new.write_text(record(1))
    assert find() == new
