"""`stillhouse schedule`: runs of a recipe at set times, while the command lives.

Prefect does the work: its server plans the runs, and its runner starts each one as a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, cast

from flows.job import Job
from flows.servers import answers, standing_prefect_api
from tasks.kd.errors import KDError, ParamsError, TransientError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.runner import Runner

PLANNED_WITHIN_S = 60.0
SILENT_S = 60.0
_WATCH_S = 2.0
_END_S = 15.0
_ASK_S = 10.0  # Prefect's client keeps asking a server that is gone
_SHOWN = 3
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")


def read_times(cron: str, timezone: str, count: int = _SHOWN) -> list[datetime]:
    """The next times of a cron expression, computed by Prefect's scheduler.

    Raises ParamsError for a time zone or expression that can't be read, and for one that never
    comes, such as the 30th of February.
    """
    from prefect.server.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    expected = f"five fields, {', '.join(_FIELDS)}, for example '0 3 * * *'"
    if len(cron.split()) != len(_FIELDS):
        raise ParamsError("--cron can't be read", expected=expected, found=repr(cron))
    try:
        CronSchedule(cron="0 0 * * *", timezone=timezone)
    except ValidationError:
        raise ParamsError(
            "--timezone is not known",
            expected="a name such as UTC or Europe/Berlin",
            found=repr(timezone),
        ) from None
    try:
        return list(asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(count)))
    except ValidationError:
        raise ParamsError("--cron can't be read", expected=expected, found=repr(cron)) from None
    except ValueError:  # well-formed, but no day fits
        raise ParamsError(
            "--cron never comes", expected="days that there are", found=repr(cron)
        ) from None


def serve(job: Job, *, cron: str, timezone: str, updates: bool, say: Callable[[str], None]) -> None:
    """Announce the next runs and run them when due, until interrupted.

    A run that is due while the previous one still works is cancelled, not queued. Raises
    ParamsError for times that can't be read and for a schedule that is served already, and
    TransientError without a server.
    """
    times = read_times(cron, timezone)
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.runner import Runner
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from flows.distill import distill

    with standing_prefect_api() as address, _alone(job):
        _check_name_is_free(job)
        # The deployment's limit cancels a second run; the runner's own would queue it.
        runner = Runner(name=job.name, limit=None, pause_on_shutdown=True)
        added = runner.add_flow(
            distill,
            schedule=Cron(cron, timezone=timezone),
            paused=False,
            parameters={"recipe": job.name, "root": str(job.root), "updates": updates},
            concurrency_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
            ),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        say(f"Scheduled: {job.name}, at {cron} ({timezone}), on {address}")
        for moment in times:
            say(f"  {moment:%a %Y-%m-%d %H:%M %Z}")
        say("Ctrl-C ends the schedule, and a run that is at work.")
        asyncio.run(_serve(runner, cast("UUID", added), address))


async def _serve(runner: Runner, deployment: UUID, address: str) -> None:
    """Run what is due until SIGINT or SIGTERM, then end a running run.

    Our signal handlers replace the runner's, whose handler of SIGTERM blocks the loop that it
    waits for.
    """
    interrupted = asyncio.Event()
    serving = asyncio.create_task(runner.start())
    ending = asyncio.create_task(interrupted.wait())
    watching = asyncio.create_task(_watch_server(deployment, address))
    await asyncio.sleep(0)  # lets the runner set its handler first
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    await asyncio.wait({serving, ending, watching}, return_when=asyncio.FIRST_COMPLETED)
    fault = watching.exception() if watching.done() else None
    ending.cancel()
    watching.cancel()
    within_s = None
    if not await asyncio.to_thread(answers, f"{address}/health"):
        # The runner would keep asking the server for minutes; its processes end in seconds.
        runner.pause_on_shutdown, within_s = False, _END_S
    if runner.started:
        stopping = asyncio.create_task(runner.astop())
        await asyncio.wait({stopping}, timeout=within_s)
        stopping.cancel()
    else:
        serving.cancel()
    await asyncio.wait({serving}, timeout=within_s)
    serving.cancel()
    if not isinstance(fault, KDError) and not answers(f"{address}/health"):
        fault = _silence(address)  # the runner met and reported it first
    if fault is not None:
        raise fault
    if serving.done() and not serving.cancelled():
        serving.result()


async def _watch_server(deployment: UUID, address: str) -> None:
    """Never return; raise KDError for a server that plans no run or stops answering.

    Without its server the runner would wait for ever and miss later cancellations.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    async with get_client() as client:
        answered = began = time.monotonic()
        planned = False
        while time.monotonic() < answered + SILENT_S:
            with contextlib.suppress(TimeoutError, HTTPError):
                async with asyncio.timeout(_ASK_S):
                    runs = await client.read_flow_runs(deployment_filter=chosen, limit=1)
                answered, planned = time.monotonic(), planned or bool(runs)
            if not planned and time.monotonic() > began + PLANNED_WITHIN_S:
                raise KDError(
                    "the Prefect server plans no runs",
                    where=address,
                    expected=f"the first within {PLANNED_WITHIN_S:.0f} s",
                    advice="Its log says why; one that was started with --no-scheduler can't.",
                    mend="stillhouse ui",
                )
            await asyncio.sleep(_WATCH_S)
    raise _silence(address)


def _silence(address: str) -> TransientError:
    return TransientError(
        "the Prefect server does not answer any more",
        where=address,
        advice="It keeps the schedule, which goes on when both are started again.",
        mend="stillhouse ui",
    )


@contextlib.contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Hold the lock of this checkout's schedule of the recipe; a dead process frees it."""
    path = job.root / ".work" / "schedules" / f"{job.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ParamsError(
                f"another process serves the schedule of {job.name}",
                where=path,
                expected="one at a time; end the other first",
            ) from None
        yield


def _check_name_is_free(job: Job) -> None:
    """Raise ParamsError if another checkout serves a schedule of this name on the server.

    Ours would replace it.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"distill/{job.name}")
        except ObjectNotFound:
            return
    root = deployment.parameters.get("root")
    if root != str(job.root) and not deployment.paused:
        raise ParamsError(
            f"the server has a schedule of that name: distill/{job.name}",
            expected=f"that of {job.root}",
            found=f"that of {root}",
            advice="End that one; if it is gone for good:",
            mend=f"prefect deployment delete distill/{job.name}",
        )
