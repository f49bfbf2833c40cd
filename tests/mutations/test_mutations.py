"""Odd teachers and tables are read as by their owners or refused; the harness sees faults."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.mutations.cases import Case, Expected, Mutation, either, fatal, harmless
from tests.mutations.draw import Drawn, draw
from tests.mutations.forms import measure
from tests.mutations.projects import Material, make_material
from tests.mutations.report import describe, failures_of
from tests.mutations.runs import import_all, run
from tests.mutations.ways import ways

COUNT, SEED = 130, 11
FAMILIES = ("bert", "roberta", "xlm-roberta")
FORMS = (
    "deberta-v2: spm.model alone",
    "bert: a byte-level tokenizer.json",
    "roberta: truncation_side left",
    "roberta: vocab.txt and bpe.codes (BERTweet)",
)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    import_all()
    return make_material(tmp_path_factory.mktemp("good"))


# --- the product ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_odd_teachers_and_tables_are_read_as_their_owners_do_or_refused(
    material: Material, tmp_path: Path
) -> None:
    runs = [run(drawn, material, tmp_path) for drawn in draw(COUNT, SEED)]
    assert not any(one.outcome.failed for one in runs), failures_of(runs)
    results = [one.outcome.result for one in runs]
    assert min(results.count("right"), results.count("refused")) > COUNT // 4


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("title", FORMS)
def test_a_teacher_of_an_odd_form_is_measured_as_by_its_owner(title: str, tmp_path: Path) -> None:
    import_all()
    (way,) = (way for way in ways() if way.title == title)
    found = measure(way, tmp_path)
    assert found.right, found.line()
    assert (found.code == 2) == way.slow


# --- the drawing ---------------------------------------------------------------------------------


def test_a_seed_gives_the_same_cases_all_different() -> None:
    titles = [case.title for case in draw(1000, 7)]
    assert titles == [case.title for case in draw(1000, 7)]
    assert len(set(titles)) == 1000
    assert titles[:50] != [case.title for case in draw(50, 8)]
    assert len({case.kind for case in draw(1000, 7)}) > 55


# --- the harness sees what is wrong --------------------------------------------------------------


def outcome_of(
    material: Material, folder: Path, apply: Callable[[Case], Expected], family: str = "bert"
) -> tuple[str, str]:
    """What becomes of one mutation: the result, and what was said."""
    mutation = Mutation("kind", "name", apply)
    ended = run(Drawn(0, 1, family, "csv", (mutation,)), material, folder).outcome
    return ended.result, ended.said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_good_teacher_is_right_and_may_not_be_called_fatal(
    family: str, material: Material, tmp_path: Path
) -> None:
    assert outcome_of(material, tmp_path, lambda case: harmless(), family)[0] == "right"
    fatally = outcome_of(material, tmp_path, lambda case: fatal(), family)
    assert fatally[0] == "accepted, though fatal"


def lower_cased(case: Case) -> Expected:
    """The teacher's own words are then others."""
    case.change_json("tokenizer.json", normalizer=None)
    case.change_json("tokenizer_config.json", do_lower_case=False)
    return either()


def test_tokens_that_are_not_the_owners_are_seen(material: Material, tmp_path: Path) -> None:
    result, said = outcome_of(material, tmp_path, lower_cased)
    assert (result, "have other tokens" in said) == ("wrong figures", True), said


def test_an_accuracy_that_is_not_the_owners_is_seen(material: Material, tmp_path: Path) -> None:
    worse = replace(material, models={"bert": spoilt(material.models["bert"])})
    result, said = outcome_of(worse, tmp_path, lambda case: harmless())
    assert (result, "dev accuracy" in said) == ("wrong figures", True), said


def spoilt(model: Any) -> Any:
    """The model with answers moved on by one."""
    import copy

    other = copy.deepcopy(model)
    other.classifier.weight.data = other.classifier.weight.data.roll(1, 0)
    other.classifier.bias.data = other.classifier.bias.data.roll(1, 0)
    return other


def test_rows_and_labels_that_are_not_the_owners_are_seen(
    material: Material, tmp_path: Path
) -> None:
    fewer = replace(material.table.train, texts=material.table.train.texts[:-1])
    fewer = replace(fewer, labels=fewer.labels[:-1])
    table = replace(material.table, train=fewer)
    result, said = outcome_of(material, tmp_path, lambda case: harmless(table=table))
    assert (result, "rows that should not be there" in said) == ("wrong figures", True)
    names = ("login", "billing", "delivery")
    result, said = outcome_of(material, tmp_path, lambda case: harmless(names=names))
    assert (result, said.startswith("labels [")) == ("wrong figures", True)


def test_a_refusal_must_be_called_for_and_name_its_place(
    material: Material, tmp_path: Path
) -> None:
    def without(expected: Expected) -> Callable[[Case], Expected]:
        def apply(case: Case) -> Expected:
            (case.teacher / "config.json").unlink()
            return expected

        return apply

    def result(expected: Expected) -> str:
        return outcome_of(material, tmp_path, without(expected))[0]

    assert result(fatal(r"config\.json")) == "refused"
    assert result(fatal("the moon")) == "refused without its place"
    assert result(harmless()) == "refused, though harmless"


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        (ZeroDivisionError("a bug"), "traceback"),
        (OSError("no such thing"), "exit 1"),
        (SystemExit(7), "exit 7"),
        (KeyboardInterrupt(), "traceback"),
    ],
)
def test_a_stage_that_breaks_is_seen(
    fault: BaseException,
    result: str,
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main(stage: Any) -> None:
        raise fault

    monkeypatch.setattr(sys.modules["tasks.stages.prepare_data"], "main", main)
    assert outcome_of(material, tmp_path, lambda case: either())[0] == result


def test_a_stage_that_hangs_or_dies_is_seen(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import time

    stage = sys.modules["tasks.stages.prepare_data"]
    monkeypatch.setattr("tests.mutations.harness.LIMIT_S", 1)
    monkeypatch.setattr(stage, "main", lambda _: time.sleep(30))
    assert outcome_of(material, tmp_path, lambda case: either()) == ("no answer", "a hang of 1 s")
    monkeypatch.setattr(stage, "main", lambda _: os._exit(9))
    result, said = outcome_of(material, tmp_path, lambda case: either())
    assert (result, said.startswith("the process ended")) == ("no answer", True)


def test_the_table_counts_each_result_by_kind_and_failures_tell_how_to_come_back(
    material: Material, tmp_path: Path
) -> None:
    good, bad = (Mutation("kind", name, apply) for name, apply in (("a", harm), ("b", kill)))
    runs = [
        run(Drawn(i, 5, "bert", "csv", (mutation,)), material, tmp_path)
        for i, mutation in enumerate((good, bad))
    ]
    assert "| kind | 1 |  |  | 1 |" in describe(runs, 5)
    assert "2 cases of seed 5; 1 failures" in describe(runs, 5)
    told = failures_of(runs)
    assert told.startswith("[accepted, though fatal] case 1 (fatal) at done: bert, csv: kind: b")
    assert json.dumps(told)


def harm(case: Case) -> Expected:
    return harmless()


def kill(case: Case) -> Expected:
    return fatal()
