"""The run in MLflow: all that it carries, written once, refused where artifacts are not whole."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tasks.kd.errors import DataError
from tasks.registry import (
    Registry,
    open_registry,
    packing,
    tracking,
)
from tasks.registry.produced import STAGES
from tests.makers.documents import (
    make_data_card,
    make_manifest,
    make_teacher_report,
)
from tests.makers.registered import (
    MODEL,
    Make,
    put_forward,
    run_gate,
)
from tests.serving.test_served_student import LABELS


def test_nothing_is_left_in_the_working_directory(
    registry: Registry, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow falls back to a database in the working directory wherever it is not told better."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run_gate(registry, make())
    registry.lineage("models:/triage@champion")
    assert list(Path().iterdir()) == []
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_run_carries_everything_and_says_nothing(
    registry: Registry, make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    produced = make()
    run_id = registry.track(produced)
    client = registry.store.client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    phase = produced.recipe.train_student.phases[0]
    params = run.data.params
    assert params["train_student.phases.0.levels.0.weight"] == str(phase.levels[0].weight)
    assert json.loads(params["cache_teacher.streams"])[0] == "logits"
    assert params["register.model"] == MODEL
    assert params["compute.threads"] == json.dumps(produced.recipe.compute.threads)
    history = client.get_metric_history(run_id, "student.train.prediction.kl.raw")
    assert sorted((one.step, one.value) for one in history) == [(s, 2 / s) for s in range(1, 31)]
    for name in ("teacher.train.loss", "student.dev.accuracy", "test.student.accuracy.low"):
        assert name in run.data.metrics
    assert run.data.metrics["test.retention"] == 0.98
    tags = run.data.tags
    assert tags["git.commit"] == "1" * 40
    assert tags["git.dirty"] == "true"
    assert tags["teacher.sha256"] == make_teacher_report().teacher_sha256
    assert tags["cache.fingerprint"] == make_manifest().fingerprint
    assert tags["prefect.flow_run_id"] == "flow-1"
    assert all(tags[f"dvc.{stage}"].endswith(".dir") for stage in STAGES)
    assert run.inputs is not None
    contexts = {
        tag.value
        for one in run.inputs.dataset_inputs
        for tag in one.tags
        if tag.key == "mlflow.data.context"
    }
    assert contexts == {"training", "testing"}
    files = {file.path for file in client.list_artifacts(run_id, "evaluate_student")}
    assert {"evaluate_student/report.html", "evaluate_student/plots"} <= files
    assert client.list_artifacts(run_id, "recipe")[0].path == "recipe/tiny.yaml"
    put_forward(registry, produced)
    assert capfd.readouterr() == ("", "")


def test_tracking_and_registering_twice_change_nothing(registry: Registry, make: Make) -> None:
    produced = make()
    first = put_forward(registry, produced)
    again = put_forward(open_registry(registry.store.root), produced)
    assert (again.version, again.run_id) == (first.version, first.run_id) == (1, first.run_id)
    assert registry.find(produced) == again
    assert "candidate" in again.aliases
    client, experiment = registry.store.client, registry.store.ensure_experiment("experiments")
    assert len(client.search_runs([experiment])) == 1
    assert len(client.search_logged_models([experiment])) == 1


def test_a_run_that_was_begun_and_not_finished_is_done_anew(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced = make()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_log_inputs", die)
        with pytest.raises(KeyboardInterrupt):
            registry.track(produced)
    client, experiment = registry.store.client, registry.store.ensure_experiment("experiments")
    broken = client.search_runs([experiment])[0]
    assert broken.info.status == "FAILED"
    # and one that was killed, without a last word
    killed = client.create_run(experiment, tags=produced.tags).info.run_id
    run_id = registry.track(produced)
    assert run_id not in {broken.info.run_id, killed}
    assert [run.info.run_id for run in client.search_runs([experiment])] == [run_id]
    assert client.get_run(run_id).data.params["gate.min_examples"] == "100"


def test_a_registration_that_was_cut_off_leaves_no_version_and_is_cleared(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced = make()
    run_id = registry.track(produced)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "fetch_verified", die)
        with pytest.raises(KeyboardInterrupt):
            registry.register(produced, run_id)
    assert registry.find(produced) is None
    version = registry.register(produced, run_id)
    assert version.version == 1
    client, experiment = registry.store.client, registry.store.ensure_experiment("experiments")
    assert [model.status.value for model in client.search_logged_models([experiment])] == ["READY"]


def test_a_text_beyond_mlflows_limit_is_cut_and_says_so(make: Make) -> None:
    produced = make()
    long = produced.recipe.model_copy(update={"description": "x" * 7000})
    text = tracking.flatten_recipe(dataclasses.replace(produced, recipe=long))["description"]
    assert len(text) <= 6000
    assert text.endswith("(cut; whole in recipe/tiny.yaml)")


def test_artifacts_that_dvc_did_not_record_are_refused(registry: Registry, make: Make) -> None:
    produced = make()
    hashes = {stage: paths for stage, paths in produced.lineage.dvc.items() if stage != STAGES[2]}
    lineage = dataclasses.replace(produced.lineage, dvc=hashes)
    with pytest.raises(DataError, match=r"no hash of some outs: train_teacher"):
        registry.find(dataclasses.replace(produced, lineage=lineage))


@pytest.mark.parametrize("name", ["report.html", "predictions.csv"])
def test_a_missing_artifact_is_named_and_nothing_is_registered(
    registry: Registry, make: Make, name: str
) -> None:
    produced = make()
    (produced.artifacts / "evaluate_student" / name).unlink()
    with pytest.raises(DataError, match=rf"An artifact is missing: .*{name}.*stillhouse run tiny"):
        put_forward(registry, produced)
    assert registry.find(produced) is None


def test_an_evaluation_of_another_test_split_is_refused(registry: Registry, make: Make) -> None:
    produced = make()
    other = make_data_card(LABELS, test_sha256="9" * 64)
    other.write(produced.artifacts / "prepare_data")
    with pytest.raises(DataError, match="another test split"):
        registry.track(produced)


def test_another_gate_is_the_same_version_and_another_byte_is_not(make: Make) -> None:
    first = make()
    assert make(gate={"min_examples": 200}).fingerprint == first.fingerprint
    assert make(wrong=range(6)).fingerprint != first.fingerprint


def test_the_fixture_is_what_it_says(make: Make) -> None:
    produced = make(wrong=range(7))
    candidate = produced.candidate
    wrong = np.asarray(candidate.student) != np.asarray(candidate.labels)
    assert wrong.sum() == 7
