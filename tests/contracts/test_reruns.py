"""Which edit reruns which stages: the table of docs/reruns.md, held against DVC itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.versioning.asking import plan

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning")
ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| [^|]+ \| `(?P<file>[^`|]+)` \| (?P<stages>[^|]+) \|$", re.MULTILINE)


def read_table() -> dict[str, set[str]]:
    """File to edit -> the stages that it reruns, as the page says."""
    page = (ROOT / "docs" / "reruns.md").read_text(encoding="utf-8")
    return {
        row["file"]: set() if row["stages"] == "nothing" else set(row["stages"].split(", "))
        for row in ROW.finditer(page)
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of our code, all stages up to date for DVC; their outs are stand-ins."""
    root = tmp_path_factory.mktemp("reruns") / "repository"
    for folder in ("flows", "tasks", "params", ".dvc"):
        shutil.copytree(
            ROOT / folder,
            root / folder,
            ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
            if folder == ".dvc"
            else shutil.ignore_patterns("__pycache__"),
        )
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    (root / "params" / "recipes.yaml").write_text(
        "recipes:\n  quickstart: {train: params/remote, test: params/remote, "
        "teacher: params/remote, student: params/remote, more_teachers: params/remote}\n"
    )
    shutil.rmtree(root / "params" / "figures")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    for stage in plan(root, "quickstart"):
        out = root / "artifacts" / "quickstart" / stage.name
        out.mkdir(parents=True)
        (out / "made.txt").write_text(stage.name)
    subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], cwd=root, check=True
    )
    assert find_due(root) == {}
    return root


def find_due(root: Path) -> dict[str, tuple[str, ...]]:
    """Stages that have a reason of their own to run."""
    own = {
        stage.name: tuple(r for r in stage.reasons if not r.startswith("upstream "))
        for stage in plan(root, "quickstart")
    }
    return {name: reasons for name, reasons in own.items() if reasons}


@pytest.mark.parametrize(("file", "stages"), read_table().items())
def test_an_edit_reruns_what_the_page_says(recorded: Path, file: str, stages: set[str]) -> None:
    path = recorded / file
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    try:
        assert set(find_due(recorded)) == stages
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "name",
    ["__pycache__/new.cpython-311.pyc", "README.md", ".loop.py.swp", ".ipynb_checkpoints/x.py"],
)
def test_what_is_no_code_reruns_nothing(recorded: Path, name: str) -> None:
    """In a folder that stages depend on, at its top and below."""
    for room in ("tasks/kd/training", "tasks/kd/levels/losses"):
        path = recorded / room / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("new")
        assert find_due(recorded) == {}
        path.unlink()


def test_a_new_module_in_a_room_reruns_the_stages_that_depend_on_it(recorded: Path) -> None:
    path = recorded / "tasks" / "kd" / "levels" / "new.py"
    path.write_text("")
    try:
        assert find_due(recorded) == {"train_student": ("dependency tasks/kd/levels changed",)}
    finally:
        path.unlink()


def test_no_costly_stage_reruns_for_losses_levels_evaluation_or_report() -> None:
    stages = {
        file: stages
        for file, stages in read_table().items()
        if re.match(r"tasks/kd/(levels|evaluation|recipe/levels)", file)
    }
    assert len(stages) >= 4
    for rerun in stages.values():
        assert not rerun & {"fetch_sources", "prepare_data", "train_teacher"}
