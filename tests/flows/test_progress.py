"""What a stage says: lines and bars, on a terminal and without one."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from flows.progress import Reporter


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("flows.progress.time.monotonic", lambda: now[0])
    return now


def test_the_log_gets_every_line_and_a_bar_now_and_then(
    clock: list[float], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    marks: list[float] = []
    reporter = Reporter(logging.getLogger("stage"), marks.append)
    reporter.line("100% of it, {braces} and %s")
    for second in range(0, 41, 5):
        clock[0] = float(second)
        reporter.progress(f"{second}%|###  | {second}/100")
    said = [entry.message for entry in caplog.records]
    assert said == ["100% of it, {braces} and %s", "15%|###  | 15/100", "30%|###  | 30/100"]
    assert marks == [15.0, 30.0]
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_the_bar_at_once_and_a_line_takes_its_place(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    reporter = Reporter(logging.getLogger("stage"), lambda _: None)
    reporter.progress("10%")
    reporter.progress("20%")
    reporter.line("epoch 1 done")
    assert clock == [0.0]
    assert terminal.getvalue() == "\r\x1b[2K10%\r\x1b[2K20%\r\x1b[2K"


def test_a_bar_without_a_percentage_marks_nothing(clock: list[float]) -> None:
    marks: list[float] = []
    reporter = Reporter(logging.getLogger("stage"), marks.append)
    clock[0] = 100.0
    reporter.progress("12 tokens")
    assert marks == []
