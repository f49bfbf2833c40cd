"""The study: which levels pay, at equal steps. `python -m tests.study run`, then `report`.

Everything is found again where it was left: sources, teachers, teacher streams and runs are kept
in `.work/study`, each under a digest of what it was made of.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click

from tests.study import arms
from tests.study.settings import read_study

STUDY = read_study()
RESULTS = Path(__file__).with_name("results")
ALL_DATA, ALL_STUDENTS = tuple(STUDY.data), tuple(STUDY.students)


@click.group()
def main() -> None:
    """Find what of a teacher pays most: the same student, data and number of steps for all."""
    from transformers import logging

    signal.signal(signal.SIGTERM, _stop)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@main.command()
@click.option("--data", multiple=True, type=click.Choice(ALL_DATA), help="Default: all.")
@click.option("--student", multiple=True, type=click.Choice(ALL_STUDENTS), help="Default: all.")
@click.option("--arm", "named", multiple=True, help="An arm or a preset; default: all.")
@click.option("--seeds", default=3, show_default=True, help="From 0 on.")
@click.option("--jobs", default=2, show_default=True, help="Processes at a time.")
def run(
    data: tuple[str, ...],
    student: tuple[str, ...],
    named: tuple[str, ...],
    *,
    seeds: int,
    jobs: int,
) -> None:
    """Do the runs that have not been done."""
    from tests.study.launching import launch, program_of
    from tests.study.runs import Key, prepare
    from tests.study.selection import open_run

    keys = [
        Key(text, kind, arm, seed)
        for text in data or ALL_DATA
        for kind in student or ALL_STUDENTS
        for seed in range(seeds)
        for arm in named or arms.names()
    ]
    todo = []
    for key in keys:
        opened = open_run(STUDY, key, click.echo)
        try:
            is_there = opened.path.exists()
        except arms.DoesNotFitError as reason:
            click.echo(f"{key} is left out: {reason}")
            continue
        if not is_there:
            todo.append(opened)
    click.echo(f"{len(keys) - len(todo)} runs are there, {len(todo)} to do")
    prepare(todo)
    failed = launch({str(run.key): program_of(run.key) for run in todo}, jobs=jobs)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed, see above: {', '.join(failed)}")


@main.command()
@click.option("--data", required=True, type=click.Choice(ALL_DATA))
@click.option("--student", required=True, type=click.Choice(ALL_STUDENTS))
@click.option("--arm", "named", required=True)
@click.option("--seed", required=True, type=int)
def one(data: str, student: str, named: str, seed: int) -> None:
    """Do one run, in this process."""
    from tests.study.runs import Key, execute
    from tests.study.selection import open_run

    execute(open_run(STUDY, Key(data, student, named, seed), click.echo), click.echo)


@main.command()
@click.option("--seeds", default=3, show_default=True, help="A table needs all of them.")
def report(seeds: int) -> None:
    """Write tables and a picture of the runs that are there into results/."""
    from tests.study.report import write_report

    write_report(STUDY, RESULTS, seeds=seeds)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    main()
