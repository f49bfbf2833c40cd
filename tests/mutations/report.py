"""The table of what came of all cases, and the list of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.mutations.runs import Run

COLUMNS = (
    *("right", "refused", "wrong figures", "accepted, though fatal", "refused, though harmless"),
    *("refused without its place", "traceback", "other"),
)


def describe(runs: Sequence[Run], seed: int) -> str:
    """Markdown: counts by kind."""
    head = f"| kind | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n"
    kinds = {run.drawn.kind: Counter[str]() for run in runs}
    for run in runs:
        kinds[run.drawn.kind][column_of(run)] += 1
    total = sum(kinds.values(), Counter[str]())
    lines = [_line(kind, counts) for kind, counts in sorted(kinds.items())]
    failed = sum(run.outcome.failed for run in runs)
    title = (
        f"# Odd teachers and tables\n\n{len(runs)} cases of seed {seed}; {failed} failures. "
        f"Written by `python -m tests.mutations --count {len(runs)} --seed {seed} --write`.\n\n"
    )
    return title + head + "".join(lines) + _line("all", total)


def _line(kind: str, counts: Counter[str]) -> str:
    return f"| {kind} | {' | '.join(str(counts[column] or '') for column in COLUMNS)} |\n"


def column_of(run: Run) -> str:
    return run.outcome.result if run.outcome.result in COLUMNS else "other"


def failures_of(runs: Sequence[Run]) -> str:
    """A paragraph per failure: how to make it again, and what was said."""
    return "\n".join(
        f"[{run.outcome.result}] case {run.drawn.number} ({run.expected.verdict}) at "
        f"{run.outcome.at}: {run.drawn.title}\n      {_last(run.outcome.said)}"
        for run in runs
        if run.outcome.failed
    )


def _last(said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return " ".join(lines[-1:])[:420]


def quieten() -> None:
    """No advice and no bars from transformers."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
