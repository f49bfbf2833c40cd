"""What a person sees while it runs: a bar with the time that is left, or lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_S = 20.0


class Watch:
    """The bar of one part. A part says how much there is to do, then calls `advance`."""

    def __init__(self, part: str, console: Console, progress: Progress) -> None:
        self._part, self._console, self._progress = part, console, progress
        self._task: TaskID = progress.add_task(part, total=None)
        self._done, self._total = 0, 0
        self._began = self._told = time.monotonic()

    def expect(self, count: int) -> None:
        """So many calls of `advance` more will come."""
        self._total += count
        self._progress.update(self._task, total=self._total)

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        self._progress.advance(self._task)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._told > _LINE_EVERY_S:
            self._told = now
            left = (now - self._began) / self._done * (self._total - self._done)
            self.say(f"{self._done} of {self._total}, about {left:.0f} s left")

    def say(self, message: str) -> None:
        """One line."""
        self._console.print(f"{self._part}: {message}", highlight=False)


@contextmanager
def watching(part: str, console: Console) -> Iterator[Watch]:
    """Show a part's bar while it runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Watch(part, console, progress)
