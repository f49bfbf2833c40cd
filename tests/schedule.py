"""Which tests must run in one process, and which of these groups comes first.

`make test` shares the tests out over two processes (pytest-xdist, `--dist loadgroup`). Tests of one
file stay together, and so do the folders whose fixtures are costly and shared by several files. The
longest groups start first, by the seconds per file in durations.json, so that no process is left
with a long one at the end. `make durations` measures them anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.isolation import ROOT

DURATIONS = ROOT / "tests" / "durations.json"
# Folders with a fixture that all their files share, and that takes longer than most files.
TOGETHER = ("tests/stages",)
# A file that was not measured yet starts early.
UNKNOWN_S = 60.0


def order_groups(items: list[pytest.Item]) -> None:
    """Mark each test with its group, and sort the tests by the time of their groups."""
    seconds = read_durations()
    groups = {item: group_of(item.path.relative_to(ROOT).as_posix()) for item in items}
    files = {item.path.relative_to(ROOT).as_posix() for item in items}
    totals = sum_groups(files, seconds)
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (-totals[groups[item]], groups[item]))


def group_of(file: str) -> str:
    """The folder of `TOGETHER` that a test file is in, else the file."""
    return next((folder for folder in TOGETHER if file.startswith(f"{folder}/")), file)


def sum_groups(files: Iterable[str], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each group of test files."""
    totals: dict[str, float] = {}
    for file in files:
        group = group_of(file)
        totals[group] = totals.get(group, 0.0) + seconds.get(file, UNKNOWN_S)
    return totals


def read_durations(path: Path = DURATIONS) -> dict[str, float]:
    """Seconds by test file, as `make durations` wrote them."""
    measured: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return measured


def write_durations(junit: Path, path: Path = DURATIONS) -> None:
    """Seconds by test file out of a JUnit report of the whole suite."""
    from xml.etree import ElementTree

    seconds: dict[str, float] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        seconds[file] = seconds.get(file, 0.0) + float(case.attrib["time"])
    rounded = {file: round(total, 1) for file, total in sorted(seconds.items())}
    path.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import sys

    write_durations(Path(sys.argv[1]))
