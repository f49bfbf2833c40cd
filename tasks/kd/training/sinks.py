"""Where a training's figures go while it runs: a file, a progress bar. The loop knows neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tasks.kd.digests import write_bytes
from tasks.kd.documents.history import (
    DevRecord,
    NoticeRecord,
    Record,
    RefusedRecord,
    TrainRecord,
    format_record,
    parse_record,
)


class Sink(Protocol):
    """Takes the records of a training: updates, refused ones, evaluations on dev and notices."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """No more will come."""
        ...


class JsonLines:
    """Appends records to a `.jsonl` file, flushed one by one."""

    def __init__(self, path: Path, *, resume_at: int) -> None:
        """Records of steps after `resume_at`, left by a killed run, are dropped."""
        kept = [line for line in _lines(path) if parse_record(line, path).step <= resume_at]
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """One line."""
        self._file.write(format_record(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Bar:
    """Shows records on a progress bar that counts steps and knows when the last will be done."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._accuracy, self._shown = bar, "", ""

    def write(self, record: Record) -> None:
        """Epoch, loss, tokens per second, share of time spent waiting, the last dev accuracy."""
        if isinstance(record, DevRecord):
            self._accuracy = f" dev {100 * record.accuracy:.1f} %"
        if isinstance(record, DevRecord | NoticeRecord):
            return
        if isinstance(record, TrainRecord):
            self._shown = f"loss {record.loss:.4f}"
        self._bar.set_postfix_str(
            f"{record.phase} epoch {record.epoch:.1f} {self._shown} "
            f"{record.tokens_per_s:.0f} tok/s waiting {100 * record.waiting:.0f} %"
            f"{self._accuracy}",
            refresh=False,
        )
        self._bar.update(1)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


class Messages:
    """Passes on what a record says in words: a refused update, memory that did not suffice."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def write(self, record: Record) -> None:
        """Say the record's message, if it has one."""
        if isinstance(record, RefusedRecord | NoticeRecord):
            self._say(f"step {record.step}: {record.message}")

    def close(self) -> None:
        """Nothing to close."""


def _lines(path: Path) -> list[str]:
    """Whole lines of a file; a last one that was cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
