"""Plans, stages, remotes and hashes, in a real git and DVC repository with tiny stages."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.kd.errors import (
    CacheStaleError,
    DataError,
    KDError,
    ParamsError,
    StageError,
    TransientError,
)
from tasks.versioning import versioning
from tasks.versioning.imports import is_vague
from tasks.versioning.versioning import (
    PlannedStage,
    find_outs,
    git_state,
    out_hashes,
    plan,
    pull,
    push,
    reproduce,
    update,
)

# DVC asks pygtrie for something that pygtrie wants to withdraw.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("fetch_sources", "prepare_data", "train_teacher", "train_student")

DVC_YAML = """
vars: [params/recipes.yaml]
stages:
  fetch_sources:
    foreach: ${recipes}
    do:
      cmd: python stage.py fetch_sources params/${key}.yaml
      deps: ["${item.train}", "${item.test}", "${item.teacher}", "${item.student}", stage.py]
      params: [{"params/${key}.yaml": [fetch_sources]}]
      outs: ["artifacts/${key}/fetch_sources"]
  prepare_data:
    foreach: ${recipes}
    do:
      cmd: python stage.py prepare_data params/${key}.yaml
      deps: ["artifacts/${key}/fetch_sources", stage.py]
      params: [{"params/${key}.yaml": [prepare_data]}]
      outs: ["artifacts/${key}/prepare_data"]
  train_teacher:
    foreach: ${recipes}
    do:
      cmd: python stage.py train_teacher params/${key}.yaml
      deps: ["artifacts/${key}/fetch_sources", "artifacts/${key}/prepare_data"]
      params: [{"params/${key}.yaml": [train_teacher]}]
      outs: ["artifacts/${key}/train_teacher"]
  train_student:
    foreach: ${recipes}
    do:
      cmd: python stage.py train_student params/${key}.yaml
      deps: ["artifacts/${key}/prepare_data", "artifacts/${key}/train_teacher", student.py]
      params: [{"params/${key}.yaml": [train_student]}]
      outs: ["artifacts/${key}/train_student"]
"""

# Writes one file; or does what the environment says of its stage, for the failure tests.
STAGE_PY = """
import json, os, pathlib, sys, time
name, recipe = sys.argv[1], pathlib.Path(sys.argv[2]).stem
fault = os.environ.get("FAULT", "")
print(f"{name} at work", flush=True)
sys.stderr.write("\\r 50%\\r100%\\n")
if fault == "named":
    record = pathlib.Path(f".work/errors/{recipe}.{name}.json")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(json.loads(os.environ["RECORD"])))
    sys.exit(1)
if fault == "crash":
    raise RuntimeError("a bug")
if fault == "killed":
    os.kill(os.getpid(), 9)
if fault == "hang":
    pathlib.Path("stage.pid").write_text(str(os.getpid()))
    time.sleep(600)
out = pathlib.Path("artifacts", recipe, name)
out.mkdir(parents=True)
section = pathlib.Path(sys.argv[2]).read_text().partition(name + ":")[2].partition("\\n\\n")[0]
(out / "made").write_text(name + section)
"""

RECIPE = """fetch_sources:
  version: 1

prepare_data:
  seed: 1

train_teacher:
  optimizer: {seed: 1, rate: 0.5}

train_student:
  phases: [{epochs: 1, levels: [a, b]}, {epochs: 2, levels: [a]}]
"""


def in_shell(folder: Path, *command: str) -> str:
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return in_shell(folder, sys.executable, "-m", "dvc", *arguments)


def write_recipes(folder: Path, **train: str) -> None:
    entries = [
        f"  {name}: {{train: {path}, test: params/remote, teacher: params/remote, "
        "student: params/remote, more_teachers: params/remote}\n"
        for name, path in train.items()
    ]
    (folder / "params" / "recipes.yaml").write_text("recipes:\n" + "".join(entries))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def ignore(_: str) -> None: ...


def run_plan(folder: Path, recipe: str = "tiny") -> list[str]:
    """Run what the plan says must run, in its order; the names."""
    stages = [stage for stage in plan(folder, recipe) if stage.reasons]
    for stage in stages:
        reproduce(folder, stage, on_line=ignore, on_progress=ignore)
    return [stage.name for stage in stages]


def build(folder: Path) -> None:
    """The same in one process of dvc's own, for tests of something else."""
    dvc(folder, "repro", "-q", "train_student@tiny")


def reasons(folder: Path, recipe: str = "tiny") -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.reasons for stage in plan(folder, recipe) if stage.reasons}


def first(folder: Path) -> PlannedStage:
    return first_of(folder, "tiny")


def first_of(folder: Path, recipe: str) -> PlannedStage:
    return plan(folder, recipe)[0]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fresh clone, and one where `tiny` has run."""
    folder = tmp_path_factory.mktemp("repository")
    in_shell(folder, "git", "init", "-q", "-b", "main")
    dvc(folder, "init", "-q")
    (folder / "params").mkdir()
    (folder / "params" / "remote").write_text("remote\n")
    for name in ("tiny", "other"):
        (folder / "params" / f"{name}.yaml").write_text(RECIPE)
    write_recipes(folder, tiny="params/remote", other="params/remote")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "stage.py").write_text(STAGE_PY)
    (folder / "student.py").write_text("depth = 3\n")
    (folder / ".gitignore").write_text("/artifacts/\n/.work/\n")
    in_shell(folder, "git", "add", "-A")
    in_shell(folder, "git", "commit", "-qm", "start")
    built = folder.with_name("built")
    shutil.copytree(folder, built, symlinks=True)
    build(built)
    return folder, built


@pytest.fixture
def fresh(templates: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(templates[0], tmp_path / "fresh", symlinks=True))


@pytest.fixture
def built(templates: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(templates[1], tmp_path / "built", symlinks=True))


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
        "import sys; from pathlib import Path; from tasks.versioning.versioning import plan\n"
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
    program = "import sys, tasks.versioning.versioning; sys.exit('dvc' in sys.modules)"
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


# --- reproduce ----------------------------------------------------------------------------------


def test_output_of_a_stage_streams_without_dvc_s_advice(fresh: Path) -> None:
    lines: list[str] = []
    progress: list[str] = []
    reproduce(fresh, first(fresh), on_line=lines.append, on_progress=progress.append)
    assert lines == [
        "Running stage 'fetch_sources@tiny':",
        "> python stage.py fetch_sources params/tiny.yaml",
        "fetch_sources at work",
        "100%",
    ]
    assert progress == [" 50%"]


def test_a_stage_runs_with_this_python_in_a_plain_shell(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("SHELL", "/no/such/shell")
    edit(fresh / "stage.py", "import json", "import sys; print(sys.executable)\nimport json")
    lines: list[str] = []
    reproduce(fresh, first(fresh), on_line=lines.append, on_progress=ignore)
    assert str(Path(sys.executable).parent / "python") in lines


@pytest.mark.parametrize(
    ("record", "kind", "transient"),
    [
        ({"type": "CacheStaleError", "message": "old", "transient": False}, CacheStaleError, False),
        ({"type": "TransientError", "message": "net", "transient": True}, TransientError, True),
        ({"type": "Unheard", "message": "what", "transient": True}, StageError, True),
    ],
)
def test_a_stage_s_own_error_is_raised_again(
    fresh: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: dict[str, object],
    kind: type[KDError],
    transient: bool,
) -> None:
    monkeypatch.setenv("FAULT", "named")
    monkeypatch.setenv("RECORD", json.dumps(record))
    with pytest.raises(KDError) as caught:
        reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)
    assert type(caught.value) is kind
    assert str(caught.value) == record["message"]
    assert caught.value.transient is transient


def test_without_a_record_the_last_lines_are_the_message_and_an_old_record_does_not_count(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fresh / ".work" / "errors" / "tiny.fetch_sources.json"
    old.parent.mkdir(parents=True)
    old.write_text('{"type": "CacheStaleError", "message": "of last week", "transient": false}')
    monkeypatch.setenv("FAULT", "crash")
    with pytest.raises(StageError, match=r"fetch_sources@tiny .*255(?s:.*)RuntimeError: a bug"):
        reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)


def test_a_stage_that_was_killed_says_what_may_have_killed_it(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "killed")
    with pytest.raises(StageError, match="out of memory"):
        reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)


def test_a_record_that_is_cut_short_is_no_record(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "crash")
    stage = first(fresh)

    def cut(_: str) -> None:
        record = fresh / ".work" / "errors" / "tiny.fetch_sources.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text('{"type": "Cache')

    with pytest.raises(StageError, match="named no error"):
        reproduce(fresh, stage, on_line=cut, on_progress=ignore)


def test_a_stage_ends_with_whoever_asked_for_it(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "hang")

    def stop(line: str) -> None:
        if line == "fetch_sources at work":
            while not (fresh / "stage.pid").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(fresh, first(fresh), on_line=stop, on_progress=ignore)
    with pytest.raises(ProcessLookupError):
        os.kill(int((fresh / "stage.pid").read_text()), 0)
    monkeypatch.delenv("FAULT")
    reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)
    assert first(fresh).reasons == (), "no lock is left behind"


# --- a disk that is full --------------------------------------------------------------------------


@pytest.fixture
def no_room(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The first stage makes a file that DVC can't write, as on a full disk, until there is room.

    The stage itself lifts the limit on the size of files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    lift = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({hard}, {hard}))\n"
    edit(fresh / "stage.py", "import json", f"{lift}import json")
    edit(
        fresh / "stage.py",
        '(out / "made")',
        '(out / "large").write_bytes(bytes(17 << 20))\n(out / "made")',
    )

    def make_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, hard))
    yield make_room
    make_room()


def test_an_out_that_dvc_could_not_store_is_said_and_can_be_stored_without_another_run(
    fresh: Path, no_room: Callable[[], None]
) -> None:
    lines: list[str] = []
    with pytest.raises(StageError) as caught:
        reproduce(fresh, first(fresh), on_line=lines.append, on_progress=ignore)
    said = "DVC could not store what a stage made: artifacts/tiny/fetch_sources. It is whole,"
    assert str(caught.value).startswith(said)
    assert "File too large" in str(caught.value)
    assert "fetch_sources at work" in lines
    assert first(fresh).reasons == ("output artifacts/tiny/fetch_sources is not in DVC's cache",)
    no_room()
    command = str(caught.value).partition("Run: dvc ")[2].split()
    dvc(fresh, *command)
    assert first(fresh).reasons == ()
    lines.clear()
    reproduce(fresh, first(fresh), on_line=lines.append, on_progress=ignore)
    assert "fetch_sources at work" not in lines


def test_a_dvc_that_ends_on_a_full_disk_says_what_may_be_kept(
    fresh: Path, no_room: Callable[[], None]
) -> None:
    stage = first(fresh)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    with pytest.raises(
        StageError, match=r"seems to be full(?s:.*)dvc commit -f fetch_sources@tiny"
    ):
        reproduce(fresh, stage, on_line=ignore, on_progress=ignore)


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


# --- sources that DVC tracks, and remotes -------------------------------------------------------


def set_remote(folder: Path, address: object) -> None:
    """Make an address the default remote."""
    (folder / ".dvc" / "config").write_text(
        f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {address}\n"
    )


@pytest.fixture(scope="module")
def pushed(templates: tuple[Path, Path]) -> Path:
    """The recipe reads a file inside a folder that `dvc add` tracks; all is made and pushed."""
    folder = templates[1].with_name("pushed")
    shutil.copytree(templates[1], folder, symlinks=True)
    mails = folder / "sources" / "mails"
    mails.mkdir(parents=True)
    (mails / "train.csv").write_text("text,label\nhello,0\n")
    dvc(folder, "add", "-q", "sources/mails")
    write_recipes(folder, tiny="sources/mails/train.csv", other="params/remote")
    assert reasons(folder)["fetch_sources"] == ("dependency sources/mails/train.csv is new",)
    set_remote(folder, folder.with_name("remote"))
    build(folder)
    assert push(folder, "tiny", on_line=ignore, on_progress=ignore) is True
    in_shell(folder, "git", "add", "-A")
    in_shell(folder, "git", "commit", "-qm", "ran")
    return folder


@pytest.fixture
def tracked(pushed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pushed, tmp_path / "tracked", symlinks=True))


def test_a_tracked_source_is_no_stage_of_the_plan(tracked: Path) -> None:
    assert [stage.name for stage in plan(tracked, "tiny")] == list(STAGES)
    assert first(tracked).upstream == ()
    assert reasons(tracked) == {}


def test_a_tracked_source_that_changes_is_seen(tracked: Path) -> None:
    mails = tracked / "sources" / "mails" / "train.csv"
    mails.chmod(0o644)
    mails.write_text("text,label\nbye,1\n")
    assert reasons(tracked)["fetch_sources"] == ("dependency sources/mails/train.csv changed",)


def test_a_tracked_source_that_is_not_here_says_dvc_pull(tracked: Path) -> None:
    shutil.rmtree(tracked / "sources" / "mails")
    stage = first(tracked)
    assert stage.missing == ("sources/mails/train.csv",)
    assert stage.reasons == (
        "sources/mails/train.csv is tracked by DVC and not here: run dvc pull",
    )
    with pytest.raises(DataError, match=r"Run: dvc pull sources/mails/train\.csv"):
        reproduce(tracked, stage, on_line=ignore, on_progress=ignore)


def test_a_source_that_is_nowhere_is_the_user_s_fault(fresh: Path) -> None:
    write_recipes(fresh, tiny="sources/absent.csv")
    stage = first(fresh)
    assert stage.reasons[0] == "dependency sources/absent.csv missing"
    with pytest.raises(DataError, match=r"is not here: sources/absent\.csv\.$"):
        reproduce(fresh, stage, on_line=ignore, on_progress=ignore)


def test_what_one_copy_pushed_another_pulls_and_then_runs_nothing(
    pushed: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    in_shell(tmp_path, "git", "clone", "-q", str(pushed), str(clone))
    assert "tracked by DVC" in reasons(clone)["fetch_sources"][0]
    assert pull(clone, "tiny", on_line=ignore, on_progress=ignore) is True
    assert reasons(clone) == {}
    assert pull(clone, "tiny", on_line=ignore, on_progress=ignore) is True


def test_a_pull_leaves_an_edited_source_alone(tracked: Path) -> None:
    mails = tracked / "sources" / "mails" / "train.csv"
    mails.chmod(0o644)
    mails.write_text("text,label\nmine,1\n")
    shutil.rmtree(tracked / "artifacts")
    pull(tracked, "tiny", on_line=ignore, on_progress=ignore)
    assert "mine" in mails.read_text()
    assert (tracked / "artifacts" / "tiny" / "train_student" / "made").exists()


def test_an_import_is_updated_to_what_its_source_holds_and_others_are_left(
    fresh: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source.csv"
    source.write_text("text,label\nhello,0\n")
    (fresh / "sources").mkdir(exist_ok=True)
    dvc(fresh, "import-url", "-q", str(source), "sources/imported.csv")
    write_recipes(fresh, tiny="sources/imported.csv")
    source.write_text("text,label\nbye,1\n")
    pull(fresh, "tiny", on_line=ignore, on_progress=ignore)
    assert "hello" in (fresh / "sources" / "imported.csv").read_text()
    assert update(fresh, "tiny", on_line=ignore, on_progress=ignore) is True
    assert "bye" in (fresh / "sources" / "imported.csv").read_text()
    source.unlink()
    with pytest.raises(TransientError, match="dvc update did not succeed"):
        update(fresh, "tiny", on_line=ignore, on_progress=ignore)


@pytest.mark.parametrize("place", ["data/train.csv", "data/2026/mails/train.csv"])
def test_the_project_s_own_gitignore_hides_nothing_from_dvc(
    fresh: Path, tmp_path: Path, place: str
) -> None:
    """README's example keeps its data in data/, where git must not take it and DVC must."""
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, fresh / name)
    train = fresh / place
    train.parent.mkdir(parents=True)
    train.write_text("text,label\nhello,0\n")
    write_recipes(fresh, tiny=place)
    assert place not in in_shell(fresh, "git", "status", "--porcelain", "--untracked-files=all")
    dvc(fresh, "add", "-q", place)
    set_remote(fresh, tmp_path / "remote")
    build(fresh)
    push(fresh, "tiny", on_line=ignore, on_progress=ignore)
    in_shell(fresh, "git", "add", "-A")
    in_shell(fresh, "git", "commit", "-qm", "ran")
    assert in_shell(fresh, "git", "ls-files", "data").split() == [f"{place}.dvc"]
    clone = tmp_path / "clone"
    in_shell(tmp_path, "git", "clone", "-q", str(fresh), str(clone))
    assert first(clone).tracked == (place,)
    assert pull(clone, "tiny", on_line=ignore, on_progress=ignore) is True
    assert (clone / place).read_text() == "text,label\nhello,0\n"
    assert reasons(clone) == {}


def test_an_import_into_data_is_seen_and_updated(fresh: Path, tmp_path: Path) -> None:
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, fresh / name)
    source = tmp_path / "source.csv"
    source.write_text("text,label\nhello,0\n")
    (fresh / "data" / "mails").mkdir(parents=True)
    dvc(fresh, "import-url", "-q", str(source), "data/mails/train.csv")
    write_recipes(fresh, tiny="data/mails/train.csv")
    source.write_text("text,label\nbye,1\n")
    assert update(fresh, "tiny", on_line=ignore, on_progress=ignore) is True
    assert "bye" in (fresh / "data" / "mails" / "train.csv").read_text()


class Source(ThreadingHTTPServer):
    """Serves `content` at any path, with or without length, ETag and date."""

    daemon_threads = True
    content = b""
    headers: Sequence[str] = ()

    def head(self) -> list[tuple[str, str]]:
        given = {
            "Content-Length": str(len(self.content)),
            "ETag": f'"{hashlib.sha256(self.content).hexdigest()}"',
            "Content-MD5": base64.b64encode(hashlib.md5(self.content).digest()).decode(),
            "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
        }
        return [(name, given[name]) for name in self.headers]


class Answer(BaseHTTPRequestHandler):
    server: Source

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in self.server.head():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with contextlib.suppress(ConnectionError):  # DVC asks for the headers alone so, too
            self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is for the test."""


@pytest.fixture
def source() -> Iterator[Source]:
    with Source(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def import_from(source: Source, folder: Path, content: bytes) -> Path:
    source.content = content
    (folder / "sources").mkdir(exist_ok=True)
    address = f"http://127.0.0.1:{source.server_address[1]}/train.csv"
    dvc(folder, "import-url", "-q", address, "sources/imported.csv")
    write_recipes(folder, tiny="sources/imported.csv")
    in_shell(folder, "git", "add", "-A")
    in_shell(folder, "git", "commit", "-qm", "imported")
    return folder / "sources" / "imported.csv"


HELLO, SAME_LENGTH, LONGER = (
    b"text,label\nhello,0\n",
    b"text,label\nthere,0\n",
    b"text,label\nx" * 9,
)


@pytest.mark.parametrize(
    ("headers", "fetched"),
    [
        ((), True),  # a stream that ends when it ends
        (("Content-Length",), True),
        (("Content-Length", "Last-Modified"), True),
        (("Content-Length", "ETag"), False),
        (("Content-Length", "Content-MD5"), False),
    ],
)
def test_what_an_http_source_holds_now_arrives_whatever_its_server_says_of_it(
    fresh: Path, source: Source, headers: Sequence[str], fetched: bool
) -> None:
    source.headers = headers
    imported = import_from(source, fresh, HELLO)
    lines: list[str] = []
    for content in (SAME_LENGTH, LONGER, HELLO):
        source.content = content
        assert update(fresh, "tiny", on_line=lines.append, on_progress=ignore) is True
        assert imported.read_bytes() == content
        md5 = hashlib.md5(content).hexdigest()
        assert md5 in imported.with_name("imported.csv.dvc").read_text()
    assert any("gives neither ETag nor Content-MD5" in line for line in lines) is fetched


def test_an_http_source_that_holds_the_same_leaves_everything_as_it_is(
    fresh: Path, source: Source
) -> None:
    imported = import_from(source, fresh, HELLO)
    noted = imported.with_name("imported.csv.dvc").read_bytes()
    build(fresh)
    in_shell(fresh, "git", "add", "-A")
    in_shell(fresh, "git", "commit", "-qm", "ran")
    assert update(fresh, "tiny", on_line=ignore, on_progress=ignore) is True
    assert imported.with_name("imported.csv.dvc").read_bytes() == noted
    assert reasons(fresh) == {}
    assert git_state(fresh)[1] is False


@pytest.mark.parametrize("headers", [(), ("Content-Length", "ETag")])
def test_a_source_that_is_down_costs_neither_the_data_nor_what_is_noted_of_it(
    fresh: Path, source: Source, headers: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.headers = headers
    imported = import_from(source, fresh, HELLO)
    noted = imported.with_name("imported.csv.dvc").read_bytes()
    monkeypatch.setattr(Answer, "do_HEAD", lambda self: self.send_error(404))
    monkeypatch.setattr(Answer, "do_GET", lambda self: self.send_error(404))
    with pytest.raises(TransientError, match="dvc update did not succeed"):
        update(fresh, "tiny", on_line=ignore, on_progress=ignore)
    assert imported.read_bytes() == HELLO
    assert imported.with_name("imported.csv.dvc").read_bytes() == noted


def test_a_number_says_nothing_of_content_and_an_etag_does() -> None:
    assert is_vague("http", "333625191094619788368699889237623263048")
    assert is_vague("https", "12")
    assert not is_vague("https", '"33"')
    assert not is_vague("https", 'W/"33"')
    assert not is_vague("http", "XrY7u+Ae7tCTyyK7j1rNww==")
    assert not is_vague("http", None)
    assert not is_vague("local", "1234")


def test_what_is_not_imported_is_not_updated(tracked: Path) -> None:
    assert update(tracked, "tiny", on_line=ignore, on_progress=ignore) is False


def test_without_a_remote_nothing_is_pulled_or_pushed(built: Path) -> None:
    assert pull(built, "tiny", on_line=ignore, on_progress=ignore) is False
    assert push(built, "tiny", on_line=ignore, on_progress=ignore) is False


def test_outs_that_the_remote_lacks_are_left_to_be_made(built: Path, tmp_path: Path) -> None:
    set_remote(built, tmp_path / "remote")
    shutil.rmtree(built / "artifacts")
    shutil.rmtree(built / ".dvc" / "cache")
    assert pull(built, "tiny", on_line=ignore, on_progress=ignore) is True
    assert list(reasons(built)) == list(STAGES)


def test_a_remote_that_this_installation_cannot_reach_is_the_user_s_to_mend(built: Path) -> None:
    set_remote(built, "oss://bucket/store")
    with pytest.raises(DataError, match="dvc can't use the remote as it is set up"):
        push(built, "tiny", on_line=ignore, on_progress=ignore)


def test_a_remote_that_does_not_answer_is_a_transient_error(built: Path) -> None:
    set_remote(built, "http://127.0.0.1:9/store")
    with pytest.raises(TransientError, match=r"dvc push did not succeed(?s:.*)ERROR: "):
        push(built, "tiny", on_line=ignore, on_progress=ignore)


def test_a_pull_that_fails_is_a_transient_error_with_dvc_s_words(
    built: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    set_remote(built, tmp_path / "file" / "store")
    shutil.rmtree(built / "artifacts")
    shutil.rmtree(built / ".dvc" / "cache")
    with pytest.raises(TransientError, match=r"dvc pull did not succeed(?s:.*)Not a directory"):
        pull(built, "tiny", on_line=ignore, on_progress=ignore)


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
    assert 0 < versioning.LOCK_WAIT_S <= 60
