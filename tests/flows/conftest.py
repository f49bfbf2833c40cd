"""A whole repository in a temporary folder: real git, DVC, Prefect and MLflow, stages of no work.

Each stage copies what it would make from a prepared set of artifacts. Files in `control/` tell it
to do otherwise: `variant` names the set, `<stage>.fault` is what goes wrong, once per line,
`<stage>.meanwhile` a shell command that runs once, beside the stage.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.schemas.objects import State
from safetensors.numpy import save_file

from flows.servers import prefect_api
from tasks.kd.digests import read_json, write_json
from tasks.kd.recipe.files import inputs_of
from tasks.registry import open_registry
from tasks.registry.produced import STAGES
from tests.makers.registered import write_artifacts
from tests.makers.tokenizer_folders import wordpiece, write_folder

ROOT = Path(__file__).resolve().parents[2]
MODEL = "triage"
# DVC asks pygtrie for something that pygtrie wants to withdraw.
IGNORED = "ignore:_NoneStep.value will soon:DeprecationWarning"
VARIANTS = {"good": range(5), "better": range(2), "poor": range(60)}  # test examples it gets wrong
UPSTREAM = {
    "fetch_sources": (),
    "prepare_data": ("fetch_sources",),
    "train_teacher": ("fetch_sources", "prepare_data"),
    "cache_teacher": ("prepare_data", "train_teacher"),
    "train_student": ("fetch_sources", "prepare_data", "train_teacher", "cache_teacher"),
    "export_student": ("prepare_data", "train_teacher", "train_student"),
    "evaluate_student": ("prepare_data", "train_student", "export_student"),
}
STAGE_PY = """
import json, os, pathlib, shutil, subprocess, sys, time
name, recipe = sys.argv[1], pathlib.Path(sys.argv[2]).stem
control = pathlib.Path("control")
with (control / "ran").open("a") as ran:
    ran.write(name + "\\n")
print(name, "at work", flush=True)
sys.stderr.write("\\r 50%|#####     |\\r100%|##########|\\n")
faults = control / (name + ".fault")
lines = faults.read_text().splitlines() if faults.exists() else []
if lines:
    faults.write_text("\\n".join(lines[1:]))
    if lines[0] == "hang":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        (control / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    record = pathlib.Path(f".work/errors/{recipe}.{name}.json")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(lines[0])
    sys.exit(1)
meanwhile = control / (name + ".meanwhile")
if meanwhile.exists():
    subprocess.run(meanwhile.read_text(), shell=True, check=True)
    meanwhile.unlink()
variant = (control / "variant").read_text().strip()
shutil.copytree(control / variant / name, pathlib.Path("artifacts", recipe, name))
"""


@dataclass(frozen=True)
class Project:
    """A repository with the recipe `tiny`."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "params" / "tiny.yaml"

    def ran(self) -> list[str]:
        """The stages that ran so far, in order."""
        log = self.root / "control" / "ran"
        return log.read_text().split() if log.exists() else []

    def fail(self, stage: str, *faults: str) -> None:
        """Let the next runs of a stage fail, one fault each: `hang`, or an error's record."""
        (self.root / "control" / f"{stage}.fault").write_text("\n".join(faults))

    def meanwhile(self, stage: str, command: str) -> None:
        """Let a shell command run while a stage does, once."""
        (self.root / "control" / f"{stage}.meanwhile").write_text(command)

    def change(self, section: str, **fields: object) -> None:
        """Change a section of the recipe."""
        recipe = read_json(self.recipe)
        recipe[section].update(fields)
        write_json(self.recipe, recipe)

    def retrain(self, variant: str) -> None:
        """Let a changed recipe make another student."""
        (self.root / "control" / "variant").write_text(variant)
        optimizer = read_json(self.recipe)["train_student"]["optimizer"]
        optimizer["seed"] = 100 + list(VARIANTS).index(variant)
        self.change("train_student", optimizer=optimizer)

    def champion(self) -> int | None:
        version = open_registry(self.root).champion(MODEL)
        return version.version if version else None

    def start(self, *arguments: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
        """`stillhouse <arguments>` in this repository, as a process of its own.

        `before` is Python that the process runs first.
        """
        return subprocess.Popen(
            [sys.executable, "-c", f"{before}\nfrom flows.cli import main\nmain()", *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def record(kind: str, message: str, *, transient: bool = False) -> str:
    """A fault: what a stage leaves in its error.json."""
    return json.dumps({"type": kind, "message": message, "transient": transient})


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that each test gets a copy of; made once, it takes seconds."""
    root = tmp_path_factory.mktemp("template") / "repository"
    for name, wrong in VARIANTS.items():
        made = write_artifacts(root / "made" / name, "tiny", list(wrong))
        shutil.move(made.artifacts, root / "control" / name)
    (root / "params").mkdir()
    shutil.move(made.recipe_file, root / "params")
    shutil.rmtree(root / "made")
    write_json(root / "params" / "recipes.yaml", {"recipes": {"tiny": inputs_of(made.recipe)}})
    (root / "control" / "variant").write_text("good")
    (root / "stage.py").write_text(STAGE_PY)
    stages = {name: {"foreach": "${recipes}", "do": _stage(name)} for name in STAGES}
    write_json(root / "dvc.yaml", {"vars": ["params/recipes.yaml"], "stages": stages})
    _init(root)
    assert open_registry(root).champion(MODEL) is None  # MLflow's migrations, once
    return root


def _stage(name: str) -> dict[str, object]:
    upstream = [f"artifacts/${{key}}/{stage}" for stage in UPSTREAM[name]]
    return {
        "cmd": f"python stage.py {name} params/${{key}}.yaml",
        "deps": [*upstream, "stage.py"],
        "params": [{"params/${key}.yaml": [name]}],
        "outs": [f"artifacts/${{key}}/{name}"],
    }


def write_model(folder: Path, **fields: object) -> None:
    """A model's folder whose files are whole: a small BERT's configuration, one weight."""
    sizes = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12}
    write_folder(folder, wordpiece(), None, **{**sizes, "intermediate_size": 1536, **fields})
    save_file({"pooler.dense.bias": np.zeros(3, np.float32)}, folder / "model.safetensors")


def _init(root: Path) -> None:
    (root / ".gitignore").write_text("/artifacts/\n/control/\n/.work/\n/.mlflow/\n")
    for command in (
        ["git", "init", "--quiet"],
        [sys.executable, "-m", "dvc", "init", "--quiet"],
        ["git", "add", "--all"],
        ["git", "commit", "--quiet", "--message", "begin"],
    ):
        subprocess.run(command, cwd=root, check=True, capture_output=True)


def copy_project(source: Path, root: Path) -> Project:
    shutil.copytree(source, root, symlinks=True)
    return Project(root)


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Project:
    """A repository in which nothing has run yet."""
    return copy_project(template, tmp_path / "repository")


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a real server, which the tests of this process and of child processes share."""
    from prefect.settings import PREFECT_API_URL

    with prefect_api(tmp_path_factory.mktemp("server"), lambda _: None):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def first(
    template: Path, tmp_path_factory: pytest.TempPathFactory, prefect_url: str
) -> tuple[Project, State[Any]]:
    """A repository after its first run, and how that ended. Read it, or copy it."""
    from flows.distill import distill

    assert prefect_url
    project = copy_project(template, tmp_path_factory.mktemp("first") / "repository")
    return project, distill("tiny", str(project.root), return_state=True)


@pytest.fixture
def done(first: tuple[Project, State[Any]], tmp_path: Path) -> Project:
    """A copy of a repository after its first run."""
    return copy_project(first[0].root, tmp_path / "repository")
