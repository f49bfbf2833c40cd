"""The study: which levels pay, at equal steps. `python -m study run`, then `report`.

Everything is found again where it was left: sources, teachers, teacher streams and runs are kept
in `.work/study`, each under a digest of what it was made of. What runs came to is kept in the
repository as well, so that another checkout goes on from there.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

import click

from study import arms
from study.kept import RESULTS, kept_file, restore
from study.settings import FOLDER, read_study

if TYPE_CHECKING:
    from study.runs import Run

STUDY = read_study()
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
    """Do the runs that have not been done: the first seed at each rate, then all at the best.

    An arm that is bracketed has them also at the second best, where that is close on dev. What was
    done elsewhere is not done again; where its teacher can't be had again to the bit, the rest is
    done with one of this machine. Predictions alone are always done, to compare with.
    """
    from study.launching import one_at_a_time
    from study.selection import at_each_rate, contenders, to_do
    from study.teachers import teacher_here

    _restore()
    asked: list[tuple[str, str, str]] = []
    here = {}
    with one_at_a_time(FOLDER, click.echo):
        for text in data or ALL_DATA:
            for kind in student or ALL_STUDENTS:
                fitting = [arm for arm in named or arms.names() if _fits(text, kind, arm)]
                lacking = to_do(STUDY, text, kind, fitting, seeds)
                click.echo(f"{text}, {kind}: to do {', '.join(lacking) or 'nothing'}")
                asked += [(text, kind, arm) for arm in lacking]
        for text in dict.fromkeys(text for text, _, _ in asked):
            here[text] = teacher_here(STUDY, text, click.echo)
    if not asked:
        return
    while True:
        tried = [at_each_rate(STUDY, here[text], kind, arm) for text, kind, arm in asked]
        if not _do([one for runs in tried for one in runs], jobs):
            break
    _do([one for each in tried for runs in contenders(each, seeds) for one in runs], jobs)


def _fits(data: str, student: str, arm: str) -> bool:
    """Whether an arm has room in a student's epochs; says so where it has not."""
    epochs = STUDY.students[student].epochs[data]
    try:
        arms.fitted(arms.read_arm(arm), epochs, 1.0)
    except arms.DoesNotFitError as reason:
        click.echo(f"{arm} is left out for {student} on {data}: {reason}")
        return False
    return True


def _do(runs: Sequence[Run], jobs: int) -> int:
    """Execute what is not there, each run in a process of its own; how many that were."""
    from study.launching import launch, program_of
    from study.runs import prepare

    todo = [one for one in runs if not one.path.exists()]
    click.echo(f"{len(runs) - len(todo)} runs are there, {len(todo)} to do")
    prepare(todo)
    failed = launch({str(one.key): program_of(one.key) for one in todo}, jobs=jobs)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed, see above: {', '.join(failed)}")
    return len(todo)


@main.command()
@click.option("--data", required=True, type=click.Choice(ALL_DATA))
@click.option("--student", required=True, type=click.Choice(ALL_STUDENTS))
@click.option("--arm", "named", required=True)
@click.option("--seed", required=True, type=int)
@click.option("--rate", required=True, type=float, help="The highest of its phases.")
def one(data: str, student: str, named: str, seed: int, rate: float) -> None:
    """Do one run, in this process."""
    from study.launching import one_at_a_time
    from study.runs import Key, execute
    from study.selection import open_run
    from study.teachers import teacher_here

    with one_at_a_time(FOLDER, click.echo):
        teacher = teacher_here(STUDY, data, click.echo)
    execute(open_run(STUDY, Key(data, student, named, seed, rate), teacher), click.echo)


@main.command()
@click.option("--seeds", default=3, show_default=True, help="A table needs all of them.")
def report(seeds: int) -> None:
    """Write tables and a picture of the runs that are there into results/."""
    from study.report import write_report

    _restore()
    write_report(STUDY, RESULTS, seeds=seeds)


def _restore() -> None:
    """Take over the outcomes that the repository holds and this folder lacks."""
    for data in ALL_DATA:
        if count := restore(kept_file(data), FOLDER):
            click.echo(f"{data}: {count} outcomes taken over from {kept_file(data).name}")


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    main()
