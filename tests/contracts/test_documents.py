"""Documents between stages are opened in one room: nobody else says the name of their files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.decision import GateRecord
from tasks.kd.documents.document import Document
from tasks.kd.documents.evaluation import Metrics
from tasks.kd.documents.exported import Contract, ExportReport
from tasks.kd.documents.history import HISTORY
from tasks.kd.documents.predictions import PREDICTIONS
from tasks.kd.documents.sources import Sources
from tasks.kd.documents.training import StudentReport, TeacherReport

KINDS: tuple[type[Document], ...] = (
    Sources,
    DataCard,
    TeacherReport,
    StudentReport,
    Contract,
    ExportReport,
    Metrics,
    GateRecord,
)
FILES = {HISTORY, PREDICTIONS, *(kind.FILE for kind in KINDS)}
ROOM = "tasks/kd/documents/"


def find_names(source: str) -> list[tuple[int, str]]:
    """Line and text of each string of a program that names a document's file; prose is not one."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return sorted(
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in prose
        and any(name in node.value.split("/")[-1].split() for name in FILES)
    )


def list_programs(root: Path) -> Iterator[tuple[str, str]]:
    for folder in ("tasks", "flows"):
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith(ROOM):
                yield name, path.read_text(encoding="utf-8")


def test_no_other_module_names_a_document_s_file(root: Path) -> None:
    found = [
        f"{name}:{line}: {text!r}"
        for name, source in list_programs(root)
        for line, text in find_names(source)
    ]
    assert found == []


def test_a_module_that_opens_one_by_itself_is_found() -> None:
    source = '''
"""What metrics.json holds."""
card = read_json(folder / "data_card.json")
path = f"{root}/evaluate_student/metrics.json"
say("report.json is not there", "report.jsonl", "my_report.json")
'''
    assert find_names(source) == [
        (3, "data_card.json"),
        (4, "/evaluate_student/metrics.json"),
        (5, "report.json is not there"),
    ]


def test_each_kind_of_document_is_checked() -> None:
    kinds, todo = set(), [Document]
    while todo:
        found = todo.pop().__subclasses__()
        kinds |= set(found)
        todo += found
    assert {kind.__name__ for kind in kinds} - {kind.__name__ for kind in KINDS} == {
        "DecisionRecord"  # a tag of a version, and what `GateRecord` begins with
    }
