"""A real git and DVC repository with tiny stages: its files, and how tests ask and change it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tasks.versioning.asking import PlannedStage, plan
from tasks.versioning.telling import reproduce

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


def set_remote(folder: Path, address: object) -> None:
    """Make an address the default remote."""
    (folder / ".dvc" / "config").write_text(
        f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {address}\n"
    )
