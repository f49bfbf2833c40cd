"""A running stage's output: lines to the log, a live line on a terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from logging import Logger, LoggerAdapter

EVERY_S = 15.0
_CLEAR = "\r\x1b[2K"
_PERCENT = re.compile(r"(\d{1,3})%")


class Reporter:
    """A stage's output, passed on.

    Lines go to `logger`. A progress bar goes to a live line on a terminal and, at most every
    `EVERY_S` seconds, to `logger` and (as a percentage) to `mark`.
    """

    def __init__(
        self, logger: Logger | LoggerAdapter[Logger], mark: Callable[[float], None]
    ) -> None:
        self._logger = logger
        self._mark = mark
        self._live = sys.stderr.isatty()
        self._logged_at = time.monotonic()

    def line(self, text: str) -> None:
        """Log a whole line."""
        self.clear()
        self._logger.info("%s", text)

    def progress(self, text: str) -> None:
        """Show the present state of a progress bar, and log it at intervals."""
        if time.monotonic() - self._logged_at >= EVERY_S:
            self._logged_at = time.monotonic()
            self.line(text)
            if percent := _PERCENT.search(text):
                self._mark(float(percent[1]))
        if self._live:
            sys.stderr.write(_CLEAR + text)
            sys.stderr.flush()

    def clear(self) -> None:
        """Clear the live line."""
        if self._live:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
