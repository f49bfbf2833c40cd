"""From a command to a flow run: its server, its ending, its error."""

from __future__ import annotations

import click

from flows.job import Job, Outcome
from flows.servers import prefect_api


def run_flow(job: Job) -> Outcome:
    """Run the flow on a job and return how it ended.

    Raises the error that the flow ended with: a KDError, or what a bug raised.
    """
    from flows.distill import distill

    with prefect_api(job.root, say):
        state = distill(job.name, str(job.root), return_state=True)
    ending = state.result(raise_on_failure=False)
    if isinstance(ending, BaseException):
        raise ending
    if not isinstance(ending, Outcome):
        raise TypeError(f"the flow ended as {state.name}, without an outcome")
    return ending


def push(job: Job) -> None:
    """Send what an earlier run could not; nothing happens without a remote."""
    from tasks.versioning import telling

    telling.push(job.root, job.name, on_line=say, on_progress=lambda _: None)


def say(text: str) -> None:
    """A line for the person at the terminal; standard output is kept for results."""
    click.echo(text, err=True)
