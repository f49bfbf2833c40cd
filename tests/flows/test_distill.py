"""The flow, for real: a Prefect server, a DVC repository, an MLflow store, stages of no work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State, TaskRun, TaskRunResult
from prefect.settings import PREFECT_HOME

from flows import distill as module
from flows.distill import distill
from flows.job import Outcome
from tasks.kd.errors import DataError, KDError, ParamsError, StageError, TransientError
from tasks.registry import open_registry
from tasks.registry.produced import STAGES
from tasks.versioning import asking, telling
from tests.flows.conftest import IGNORED, MODEL, UPSTREAM, Project, record

pytestmark = [pytest.mark.usefixtures("prefect_url"), pytest.mark.filterwarnings(IGNORED)]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without their waiting times."""
    for name in ("run_stage", "track"):
        eager = getattr(module, name).with_options(retry_delay_seconds=0)
        monkeypatch.setattr(module, name, eager)


def outcome_of(state: State[Any]) -> Outcome:
    outcome = state.result(raise_on_failure=False)
    assert isinstance(outcome, Outcome), outcome
    return outcome


def error_of(state: State[Any]) -> KDError:
    error = state.result(raise_on_failure=False)
    assert isinstance(error, KDError), error
    return error


def read_run(state: State[Any]) -> tuple[FlowRun, dict[str, TaskRun]]:
    """What the server knows of a flow run and of its tasks, by name."""
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    with get_client(sync_client=True) as client:
        deadline = time.monotonic() + 20
        while True:  # task runs arrive as events, a moment later
            tasks = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
            )
            if all(one.state and one.state.is_final() for one in tasks) and tasks:
                return client.read_flow_run(run_id), {one.name: one for one in tasks}
            assert time.monotonic() < deadline, tasks
            time.sleep(0.2)


def test_the_first_run_makes_everything_in_order_and_a_champion(
    first: tuple[Project, State[Any]],
) -> None:
    project, state = first
    outcome = outcome_of(state)
    assert (state.name, state.is_completed()) == ("Promoted", True)
    assert project.ran() == list(STAGES)
    assert list(outcome.stage_seconds) == list(STAGES)
    assert project.champion() == 1
    assert outcome.version == f"models:/{MODEL}/1"


def test_the_task_graph_is_the_one_of_dvc_yaml(first: tuple[Project, State[Any]]) -> None:
    _, tasks = read_run(first[1])
    names = {task.id: name.partition("@")[0] for name, task in tasks.items()}
    for stage, upstream in UPSTREAM.items():
        waited = tasks[f"{stage}@tiny"].task_inputs.get("wait_for", [])
        assert {names[source.id] for source in waited if isinstance(source, TaskRunResult)} == set(
            upstream
        ), stage
    steps = {"pull", "track", "register", "gate", "publish", "promote", "push"}
    assert set(names.values()) == {*STAGES, *steps}


def test_the_server_holds_reasons_output_table_and_decision(
    first: tuple[Project, State[Any]],
) -> None:
    run, _ = read_run(first[1])
    with get_client(sync_client=True) as client:
        said: list[str] = []
        deadline = time.monotonic() + 20
        while "prepare_data at work" not in said:
            assert time.monotonic() < deadline, said
            found = client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), limit=200
            )
            said = [one.message for one in found]
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    assert "runs, because: never run: dvc.lock has no record of it" in said
    held = {one.key: str(one.data) for one in artifacts}
    assert "98.00 %" in held["result-tiny"]
    assert "**Promote**" in held["decision-tiny"]


def test_only_what_is_out_of_date_runs_and_says_why(
    done: Project, caplog: pytest.LogCaptureFixture
) -> None:
    done.retrain("better")
    state = distill("tiny", str(done.root), return_state=True)
    again = ["train_student", "export_student", "evaluate_student"]
    assert done.ran()[len(STAGES) :] == again
    assert list(outcome_of(state).stage_seconds) == again
    assert state.name == "Promoted"
    assert done.champion() == 2
    assert "train_student.optimizer.seed changed from" in caplog.text
    assert "cache_teacher@tiny is up to date" in caplog.text


def test_a_name_that_a_prompt_has_is_refused_before_anything_is_trained(project: Project) -> None:
    client = open_registry(project.root).store.client
    client.register_prompt(MODEL, "Classify {{text}}")
    error = error_of(distill("tiny", str(project.root), return_state=True))
    assert isinstance(error, ParamsError)
    assert f"the name of a prompt in MLflow: {MODEL}" in str(error)
    assert project.ran() == []
    assert len(client.search_prompt_versions(MODEL)) == 1


def test_a_registry_that_does_not_answer_at_the_start_costs_no_training(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def hang_up(*_: object) -> None:
        raise TransientError("MLflow does not answer")

    monkeypatch.setattr("tasks.registry.Registry.require_name", hang_up)
    state = distill("tiny", str(project.root), return_state=True)
    assert outcome_of(state).promoted
    assert "the model's name was not looked up: MLflow does not answer" in caplog.text


def test_imports_are_updated_before_anything_else_if_asked(
    done: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    for name in ("update", "pull"):

        def move(*_: object, name: str = name, **__: object) -> bool:
            moved.append(name)
            return True

        monkeypatch.setattr(telling, name, move)
    assert distill("tiny", str(done.root), updates=True, return_state=True).is_completed()
    assert distill("tiny", str(done.root), return_state=True).is_completed()
    assert moved == ["update", "pull", "pull"]


def test_git_and_the_lock_are_asked_once_for_all_that_is_registered(
    done: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("git_state", "out_hashes"):
        ask = getattr(asking, name)

        def noted(*given: Any, name: str = name, ask: Callable[..., Any] = ask) -> Any:
            asked.append(name)
            return ask(*given)

        monkeypatch.setattr(asking, name, noted)
    assert distill("tiny", str(done.root), return_state=True).is_completed()
    assert sorted(asked) == ["git_state", "out_hashes"]


def test_a_refusal_is_a_normal_ending_and_the_champion_stays(done: Project) -> None:
    done.retrain("poor")
    state = distill("tiny", str(done.root), return_state=True)
    assert (state.name, state.is_completed()) == ("Refused", True)
    assert state.message is not None
    assert "retention, The student keeps 80.00%" in state.message
    assert "champion" in state.message
    assert not outcome_of(state).promoted
    assert done.champion() == 1
    candidate = open_registry(done.root).resolve(f"models:/{MODEL}@candidate")
    assert candidate.version == 2


@pytest.mark.usefixtures("at_once")
def test_a_transient_fault_is_tried_again_and_another_is_not(done: Project) -> None:
    done.retrain("better")
    busy, bad = record("TransientError", "the hub is busy", transient=True), "no column `body`."
    done.fail("train_student", busy, record("DataError", bad), record("DataError", "never met"))
    state = distill("tiny", str(done.root), return_state=True)
    assert done.ran()[len(STAGES) :] == ["train_student", "train_student"]
    assert (state.name, state.message) == ("Failed", bad)
    error = error_of(state)
    assert isinstance(error, DataError)
    assert error.exit_code == 2
    assert done.champion() == 1


@pytest.mark.usefixtures("at_once")
def test_an_outage_of_mlflow_costs_no_training(
    done: Project, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done.retrain("better")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        state = distill("tiny", str(done.root), return_state=True)
    assert isinstance(error_of(state), TransientError)
    assert state.message is not None
    assert "MLflow does not answer" in state.message
    assert "stillhouse run tiny" in state.message
    ran = done.ran()
    assert len(ran) == len(STAGES) + 3
    state = distill("tiny", str(done.root), return_state=True)
    assert state.name == "Promoted"
    assert done.ran() == ran
    assert done.champion() == 2


def test_a_recipe_with_faults_is_refused_whole_before_anything_runs(project: Project) -> None:
    project.change("cache_teacher", streams=[], codec="float8", surprise=1)
    state = distill("tiny", str(project.root), return_state=True)
    assert state.name == "Failed"
    for part in ("streams", "codec", "surprise: unknown field"):
        assert part in str(state.message)
    assert project.ran() == []
    assert not (project.root / "artifacts").exists()


def test_a_recipe_that_changes_between_stages_is_not_judged(done: Project) -> None:
    done.retrain("better")
    done.change("train_teacher", epochs=7)
    edit = """sed -i 's/"seed": 101/"seed": 4242/' params/tiny.yaml"""
    done.meanwhile("train_teacher", edit)
    state = distill("tiny", str(done.root), return_state=True)
    assert isinstance(error_of(state), ParamsError)
    assert state.message == (
        "the recipe changed while the flow ran: params/tiny.yaml. "
        "Found train_student.optimizer.seed changed from 101 to 4242. "
        "Nothing was judged or registered; what the stages made is kept. Run: stillhouse run tiny"
    )
    assert open_registry(done.root).resolve(f"models:/{MODEL}@candidate").version == 1
    ran = done.ran()
    assert ran[-1] == "evaluate_student"
    state = distill("tiny", str(done.root), return_state=True)
    assert (state.name, done.ran()) == ("Promoted", ran)
    registry = open_registry(done.root)
    champion = registry.resolve(f"models:/{MODEL}@champion")
    assert champion.version == 2
    run = registry.store.client.get_run(champion.run_id)
    assert run.data.params["train_student.optimizer.seed"] == "4242"


def test_what_changed_behind_a_finished_stage_is_not_judged(done: Project) -> None:
    done.change("evaluate_student", bootstrap_resamples=300)
    done.meanwhile("evaluate_student", "echo '# other' >> stage.py")
    state = distill("tiny", str(done.root), return_state=True)
    assert isinstance(error_of(state), StageError)
    assert str(state.message).startswith(
        "what stages read changed while the flow ran: "
        "fetch_sources@tiny, dependency stage.py changed; prepare_data@tiny, "
    )
    assert str(state.message).endswith("Run: stillhouse run tiny")
    assert open_registry(done.root).resolve(f"models:/{MODEL}@candidate").version == 1


def test_prefect_stores_no_result(first: tuple[Project, State[Any]]) -> None:
    assert first[1].is_completed()
    storage = Path(os.environ["PREFECT_HOME"]) / "storage"
    assert Path(PREFECT_HOME.value()) == storage.parent
    assert not storage.exists() or not list(storage.iterdir())
