"""The runbook and what links to it: every symptom has its heading, and every heading a symptom."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from docs.pages import list_anchors, slug
from flows import runbook
from flows.runbook import SYMPTOMS, find_anchor, show_place
from tasks.kd import errors
from tasks.kd.errors import (
    CacheCorruptError,
    CacheQuotaError,
    DataError,
    KDError,
    ParamsError,
    RegistryError,
    StageError,
    TransientError,
)

CHAPTER = "## When something is wrong\n"


def list_symptoms(page: str) -> list[str]:
    """The anchors of the headings of the chapter on what is wrong."""
    chapter = page.split(CHAPTER)[1].split("\n## ", maxsplit=1)[0]
    return [slug(heading) for heading in re.findall(r"^### (.+)$", chapter, re.MULTILINE)]


def list_constants() -> dict[str, str]:
    """The anchors that runbook.py gives names, for the command line and the doctor."""
    return {
        name: value
        for name, value in vars(runbook).items()
        if name.isupper() and isinstance(value, str)
    }


def find_faults(headings: Iterable[str], linked: Iterable[str]) -> list[str]:
    """Links without a heading, and headings without a link."""
    headings, linked = set(headings), set(linked)
    faults = [f"no heading: {anchor}" for anchor in sorted(linked - headings)]
    return faults + [f"no error or finding: {anchor}" for anchor in sorted(headings - linked)]


def read_sources(root: Path) -> str:
    """All code of flows and tasks, but the list of symptoms itself."""
    paths = [path for top in ("flows", "tasks") for path in sorted((root / top).rglob("*.py"))]
    return "\n".join(path.read_text("utf-8") for path in paths if path.name != "runbook.py")


def test_symptoms_and_headings_are_the_same() -> None:
    page = runbook.PAGE.read_text(encoding="utf-8")
    headings = list_symptoms(page)
    assert len(headings) > 20
    assert len(set(list_anchors(page))) == len(list_anchors(page))
    linked = [*(symptom.anchor for symptom in SYMPTOMS), *list_constants().values()]
    assert find_faults(headings, linked) == []


def test_a_lost_heading_and_one_that_nothing_links_to_are_found() -> None:
    page = f"# Runbook\n\n### Before\n\n{CHAPTER}\n### A port is in use\n\n### New\n\n## After\n"
    assert list_symptoms(page) == ["a-port-is-in-use", "new"]
    assert find_faults(["new", "a"], ["a", "old"]) == [
        "no heading: old",
        "no error or finding: new",
    ]


def test_a_symptoms_words_stand_in_a_message(root: Path) -> None:
    sources = read_sources(root)
    words = [words.strip() for symptom in SYMPTOMS for words in symptom.words]
    assert len(words) > 30
    assert [each for each in words if each not in sources] == []


def test_an_anchor_with_a_name_is_used(root: Path) -> None:
    sources = read_sources(root)
    assert [name for name in list_constants() if name not in sources] == []


def test_every_kind_of_error_but_two_has_a_symptom() -> None:
    """A recipe's or a command's fault may be told whole by its message; the root is for both."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    without = {kind.__name__ for kind in kinds if find_anchor(kind("a fault")) is None}
    assert without == {"KDError", "ParamsError"}


@pytest.mark.parametrize(
    ("error", "anchor"),
    [
        (ParamsError("--cron can't be read"), None),
        (ParamsError("x.yaml can't be run:\nx.yaml:3: gate.min_lead"), "a-recipe-cant-be-run"),
        (RegistryError("git can't be run"), runbook.MLFLOW_REFUSED),
        (ParamsError("port 4200 is in use"), runbook.PORT_IN_USE),
        (DataError("a Git LFS pointer in the place of the file"), "a-models-folder-is-refused"),
        (DataError("no column 'body'"), "a-source-is-refused"),
        (
            CacheCorruptError("a tokenizer's file"),
            "the-teacher-cache-is-damaged-stale-or-not-there",
        ),
        (CacheQuotaError("would pass its quota"), "the-teacher-caches-take-the-room"),
        (CacheQuotaError("the disk is too full for the teacher cache"), runbook.DISK_FULL),
        (
            StageError("train.py changed while the stage ran"),
            "something-changed-while-the-stage-ran",
        ),
        (TransientError("MLflow does not answer"), runbook.MLFLOW_REFUSED),
        (TransientError("dvc push did not succeed"), "dvcs-remote-does-not-answer"),
        (KDError("Prefect ended by itself"), runbook.PREFECT_DOES_NOT_START),
    ],
)
def test_an_error_finds_the_heading_that_is_narrowest(error: KDError, anchor: str | None) -> None:
    assert find_anchor(error) == anchor


def test_the_place_is_shown_from_here_or_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert show_place("a-port-is-in-use") == "flows/RUNBOOK.md#a-port-is-in-use"
    monkeypatch.chdir(tmp_path)
    assert show_place("a") == f"{root}/flows/RUNBOOK.md#a"
