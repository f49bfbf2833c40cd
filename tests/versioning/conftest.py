"""Repositories as they stand before and after a run, and after a push."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.versioning.telling import push
from tests.makers.dvc_repository import (
    DVC_YAML,
    RECIPE,
    STAGE_PY,
    build,
    dvc,
    ignore,
    in_shell,
    reasons,
    set_remote,
    write_recipes,
)


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
