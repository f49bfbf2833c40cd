"""The flow: one student, from its recipe to the gate.

DVC says which stages are out of date and why; each of those is one Prefect task here. Stages run
one at a time in the main thread, so that whatever ends the flow reaches the one that runs. No
result is stored: what is up to date is DVC's to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, flow, get_run_logger, runtime, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed

from flows.job import Job, Outcome, describe, read_job
from flows.progress import Reporter
from flows.show import decision_line, result_rows, seconds
from tasks.kd.documents.history import HISTORY
from tasks.kd.errors import KDError, ParamsError, RegistryError, StageError, TransientError
from tasks.kd.gate.decision import Decision
from tasks.registry import Produced, Version, open_registry
from tasks.versioning import asking, reasons, telling
from tasks.versioning.asking import PlannedStage

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS_S = (5.0, 20.0, 60.0)


@flow(name="distill", flow_run_name="{recipe}", persist_result=False)
def distill(recipe: str, root: str | None = None, updates: bool = False) -> State[Any]:
    """Bring a recipe's student up to date, register it, and promote it if the gate lets it.

    `root` is a text, as a deployment's parameters are JSON. With `updates`, data that DVC imports
    are first brought to what their sources hold now.

    Ends Completed as `Promoted` or `Refused`, with an `Outcome` as its data; or Failed, with the
    named error's own message and the error as its data.
    """
    try:
        job = read_job(recipe, Path(root) if root is not None else None)
        if updates:
            update(job)
        pull(job)
        require_model_name(job)
        stage_seconds = run_stages(job)
        require_settled(job)
        version, decision = judge(job)
        push(job)
    except KDError as error:
        return Failed(message=str(error), data=error)
    outcome = Outcome(job.name, version.uri, decision, stage_seconds)
    message = f"{version.uri}: {decision_line(outcome.decision)}"
    return Completed(name=outcome.ending, message=message, data=outcome)


def require_model_name(job: Job) -> None:
    """Raise ParamsError, before anything is trained, if the student can't be registered so.

    A registry that does not answer costs no training: it is asked again when there is a student.
    """
    try:
        open_registry(job.root).require_name(job.recipe.register_.model)
    except (RegistryError, TransientError) as error:
        get_run_logger().warning("the model's name was not looked up: %s", error)


def run_stages(job: Job) -> dict[str, float]:
    """Reproduce each stage that is out of date; returns the seconds that each took."""
    logger = get_run_logger()
    done: dict[str, State[float]] = {}
    for stage in asking.plan(job.root, job.name):
        if not stage.reasons:
            logger.info("%s is up to date", stage.target)
            continue
        upstream = [done[name] for name in stage.upstream if name in done]
        named = run_stage.with_options(name=stage.name, task_run_name=stage.target)
        done[stage.name] = named(stage, job, wait_for=upstream, return_state=True)
        done[stage.name].result()
    return {name: state.result() for name, state in done.items()}


def require_settled(job: Job) -> None:
    """Raise ParamsError if the recipe is no longer the job's, StageError if a stage is due again.

    Stages read the recipe's file when they begin, the run and the gate read the job: what is
    judged and recorded must be one and the same.
    """
    mend = f"stillhouse run {job.name}"
    advice = "Nothing was judged or registered; what the stages made is kept."
    now = read_job(job.name, job.root).recipe
    if now != job.recipe:
        old, new = (each.model_dump(mode="json", by_alias=True) for each in (job.recipe, now))
        raise ParamsError(
            "the recipe changed while the flow ran",
            where=f"params/{job.name}.yaml",
            found="; ".join(reasons.compare(old, new)),
            advice=advice,
            mend=mend,
        )
    due = [stage for stage in asking.plan(job.root, job.name) if stage.reasons]
    if due:
        raise StageError(
            "what stages read changed while the flow ran",
            where="; ".join(f"{stage.target}, {', '.join(stage.reasons)}" for stage in due),
            advice=advice,
            mend=mend,
        )


def judge(job: Job) -> tuple[Version, Decision]:
    """Track the artifacts, register the student as candidate, put it through the gate."""
    produced = describe(job, runtime.flow_run.id)
    run_id = track(produced)
    version = register(produced, run_id)
    decision = gate(produced, version)
    publish(job, decision)
    if decision.verdict == "promote":
        promote(job, version, decision)
    return version, decision


# --- tasks ----------------------------------------------------------------------------------------


def is_transient(_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Another try may help, and is due; Prefect asks this after each failure.

    It is due for as long as there is a delay for it. Were Prefect to count, it would print a
    traceback after the last try.
    """
    transient = isinstance(state.data, KDError) and state.data.transient
    return transient and run.run_count <= len(RETRY_DELAYS_S)


def step(body: Callable[P, R]) -> Task[P, R]:
    """A task that is tried again after a transient fault, and whose result is stored nowhere."""
    retried = task(
        task_run_name=body.__name__,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_DELAYS_S) + 1,
        retry_delay_seconds=list(RETRY_DELAYS_S),
        retry_condition_fn=is_transient,
    )
    return retried(body)


@step
def run_stage(stage: PlannedStage, job: Job) -> float:
    """One stage, as a supervised dvc process; returns the seconds that it took."""
    logger = get_run_logger()
    logger.info("runs, because: %s", "; ".join(stage.reasons))
    reporter = Reporter(logger, ProgressBar(stage.target).show)
    start = time.monotonic()
    try:
        with watched(job, stage.name):
            telling.reproduce(job.root, stage, on_line=reporter.line, on_progress=reporter.progress)
    finally:
        reporter.clear()
    took = time.monotonic() - start
    logger.info("took %s", seconds(took))
    return took


def watched(job: Job, stage: str) -> AbstractContextManager[None]:
    """Live curves of a training, if the recipe asks for them."""
    every_s = job.recipe.compute.live_curves_every_s
    if every_s is None or not stage.startswith("train_"):
        return nullcontext()
    return open_registry(job.root).follow(
        job.recipe.register_.experiment,
        f"{stage} {job.name}",
        newest_metrics(job.root, stage, job.name),
        every_s=every_s,
        say=get_run_logger().info,
    )


def newest_metrics(root: Path, stage: str, recipe: str) -> Callable[[], Path | None]:
    """What finds the figures of the training that runs from now on."""
    began = time.time() - 1  # a file system's clock may be behind

    def find() -> Path | None:
        found = [
            (path.stat().st_mtime, path)
            for path in (root / ".work").glob(f"{stage}-{recipe}-*/{HISTORY}")
        ]
        newest = max(found, default=(0.0, None))
        return newest[1] if newest[0] >= began else None

    return find


@step
def update(job: Job) -> None:
    """Bring what DVC imports to what its sources hold now."""
    _transfer(telling.update, job, "updated what is imported")


@step
def pull(job: Job) -> None:
    """Fetch what DVC tracks and this copy lacks, if a remote is configured."""
    _transfer(telling.pull, job, "pulled what was missing here")


@step
def push(job: Job) -> None:
    """Send the artifacts to the remote, if one is configured."""
    _transfer(telling.push, job, "pushed to the remote")


@step
def track(produced: Produced) -> str:
    """Write the MLflow run from the artifacts; returns its id."""
    return open_registry(produced.root).track(produced)


@step
def register(produced: Produced, run_id: str) -> Version:
    """Make the student a version of its model, and the candidate."""
    version = open_registry(produced.root).register(produced, run_id)
    get_run_logger().info("%s is registered", version.uri)
    return version


@step
def gate(produced: Produced, version: Version) -> Decision:
    """Decide on the candidate."""
    decision = open_registry(produced.root).gate(produced, version)
    get_run_logger().info("%s", decision_line(decision))
    return decision


@step
def promote(job: Job, version: Version, decision: Decision) -> None:
    """Make the candidate champion."""
    open_registry(job.root).promote(version, decision, f"recipe {job.name} passed its gate")


@step
def publish(job: Job, decision: Decision) -> None:
    """Leave the result table and the decision as Prefect artifacts."""
    key = job.name.replace("_", "-")
    create_table_artifact(result_rows(job.read_metrics()), key=f"result-{key}")
    create_markdown_artifact(decision.as_markdown(), key=f"decision-{key}")


class ProgressBar:
    """A stage's progress as a Prefect artifact, made when there is something to show."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._artifact: Any = None

    def show(self, percent: float) -> None:
        """Set the bar."""
        if self._artifact is None:
            key = "progress-" + self._target.replace("_", "-").replace("@", "-")
            self._artifact = create_progress_artifact(percent, key=key, description=self._target)
        else:
            update_progress_artifact(self._artifact, percent)


def _transfer(move: Callable[..., bool], job: Job, done: str) -> None:
    reporter = Reporter(get_run_logger(), lambda _: None)
    if move(job.root, job.name, on_line=reporter.line, on_progress=reporter.progress):
        get_run_logger().info("%s", done)
