"""The order in which `make test` shares tests out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.isolation import ROOT
from tests.schedule import (
    TOGETHER,
    UNKNOWN_S,
    group_of,
    read_durations,
    sum_groups,
    write_durations,
)


def test_files_stand_alone_and_folders_with_a_costly_fixture_together() -> None:
    assert group_of("tests/kd/gate/test_decision.py") == "tests/kd/gate/test_decision.py"
    assert group_of("tests/stages/test_train_student.py") == "tests/stages"


def test_a_group_takes_what_its_files_take_and_an_unknown_file_is_taken_for_long() -> None:
    files = ["tests/stages/test_a.py", "tests/stages/test_b.py", "tests/test_c.py"]
    seconds = {"tests/stages/test_a.py": 5.0, "tests/test_c.py": 1.0}
    assert sum_groups(files, seconds) == {"tests/stages": 5.0 + UNKNOWN_S, "tests/test_c.py": 1.0}


def test_durations_come_from_a_report_of_the_suite(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.kd.test_a" name="x" time="1.26"/>'
        '<testcase classname="tests.kd.test_a" name="y" time="0.5"/></testsuite></testsuites>'
    )
    write_durations(report, tmp_path / "durations.json")
    assert read_durations(tmp_path / "durations.json") == {"tests/kd/test_a.py": 1.8}


@pytest.mark.parametrize("place", [*read_durations(), *TOGETHER])
def test_what_was_measured_is_there(place: str) -> None:
    assert (ROOT / place).exists(), "run make durations"
