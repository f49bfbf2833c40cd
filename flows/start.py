"""A flow run started by a command: its server, its outcome, its error."""

from __future__ import annotations

import click

from flows.job import Job, Outcome
from flows.servers import prefect_api


def run_flow(job: Job) -> Outcome:
    """Run the flow on a job and return its outcome.

    Raises the error that the flow ended with: a KDError, or a bug's error.
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
    """Push artifacts that an earlier run could not push; nothing happens without a remote."""
    from tasks.versioning import telling

    telling.push(job.root, job.name, on_line=say, on_progress=lambda _: None)


def say(text: str) -> None:
    """Print a line on standard error, since standard output is kept for results."""
    click.echo(text, err=True)
