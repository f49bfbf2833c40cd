"""`stillhouse schedule`, for real: a server, a served deployment, runs that the API asks for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import schedule, servers
from flows.cli import main
from flows.job import read_job
from flows.schedule import read_times
from flows.servers import standing_prefect_api
from tasks.kd.digests import read_json, write_json
from tasks.kd.errors import ParamsError, TransientError
from tasks.registry.produced import STAGES
from tests.flows.conftest import IGNORED, Project
from tests.flows.test_endings import list_processes, wait_for_stage

pytestmark = pytest.mark.filterwarnings(IGNORED)

NIGHTLY = ("schedule", "tiny", "--cron", "0 3 * * *")
NAME = "distill/tiny"


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """The Prefect server of `stillhouse ui`, with a home of its own, which plans runs."""
    home = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch, servers.stopping([]) as running:
        patch.setenv("PREFECT_HOME", str(home))
        running.append(servers.start_prefect(home, servers.free_port(), schedules=True))
        servers.await_servers(running)
        patch.undo()  # it is this server's home alone
        yield running[0]


@contextmanager
def scheduled(
    project: Project, server: servers.Server, before: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """`stillhouse schedule` at work, its server ours as well; what is left of it is killed."""
    with temporary_settings(updates={PREFECT_API_URL: f"{server.address}/api"}):
        yield from _schedule(project, server, before)


def _schedule(
    project: Project, server: servers.Server, before: str
) -> Iterator[subprocess.Popen[str]]:
    url = f"{server.address}/api"
    settings = {"PREFECT_API_URL": url, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    process = project.start(*NIGHTLY, before=before, **settings)
    try:
        assert process.stdout is not None
        said: list[str] = []
        while not said or not said[-1].startswith("Ctrl-C"):
            said.append(process.stdout.readline())
            assert said[-1], process.communicate()
        assert said[0] == f"Scheduled: tiny, at 0 3 * * * (UTC), on {url}\n"
        assert said[1] == f"  {read_times('0 3 * * *', 'UTC')[0]:%a %Y-%m-%d %H:%M %Z}\n"
        wait_until("nothing is served", lambda: planned() != [])
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(said: str, holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def read_deployment() -> DeploymentResponse | None:
    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(NAME)
        except ObjectNotFound:
            return None


def planned() -> list[datetime]:
    """The times of the runs that the server has planned."""
    found = read_deployment()
    if found is None or found.paused:
        return []
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[found.id]))
        )
    return sorted(
        run.expected_start_time
        for run in runs
        if run.state is not None and run.state.is_scheduled() and run.expected_start_time
    )


def trigger() -> FlowRun:
    found = read_deployment()
    assert found is not None
    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(found.id)


def ending(run: FlowRun) -> tuple[str | None, str | None]:
    """Name and message of the state that a run ends in."""
    found = run

    def ended() -> bool:
        nonlocal found
        with get_client(sync_client=True) as client:
            found = client.read_flow_run(run.id)
        return found.state is not None and found.state.is_final()

    wait_until("the run never ended", ended, 90)
    assert found.state is not None
    return found.state.name, found.state.message


# --- for real -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_schedule_is_planned_and_its_run_makes_a_champion(
    project: Project, ui: servers.Server
) -> None:
    with scheduled(project, ui) as process:
        assert planned()[:3] == read_times("0 3 * * *", "UTC")
        assert ending(trigger())[0] == "Promoted"
        assert (project.ran(), project.champion()) == (list(STAGES), 1)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "Stopped.\n"), errors
        assert "Traceback" not in errors
        assert planned() == []
    assert list_processes(project.root) == {}


@pytest.mark.slow
def test_of_two_runs_the_later_is_cancelled_and_a_termination_ends_all(
    project: Project, ui: servers.Server
) -> None:
    project.fail("fetch_sources", "hang")
    with scheduled(project, ui) as process:
        first = trigger()
        wait_for_stage(project)
        assert ending(trigger()) == ("Cancelled", "Deployment concurrency limit reached.")
        # Who holds the slot is on disk: it is freed again even if the server ends first.
        homes = ui.log.parents[2]
        assert len(list(homes.glob("concurrency_leases/????????-*.json"))) == 1
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "Stopped.\n"), errors
        wait_until("something lives on", lambda: not list_processes(project.root), 15)
        assert ending(first) == ("Cancelled", "Runner is shutting down.")
        assert project.ran() == ["fetch_sources"]
    with scheduled(project, ui) as process:  # its slot is free again, it is no longer paused
        assert ending(trigger())[0] == "Promoted"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at once", "after a run", "during a run"])
def test_when_its_server_ends_a_schedule_says_so(
    project: Project, tmp_path: Path, moment: str
) -> None:
    soon = "from flows import schedule; schedule.SILENT_S, schedule._ASK_S = 5.0, 2.0"
    with pytest.MonkeyPatch.context() as patch, servers.stopping([]) as running:
        patch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
        running.append(servers.start_prefect(tmp_path, servers.free_port(), schedules=True))
        servers.await_servers(running)
        with scheduled(project, running[0], soon) as process:
            if moment == "after a run":
                assert ending(trigger())[0] == "Promoted"
            elif moment == "during a run":
                project.fail("fetch_sources", "hang")
                trigger()
                wait_for_stage(project)
            servers.stop_server(running[0])
            _, errors = process.communicate(timeout=100)
            wait_until("something lives on", lambda: not list_processes(project.root), 15)
    assert process.returncode == 1
    assert "Error: the Prefect server does not answer any more: http" in errors


@pytest.mark.slow
def test_a_server_that_plans_nothing_is_found_out(
    project: Project, prefect_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that lives for a single run has no scheduler."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(schedule, "PLANNED_WITHIN_S", 1.0)
    with temporary_settings(updates={PREFECT_API_URL: prefect_url}):
        result = CliRunner().invoke(main, NIGHTLY)
    assert result.exit_code == 1, result.output
    assert f"the Prefect server plans no runs: {prefect_url}" in result.stderr
    with temporary_settings(updates={PREFECT_API_URL: prefect_url}):
        found = read_deployment()
    assert found is not None
    assert found.paused


# --- refused before anything starts ---------------------------------------------------------------


@pytest.fixture
def ask(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `stillhouse schedule` where no server is: what is wrong must be found before."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(servers, "UI_PORT", servers.free_port())

    def run(*arguments: str) -> Result:
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            return CliRunner().invoke(main, ["schedule", *arguments])

    return run


@pytest.mark.parametrize(
    ("cron", "timezone", "said"),
    [
        ("61 3 * * *", "UTC", "--cron can't be read. Expected five fields, minute, hour, day of"),
        ("0 3 * *", "UTC", "--cron can't be read. Expected five fields"),
        ("0 3 * * * *", "UTC", "--cron can't be read. Expected five fields"),
        ("h 3 * * *", "UTC", "--cron can't be read. Expected five fields"),
        ("nightly", "UTC", "found 'nightly'"),
        ("0 0 30 2 *", "UTC", "--cron never comes"),
        ("0 3 * * *", "Mars/Olympus", "--timezone is not known. Expected a name such as"),
    ],
)
def test_times_that_never_come_are_refused(
    ask: Callable[..., Result], cron: str, timezone: str, said: str
) -> None:
    result = ask("tiny", "--cron", cron, "--timezone", timezone)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_a_recipe_that_is_unknown_or_faulty_is_refused(
    project: Project, ask: Callable[..., Result]
) -> None:
    result = ask("nope", "--cron", "0 3 * * *")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no recipe 'nope'. Expected one of tiny" in result.stderr
    write_json(project.recipe, {**read_json(project.recipe), "extra": 1})
    result = ask("tiny", "--cron", "0 3 * * *")
    assert (result.exit_code, "unknown field" in result.stderr) == (2, True)


def test_without_a_server_the_command_that_starts_one_is_named(ask: Callable[..., Result]) -> None:
    result = ask("tiny", "--cron", "0 3 * * *")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no Prefect server that could keep a schedule: http://127.0.0.1:" in result.stderr
    assert "Run: stillhouse ui" in result.stderr


def test_the_server_of_ui_is_found_without_being_named(
    prefect_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(prefect_url.removesuffix("/api").rpartition(":")[2])
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        monkeypatch.setattr(servers, "UI_PORT", servers.free_port())
        with pytest.raises(TransientError), standing_prefect_api():
            pytest.fail("there is no server")
        monkeypatch.setattr(servers, "UI_PORT", port)
        with standing_prefect_api() as address:
            assert address == prefect_url == PREFECT_API_URL.value()


def test_times_follow_the_clock_of_their_zone() -> None:
    berlin = read_times("0 3 * * *", "Europe/Berlin", 400)
    assert {moment.hour for moment in berlin} == {3}
    assert len({moment.utcoffset() for moment in berlin}) == 2


def test_one_process_serves_a_schedule_and_one_checkout_a_name(
    project: Project, prefect_url: str, tmp_path: Path
) -> None:
    job = read_job("tiny", project.root)
    with (
        schedule._alone(job),
        pytest.raises(ParamsError, match="another process serves"),
        schedule._alone(job),
    ):
        pytest.fail("it is taken")
    with schedule._alone(job):  # and free again
        schedule._check_name_is_free(job)
    from prefect.runner import Runner

    from flows.distill import distill

    assert prefect_url
    parameters = {"recipe": "tiny", "root": str(tmp_path / "elsewhere")}
    Runner(name="tiny").add_flow(distill, parameters=parameters, paused=False)
    with pytest.raises(ParamsError, match=f"that of {tmp_path / 'elsewhere'}"):
        schedule._check_name_is_free(job)
    Runner(name="tiny").add_flow(distill, parameters=parameters, paused=True)
    schedule._check_name_is_free(job)
