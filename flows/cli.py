"""`stillhouse`: the commands. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flows.cache import cache
from flows.root import find_root
from tasks.kd.errors import KDError

if TYPE_CHECKING:
    from flows.job import Job, Outcome
    from tasks.kd.gate.decision import Decision

F = TypeVar("F", bound=Callable[..., Any])

EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
# Errors of the machine rather than of the program.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_MACHINE_FAULTS = {*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE}


class Commands(click.Group):
    """Commands whose expected errors end in one message and an exit code; a bug is a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KDError as error:
            from flows.runbook import find_anchor

            _tell(f"Error: {error}", find_anchor(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno not in _MACHINE_FAULTS:
                raise
            from flows.runbook import DISK_FULL

            message = f"Error: {error.strerror}: {error.filename or 'no file named'}."
            _tell(message, DISK_FULL if error.errno in _FULL else None)
            ctx.exit(1)


def _tell(message: str, anchor: str | None) -> None:
    """Print a message on standard error, and the runbook's place with more about it."""
    from flows.runbook import show_place

    click.echo(message, err=True)
    if anchor is not None:
        click.echo(f"More: {show_place(anchor)}", err=True)


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
reason = click.option("--reason", required=True, help="Why; kept with the version.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Distil a fine-tuned encoder into a small one: versioned, scheduled, gated.

    A recipe is given by name (quickstart) or path (params/quickstart.yaml), a model as
    models:/NAME@champion or models:/NAME/VERSION.

    Example:  stillhouse run quickstart
    """


main.add_command(cache)


def command(example: str) -> Callable[[F], click.Command]:
    """A sub-command of `stillhouse` whose help ends with the example."""
    return main.command(epilog=f"Example:  stillhouse {example}", no_args_is_help=False)


@command("new triage --train data/train.csv --test data/test.csv")
@click.argument("name")
@click.option("--from", "base", default="quickstart", show_default=True, help="Recipe to copy.")
@click.option("--preset", metavar="NAME", help="A method of params/presets, for example tinybert.")
@click.option("--train", help="Training file (csv, tsv, jsonl, parquet), folder or pattern.")
@click.option("--test", help="Test file, folder or pattern, of the same format.")
@click.option("--text-column", help="Column with the text.")
@click.option("--label-column", help="Column with the label.")
@click.option("--teacher", help="Model folder to start from, from the root.")
def new(name: str, base: str, preset: str | None, **sources: str | None) -> None:
    """Write a new recipe, complete and commented.

    It goes to params/NAME.yaml and into the list params/recipes.yaml. Without --preset, student,
    levels and random texts are those of the copied recipe.
    """
    from flows.new import Sources, create_recipe
    from tasks.kd.recipe.files import find_recipe

    root = find_root()
    origin = find_recipe(base, root)
    path, notes = create_recipe(root, name, base=origin, sources=Sources(**sources), preset=preset)
    for note in notes:
        click.echo(note)
    click.echo(f"{path.relative_to(root)} is valid. Read it through, then: stillhouse run {name}")


@command("check quickstart")
@click.argument("recipe", required=False)
@as_json
def check(recipe: str | None, *, as_json: bool) -> None:
    """Say all that is wrong with recipes.

    Checks RECIPE, or without it every recipe and their list.
    """
    from flows.check import check_recipes

    names = check_recipes(find_root(), recipe)
    if as_json:
        _print_json({"valid": names})
    else:
        click.echo(f"valid: {', '.join(names) or 'no recipe so far'}")


@command("upgrade quickstart")
@click.argument("recipe", required=False)
@click.option("--dry-run", is_flag=True, help="Say what would change, and write nothing.")
@as_json
def upgrade(recipe: str | None, *, dry_run: bool, as_json: bool) -> None:
    """Rewrite recipes of older forms.

    With RECIPE that one, else every recipe of params/. Comments and layout stay. New fields get the
    value that keeps what the recipe did. Says what it changed, and which stages run again for it. A
    recipe that a person must decide about stays as it is, and the exit code is 2.
    """
    from flows.check import all_of
    from flows.upgrade import upgrade_recipes

    changes, refused = upgrade_recipes(find_root(), recipe, dry_run=dry_run)
    if as_json:
        _print_json(
            {
                "recipes": [change.as_dict() for change in changes],
                "refused": list(map(str, refused)),
            }
        )
    else:
        for line in (line for change in changes for line in change.describe()):
            click.echo(line)
        if not (changes or refused):
            click.echo("no recipe so far")
    if refused:
        raise all_of(refused)


@command("plan quickstart")
@click.argument("recipe")
@as_json
def plan(recipe: str, *, as_json: bool) -> None:
    """Show which stages would run, and why."""
    from flows import show
    from flows.job import estimate_cache, read_job
    from tasks.versioning.asking import plan as plan_stages

    job = read_job(recipe)
    stages = plan_stages(job.root, job.name)
    is_prepared = not any(stage.name == "prepare_data" and stage.reasons for stage in stages)
    cache_bytes = estimate_cache(job) if is_prepared else None  # of data that will be others
    if as_json:
        listed = [{"stage": stage.name, "reasons": list(stage.reasons)} for stage in stages]
        _print_json({"recipe": job.name, "stages": listed, "cache_bytes": cache_bytes})
        return
    show.print_rows(f"Plan for {job.name}", show.plan_rows(stages))
    if cache_bytes is not None:
        click.echo(f"Teacher cache: about {show.size(cache_bytes)}")


@command("run quickstart")
@click.argument("recipe")
@click.option("--fail-on-refusal", is_flag=True, help=f"Exit {EXIT_REFUSED} if the gate refuses.")
@as_json
def run(recipe: str, *, fail_on_refusal: bool, as_json: bool) -> None:
    """Distil a recipe's student, register and gate it.

    Runs only the stages that are out of date; with nothing to do, ends in seconds. The student is
    promoted to champion if every rule of the gate passes. A refusal is a normal ending: the
    champion stays, and the exit code is 0.
    """
    from flows.job import find_settled, read_job

    job = read_job(recipe)
    settled = find_settled(job)
    if settled is None:
        from flows.start import run_flow

        signal.signal(signal.SIGTERM, _terminate)
        outcome = run_flow(job)
    else:
        from flows.start import push

        push(job)
        outcome = settled
    if as_json:
        _print_json({"idle": settled is not None, **job.summarise(outcome)})
    else:
        _print_outcome(job, outcome, idle=settled is not None)
    if fail_on_refusal and not (outcome.promoted or outcome.overridden):
        sys.exit(EXIT_REFUSED)


@command('schedule quickstart --cron "0 3 * * *"')
@click.argument("recipe")
@click.option("--cron", required=True, help="Minute, hour, day of month, month, day of week.")
@click.option("--timezone", default="UTC", show_default=True, help="Whose clock that is.")
@click.option("--update", "updates", is_flag=True, help="Each time, `dvc update` imports first.")
def schedule(recipe: str, *, cron: str, timezone: str, updates: bool) -> None:
    """Run a recipe at set times, until Ctrl-C.

    Uses the Prefect server of `stillhouse ui`, or of PREFECT_API_URL. A run that is due while the
    previous one still works is cancelled, not queued. For Mondays at half past four, with data that
    others change: --cron "30 4 * * 1" --timezone Europe/Berlin --update.
    """
    from flows.check import check_recipes
    from flows.job import read_job
    from flows.schedule import serve

    job = read_job(recipe)
    check_recipes(job.root, job.name)
    serve(job, cron=cron, timezone=timezone, updates=updates, say=click.echo)
    click.echo("Stopped.")


@command("status")
@as_json
def status(*, as_json: bool) -> None:
    """Show recipes, their stages and champions."""
    from flows import show
    from flows.status import read_status

    state = read_status(find_root())
    if as_json:
        _print_json(state)
        return
    show.print_rows("Recipes", show.status_rows(state["recipes"]))
    for recipe in state["recipes"]:
        if recipe["fault"] is not None:
            show.print_line(f"{recipe['recipe']}: {recipe['fault']}", "yellow")
    if state["registry_fault"] is not None:
        show.print_line(f"Models unknown: {state['registry_fault']}", "yellow")


@command("promote models:/triage/3 --reason 'reviewed by the team'")
@click.argument("model")
@reason
@click.option(
    "--override", "overrides", is_flag=True, help="Promote whatever the gate says; it is recorded."
)
@as_json
def promote(model: str, reason: str, *, overrides: bool, as_json: bool) -> None:
    """Put a version through its gate by hand.

    It becomes champion if every rule passes. Exit code 3 if the gate refuses. A new decision needs
    the version's own artifacts. With --override it becomes champion on your word; a former champion
    needs that to come back.
    """
    from dataclasses import asdict

    from flows.promotion import override
    from flows.promotion import promote as promote_version

    if overrides:
        champion = override(find_root(), model, reason)
        if as_json:
            _print_json({"champion": champion.uri, "overridden": True})
        else:
            click.echo(f"{champion.uri} is champion, the gate overridden")
        return
    version, decision = promote_version(find_root(), model, reason)
    if as_json:
        _print_json({"model": version.uri, "decision": asdict(decision)})
    else:
        _print_decision(version.uri, decision)
    if decision.verdict != "promote":
        sys.exit(EXIT_REFUSED)


@command("rollback triage --reason 'it mislabels invoices'")
@click.argument("model")
@reason
@as_json
def rollback(model: str, reason: str, *, as_json: bool) -> None:
    """Make the previous champion champion again.

    MODEL is a name, or models:/NAME@champion.
    """
    from flows.promotion import roll_back

    version = roll_back(find_root(), model, reason)
    if as_json:
        _print_json({"champion": version.uri})
    else:
        click.echo(f"{version.uri} is champion again")


@command("lineage models:/triage@champion")
@click.argument("model")
@as_json
def lineage(model: str, *, as_json: bool) -> None:
    """Show what a model was made from.

    Shows commit, data, teacher, cache, run and decision, and whether each can still be found here.
    A stage's outs are found if all their files are in the workspace or in DVC's cache, and current
    if dvc.lock names them.
    """
    from flows import show
    from flows.lineage import read_lineage

    origins = read_lineage(find_root(), model)
    if as_json:
        _print_json(origins)
    else:
        show.print_rows(model, show.value_rows(origins))


@command("doctor")
@as_json
def doctor(*, as_json: bool) -> None:
    """Look for what would stop a run here.

    Each fault comes with its mend. Exit code 1 if there is one.
    """
    from flows import show
    from flows.doctor import examine

    try:
        root: Path | None = find_root()
    except KDError:
        root = None
    findings = [finding.as_dict() for finding in examine(root)]
    if as_json:
        _print_json({"findings": findings})
    else:
        show.print_findings(findings)
    if any(finding["status"] == "fail" for finding in findings):
        sys.exit(1)


@command("ui --mlflow-port 5001")
@click.option("--prefect-port", default=4200, show_default=True, type=click.IntRange(1, 65535))
@click.option("--mlflow-port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(prefect_port: int, mlflow_port: int) -> None:
    """Serve the Prefect and MLflow pages.

    They answer on 127.0.0.1, until Ctrl-C.
    """
    from flows.ui import serve

    signal.signal(signal.SIGTERM, _terminate)
    try:
        serve(find_root(), prefect_port=prefect_port, mlflow_port=mlflow_port, say=click.echo)
    except KeyboardInterrupt:
        click.echo("Stopped.")


def _terminate(_: int, __: FrameType | None) -> None:
    """Unwind the stack on SIGTERM, so that started processes are stopped."""
    sys.exit(EXIT_TERMINATED)


def _print_outcome(job: Job, outcome: Outcome, *, idle: bool) -> None:
    from flows import show

    show.print_rows(f"{job.name}: teacher and student", show.result_rows(job.read_metrics()))
    show.print_rows("Stages run", show.seconds_rows(outcome.stage_seconds))
    _print_decision(outcome.version, outcome.decision, overridden=outcome.overridden)
    show.print_line(f"Report: {job.report}")
    if idle:
        show.print_line("Everything is up to date: nothing to do.")


def _print_decision(version: str, decision: Decision, *, overridden: bool = False) -> None:
    from flows import runbook, show

    promoted = decision.verdict == "promote"
    show.print_rows(f"Gate of {version}", show.decision_rows(decision))
    if promoted:
        show.print_line(f"{version}: champion.", "bold green")
    elif overridden:
        show.print_line(f"{version}: champion, the gate overridden by a person.", "bold yellow")
    else:
        show.print_line(f"{version}: REFUSED. The champion stays as it is.", "bold red")
        show.print_line(f"More: {runbook.show_place(runbook.GATE_REFUSED)}")


def _print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
