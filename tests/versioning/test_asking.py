"""Plans and their reasons, names that must not reach a shell, locks, what a run records."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.kd.errors import (
    DataError,
    ParamsError,
    TransientError,
)
from tasks.versioning.asking import PlannedStage, find_outs, git_state, out_hashes, plan
from tasks.versioning.repository import LOCK_WAIT_S
from tasks.versioning.telling import pull, push, reproduce
from tests.makers.dvc_repository import (
    RECIPE,
    ROOT,
    STAGES,
    dvc,
    edit,
    first,
    first_of,
    ignore,
    in_shell,
    reasons,
    run_plan,
    write_recipes,
)

# DVC asks pygtrie for something that pygtrie wants to withdraw.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning")


# --- plan ---------------------------------------------------------------------------------------


def test_a_fresh_clone_runs_everything_in_order_and_then_nothing(fresh: Path) -> None:
    stages = plan(fresh, "tiny")
    assert [stage.name for stage in stages] == list(STAGES)
    assert [stage.upstream for stage in stages] == [
        (),
        ("fetch_sources",),
        ("fetch_sources", "prepare_data"),
        ("prepare_data", "train_teacher"),
    ]
    assert [stage.target for stage in stages] == [f"{name}@tiny" for name in STAGES]
    assert stages[0].reasons == ("never run: dvc.lock has no record of it",)
    assert stages[1].reasons[-1] == "upstream fetch_sources runs"
    assert run_plan(fresh) == list(STAGES)
    assert run_plan(fresh) == []
    assert len(plan(fresh, "tiny")) == len(STAGES)


def test_each_recipe_is_planned_alone(built: Path) -> None:
    assert reasons(built, "tiny") == {}
    assert list(reasons(built, "other")) == list(STAGES)


def test_a_recipe_may_read_what_a_stage_of_another_makes(built: Path) -> None:
    write_recipes(built, tiny="params/remote", other="artifacts/tiny/train_teacher")
    stages = plan(built, "other")
    assert stages[0].upstream == ()
    assert stages[0].missing == ()
    shutil.rmtree(built / "artifacts" / "tiny" / "train_teacher")
    (absent,) = plan(built, "other")[0].missing
    assert absent == "artifacts/tiny/train_teacher"
    with pytest.raises(DataError, match=r"reads what is not here: artifacts/tiny/train_teacher"):
        reproduce(built, first_of(built, "other"), on_line=ignore, on_progress=ignore)


def test_a_changed_section_reruns_its_stage_and_what_is_downstream_only(built: Path) -> None:
    edit(built / "params" / "tiny.yaml", "rate: 0.5", "rate: 0.25")
    assert reasons(built) == {
        "train_teacher": (
            "params/tiny.yaml: train_teacher.optimizer.rate changed from 0.5 to 0.25",
        ),
        "train_student": ("upstream train_teacher runs",),
    }
    before = out_hashes(built, "tiny")
    assert run_plan(built) == ["train_teacher", "train_student"]
    after = out_hashes(built, "tiny")
    assert [name for name in STAGES if before[name] != after[name]] == ["train_teacher"]
    assert run_plan(built) == []


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("epochs: 2", "epochs: 5", "phases.1.epochs changed from 2 to 5"),
        ("[a, b]", "[a, c]", 'phases.0.levels.1 changed from "b" to "c"'),
        ("[a, b]", "[a, b, c]", "phases.0.levels changed"),
        ("{epochs: 2, ", "{epochs: 2, name: x, ", "phases.1.name added"),
        ("epochs: 2, ", "", "phases.1.epochs removed"),
    ],
)
def test_a_changed_field_is_named(built: Path, old: str, new: str, change: str) -> None:
    edit(built / "params" / "tiny.yaml", old, new)
    assert reasons(built) == {"train_student": (f"params/tiny.yaml: train_student.{change}",)}


def test_changed_code_is_named(built: Path) -> None:
    (built / "student.py").write_text("depth = 6\n")
    assert reasons(built) == {"train_student": ("dependency student.py changed",)}
    (built / "student.py").unlink()
    assert reasons(built) == {"train_student": ("dependency student.py missing",)}


def test_a_changed_command_and_a_new_dependency_are_named(built: Path) -> None:
    edit(built / "dvc.yaml", "stage.py train_student", "./stage.py train_student")
    edit(built / "dvc.yaml", "student.py]", "student.py, params/remote]")
    assert reasons(built) == {
        "train_student": ("command changed", "dependency params/remote is new")
    }


def test_a_missing_or_edited_output_is_named_and_comes_from_dvc_s_cache(built: Path) -> None:
    out = built / "artifacts" / "tiny" / "train_student"
    (out / "made").chmod(0o644)
    (out / "made").write_text("by hand")
    assert reasons(built) == {"train_student": ("output artifacts/tiny/train_student changed",)}
    shutil.rmtree(out)
    [stage] = [stage for stage in plan(built, "tiny") if stage.reasons]
    assert stage.reasons == ("output artifacts/tiny/train_student missing",)
    lines: list[str] = []
    reproduce(built, stage, on_line=lines.append, on_progress=ignore)
    assert (out / "made").read_text().startswith("train_student")
    assert "train_student at work" not in lines


def test_a_missing_section_is_an_error_and_not_a_plan_without_it(built: Path) -> None:
    edit(built / "params" / "tiny.yaml", "train_student:", "train_students:")
    assert reasons(built) == {
        "train_student": ("params/tiny.yaml: train_student removed",),
    }


def test_a_plan_is_silent(built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(built / "params" / "tiny.yaml", "seed: 1", "seed: 2")
    assert reasons(built)
    assert capfd.readouterr() == ("", "")


def test_a_plan_leaves_standard_output_as_it_is(built: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tasks.versioning.asking import plan\n"
        "before = sys.stdout, sys.stderr\n"
        "plan(Path(sys.argv[1]), 'tiny')\n"
        "assert before == (sys.stdout, sys.stderr)\n"
        "print('\\x1b[31mred')\n"
    )
    answer = in_shell(ROOT, sys.executable, "-c", program, str(built))
    assert answer == "\x1b[31mred\n"


def test_a_plan_does_not_depend_on_the_current_folder(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (built / "student.py").write_text("depth = 6\n")
    here = reasons(built)
    monkeypatch.chdir(tmp_path)
    assert reasons(built) == here


def test_a_folder_without_dvc_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    write_recipes(tmp_path, tiny="params/remote")
    with pytest.raises(ParamsError, match="DVC can't read this repository"):
        plan(tmp_path, "tiny")


def test_a_dvc_yaml_that_is_not_valid_is_refused_in_a_sentence(built: Path) -> None:
    (built / "dvc.yaml").write_text("stages: [nonsense\n")
    with pytest.raises(ParamsError, match=r"DVC can't read .*dvc\.yaml', YAML file str"):
        plan(built, "tiny")


def test_importing_versioning_does_not_import_dvc() -> None:
    modules = "tasks.versioning.asking, tasks.versioning.telling"
    program = f"import sys, {modules}; sys.exit('dvc' in sys.modules)"
    in_shell(ROOT, sys.executable, "-c", program)


# --- names that must not reach a shell ----------------------------------------------------------


@pytest.mark.parametrize("name", ["a; touch X", "../evil", "$(touch X)", "A", "a\n", ""])
def test_a_recipe_key_that_is_no_name_is_refused_before_dvc_parses_it(
    fresh: Path, name: str
) -> None:
    recipes = fresh / "params" / "recipes.yaml"
    entry = dict.fromkeys(("train", "test", "teacher", "student", "more_teachers"), "params/remote")
    recipes.write_text(json.dumps({"recipes": {"tiny": entry, name: entry}}))
    (fresh / "dvc.yaml").write_text("DVC would stumble over this")
    tiny = PlannedStage("fetch_sources", "tiny", (), ("x",))
    for question in (
        lambda: plan(fresh, "tiny"),
        lambda: reproduce(fresh, tiny, on_line=ignore, on_progress=ignore),
        lambda: pull(fresh, "tiny", on_line=ignore, on_progress=ignore),
        lambda: push(fresh, "tiny", on_line=ignore, on_progress=ignore),
    ):
        with pytest.raises(ParamsError, match="can't be named"):
            question()
    assert not (fresh / "X").exists()


def test_without_the_guard_such_a_key_would_run(fresh: Path) -> None:
    write_recipes(fresh, **{'"a; touch X; echo "': "params/remote"})
    (fresh / "params" / "a; touch X; echo .yaml").write_text(RECIPE)
    target = "fetch_sources@a; touch X; echo "
    command = [sys.executable, "-m", "dvc", "repro", "-q", "-s", target]
    subprocess.run(command, cwd=fresh, check=False)
    assert (fresh / "X").exists()


@pytest.mark.parametrize("recipe", ["absent", "a; touch X"])
def test_a_recipe_that_is_not_listed_is_refused(fresh: Path, recipe: str) -> None:
    with pytest.raises(ParamsError, match=r"is not listed|can't be named"):
        plan(fresh, recipe)


def test_a_stage_that_is_no_name_is_refused(fresh: Path) -> None:
    with pytest.raises(ParamsError, match="no stage can be named"):
        reproduce(
            fresh, PlannedStage("--force", "tiny", (), ()), on_line=ignore, on_progress=ignore
        )


# --- locks --------------------------------------------------------------------------------------


def hold_lock(folder: Path) -> int:
    """As a dvc process that saves a large out does."""
    handle = os.open(folder / ".dvc" / "tmp" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def test_a_plan_waits_for_another_dvc_process(built: Path) -> None:
    handle = hold_lock(built)
    threading.Timer(4.0, os.close, [handle]).start()
    began = time.monotonic()
    assert len(plan(built, "tiny")) == len(STAGES)
    assert time.monotonic() - began > 3


def test_a_plan_waits_no_longer_than_it_is_told(built: Path) -> None:
    handle = hold_lock(built)
    with pytest.raises(TransientError, match="another dvc process is at work"):
        plan(built, "tiny", lock_wait_s=0.1)
    os.close(handle)
    assert plan(built, "tiny")


def test_a_plan_answers_while_a_stage_runs(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "hang")
    command = [sys.executable, "-m", "dvc", "repro", "-s", "fetch_sources@tiny"]
    with subprocess.Popen(command, cwd=fresh, stdout=subprocess.DEVNULL) as busy:
        try:
            while not (fresh / "stage.pid").exists():
                time.sleep(0.05)
            assert len(plan(fresh, "tiny", lock_wait_s=0)) == len(STAGES)
            with pytest.raises(TransientError, match="another dvc process holds"):
                reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)
        finally:
            os.kill(int((fresh / "stage.pid").read_text()), 9)
            busy.wait()


# --- what a run records -------------------------------------------------------------------------


def test_out_hashes_are_those_of_dvc_lock(built: Path, fresh: Path) -> None:
    hashes = out_hashes(built, "tiny")
    assert set(hashes) == set(STAGES)
    assert list(hashes["train_student"]) == ["artifacts/tiny/train_student"]
    for outs in hashes.values():
        for md5 in outs.values():
            assert re.fullmatch(r"[0-9a-f]{32}\.dir", md5)
    assert out_hashes(built, "other") == {}
    assert out_hashes(fresh, "tiny") == {}


def test_outs_are_found_while_workspace_or_cache_holds_all_of_their_files(built: Path) -> None:
    made = {stage: next(iter(outs.values())) for stage, outs in out_hashes(built, "tiny").items()}
    every = set(made.values())
    cache, artifacts = built / ".dvc" / "cache", built / "artifacts"
    assert find_outs(built, "tiny", [*every, "0" * 32, f"{'0' * 32}.dir"]) == every
    # only in the cache: from another recipe, after a retraining, without artifacts
    edit(built / "params" / "tiny.yaml", "epochs: 2", "epochs: 5")
    run_plan(built)
    assert made["train_student"] not in out_hashes(built, "tiny")["train_student"].values()
    shutil.rmtree(artifacts)
    assert find_outs(built, "tiny", every) == find_outs(built, "gone", every) == every
    # a folder without one of its files is not found
    listed = cache / "files" / "md5" / made["train_student"][:2] / made["train_student"][2:]
    (file,) = json.loads(listed.read_text())
    (cache / "files" / "md5" / file["md5"][:2] / file["md5"][2:]).unlink()
    assert find_outs(built, "tiny", every) == every - {made["train_student"]}
    # only in the workspace
    dvc(built, "checkout", "-q", "train_teacher@tiny")
    shutil.rmtree(cache)
    assert find_outs(built, "tiny", every) == {made["train_teacher"]}
    shutil.rmtree(artifacts)
    assert find_outs(built, "tiny", every) == set()


def test_git_state_tells_a_clean_tree_from_an_edited_one(fresh: Path) -> None:
    commit, dirty = git_state(fresh)
    assert commit == in_shell(fresh, "git", "rev-parse", "HEAD").strip()
    assert dirty is False
    reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)
    assert (fresh / "dvc.lock").exists()
    assert git_state(fresh) == (commit, False), "dvc.lock is what a run writes"
    (fresh / "new.py").write_text("")
    assert git_state(fresh) == (commit, True)
    (fresh / "new.py").unlink()
    (fresh / "student.py").write_text("")
    assert git_state(fresh) == (commit, True)


def test_git_state_without_a_commit_or_a_repository_is_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == (None, True)
    in_shell(tmp_path, "git", "init", "-q")
    assert git_state(tmp_path) == (None, True)
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == (None, True)


def test_lock_wait_has_a_bound() -> None:
    assert 0 < LOCK_WAIT_S <= 60
