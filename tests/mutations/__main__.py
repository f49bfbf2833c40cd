"""Try odd teachers and tables: `python -m tests.mutations --count 1000 --seed 7`.

Each is a good teacher and a good table, changed in one place or two. Right is: the owner's figures,
or exit 2 with a message that names the place. The table of all goes to `results/`.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

import click

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
RESULTS = Path(__file__).with_name("results")


@click.command()
@click.option("--count", default=1000, show_default=True, help="How many cases.")
@click.option("--seed", default=7, show_default=True, help="Which cases.")
@click.option("--only", default="", help="Cases whose title matches this alone.")
@click.option("--case", "number", type=int, help="One case alone, by its number.")
@click.option("--keep", type=Path, help="Leave that case's folder here.")
@click.option("--write", is_flag=True, help="Write the table to results/.")
def main(
    count: int, seed: int, *, only: str, number: int | None, keep: Path | None, write: bool
) -> None:
    """Run cases, print a table by kind, and list the failures."""
    from tests.mutations.draw import draw
    from tests.mutations.report import describe, failures_of, quieten
    from tests.mutations.runs import Run, run_all

    quieten()
    drawn = [case for case in draw(count, seed) if re.search(only, case.title)]
    if number is not None:
        drawn = [case for case in drawn if case.number == number]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stillhouse-mutations-") as folder:
        runs: list[Run] = []
        for run in run_all(drawn, Path(folder), keep=keep):
            runs.append(run)
            if run.outcome.failed:
                print(failures_of([run]), flush=True)
    page = describe(runs, seed)
    print(page, f"{time.monotonic() - started:.0f} s", sep="\n")
    if write:
        (RESULTS / "mutations.md").write_text(page, encoding="utf-8")
    raise SystemExit(any(run.outcome.failed for run in runs))


if __name__ == "__main__":
    main()
