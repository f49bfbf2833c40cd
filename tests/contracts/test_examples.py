"""The examples in docstrings say what the functions do."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest

FEWEST = 12  # so that a search that finds nothing does not pass


def find_modules(root: Path) -> list[str]:
    """Names of the modules of tasks.kd whose source holds an example; nothing is imported."""
    files = sorted((root / "tasks" / "kd").rglob("*.py"))
    return [
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for file in files
        if ">>> " in file.read_text(encoding="utf-8")
    ]


def list_examples(module: ModuleType) -> list[doctest.DocTest]:
    """The docstrings of a module that hold examples."""
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


def run_example(test: doctest.DocTest) -> str:
    """What doctest says of a docstring's failed examples; empty if all hold."""
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return "".join(said)


MODULES = find_modules(Path(__file__).parents[2])


@pytest.mark.parametrize("name", MODULES)
def test_every_example_of_a_module_holds(name: str) -> None:
    tests = list_examples(importlib.import_module(name))
    assert tests, f"doctest finds no example in {name}, whose source holds one"
    assert "".join(map(run_example, tests)) == ""


def test_there_are_examples() -> None:
    assert len(MODULES) >= FEWEST


def test_a_wrong_example_is_found() -> None:
    module = ModuleType("module")
    source = (
        'def double(n):\n    """Twice n.\n\n    >>> double(2)\n    %d\n    """\n    return 2 * n\n'
    )
    for claimed, is_wrong in ((4, False), (5, True)):
        exec(source % claimed, vars(module))
        vars(module)["double"].__module__ = module.__name__
        (test,) = list_examples(module)
        assert ("Expected:" in run_example(test)) == is_wrong


def test_an_example_is_searched_for_without_an_import(tmp_path: Path) -> None:
    folder = tmp_path / "tasks" / "kd" / "room"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text('"""A room.\n\n>>> 1\n1\n"""\nraise SystemExit\n')
    (folder / "plain.py").write_text('"""No example: a >> b."""\n')
    assert find_modules(tmp_path) == ["tasks.kd.room"]
