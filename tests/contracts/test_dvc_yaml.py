"""dvc.yaml: the stem law, each stage's edges, and rooms that cover what the stage imports."""

from __future__ import annotations

import ast
import copy
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *("${item.train}", "${item.test}", "${item.teacher}"),
    *("${item.student}", "${item.more_teachers}"),
]
# Errors, refusals, digests and documents: docs/reruns.md says what an edit of them does.
DOCUMENTS = "tasks/kd/documents"
FRAME = (
    "tasks/kd/digests.py",
    "tasks/kd/errors.py",
    "tasks/kd/file_contents.py",
    "tasks/kd/shapes.py",
)
# Modules of the recipe that work something out; the others only say what a recipe may hold.
DERIVED = {
    f"tasks/kd/recipe/{name}.py"
    for name in ("losses", "maps", "matching", "phases", "streams", "values")
}
LISTED = ("train", "test", "teacher", "student", "more_teachers")


# --- what a stage imports -----------------------------------------------------------------------


def find_closure(root: Path, stage: str) -> list[str]:
    """All files of tasks/ that decide what a stage makes: code and templates that it may read.

    What the frame imports is the frame's.
    Imports inside functions count, those for the type checker only do not. A file that is no
    Python (nor a page for people, .md) belongs to the modules that say its name in a string.
    """
    data = {
        path.name: path
        for path in (root / "tasks").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md", ".typed")
    }
    found: set[Path] = set()
    todo = find_modules(root, f"tasks.stages.{stage}")
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        if is_frame(path.relative_to(root).as_posix()):
            continue
        imports, strings = read_module(path.read_text(encoding="utf-8"))
        for name in imports:
            todo += find_modules(root, name)
        found |= {data[name] for name in strings & set(data)}
    return sorted(path.relative_to(root).as_posix() for path in found)


@functools.cache
def read_module(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a module imports when it runs, as dotted names, and the strings that it holds."""
    nodes = list(walk_running(ast.parse(source)))
    imports = {name for node in nodes for name in imported_names(node)}
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    return frozenset(imports), frozenset(s for s in strings if isinstance(s, str))


def find_modules(root: Path, name: str) -> list[Path]:
    """The files that importing a dotted name runs: each package's __init__, then the module."""
    files: list[Path] = []
    parts = name.split(".") if name.startswith("tasks.") or name == "tasks" else []
    for depth in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:depth])
        files += [p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()]
    return files


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def walk_running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those of `if TYPE_CHECKING:`."""
    yield node
    only_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    children = (
        node.orelse if isinstance(node, ast.If) and only_types else ast.iter_child_nodes(node)
    )
    for child in children:
        yield from walk_running(child)


def find_uncovered(deps: list[str], code: list[str]) -> list[str]:
    """What is wrong with the rooms that a stage depends on, against the files that it imports."""
    rooms = [dep for dep in deps if dep.startswith("tasks/")]
    files = [file for file in code if not is_frame(file)]
    lacking = [file for file in files if not any(covers(room, file) for room in rooms)]
    idle = [room for room in rooms if not any(covers(room, file) for file in files)]
    return [
        *(f"imports {file}, which no dependency covers" for file in lacking),
        *(f"depends on {room}, and imports nothing there" for room in idle),
    ]


def covers(room: str, file: str) -> bool:
    return file == room or file.startswith(f"{room}/")


def is_frame(file: str) -> bool:
    """Whether a file decides if a stage runs and how it says so, and nothing that it makes."""
    recipe = file.startswith("tasks/kd/recipe/") and file not in DERIVED
    return recipe or file in FRAME or file.endswith("/__init__.py") or covers(DOCUMENTS, file)


# --- what must hold -----------------------------------------------------------------------------


def read_stages(root: Path) -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load(root / "dvc.yaml")["stages"]
    return stages


def find_faults(stages: dict[str, Any], root: Path) -> list[str]:
    """What is wrong with the stages of a dvc.yaml, one line each."""
    from tasks.stages import INPUTS, READS

    faults: list[str] = []
    for name, stage in stages.items():
        body = stage["do"]
        inputs = [f"artifacts/${{key}}/{source}" for source in INPUTS.get(name, ())]
        edges = inputs or SOURCES
        wanted: dict[str, Any] = {
            "cmd": f"python -m tasks.stages.{name} params/${{key}}.yaml",
            "params": [{"params/${key}.yaml": [name, *READS.get(name, ())]}],
            "outs": [f"artifacts/${{key}}/{name}"],
        }
        if stage.get("foreach") != "${recipes}" or set(stage) != {"foreach", "do"}:
            faults.append(f"{name}: one stage per recipe, `foreach: ${{recipes}}`")
        faults += [f"{name}: unknown key {key}" for key in body if key not in {*wanted, "deps"}]
        deps = body.get("deps", [])
        if deps[: len(edges)] != edges:
            faults.append(f"{name}: must depend first on {', '.join(edges)}")
        if deps[len(edges) :] != sorted(set(deps[len(edges) :])):
            faults.append(f"{name}: rooms must stand once, in order")
        rooms = find_uncovered(deps[len(edges) :], find_closure(root, name))
        faults += [f"{name}: {fault}" for fault in rooms]
        for key in ("cmd", "params", "outs"):
            if body.get(key) != wanted[key]:
                faults.append(f"{name}: {key} must be {wanted[key]}")
    return faults


def test_stages_are_modules_are_sections_in_one_order() -> None:
    from tasks.kd.recipe.recipe import Recipe
    from tasks.stages import INPUTS

    stages = list(read_stages(ROOT))
    files = (ROOT / "tasks" / "stages").glob("[!_]*.py")
    modules = {file.stem for file in files if "run_stage(" in file.read_text(encoding="utf-8")}
    assert set(stages) == modules
    assert list(INPUTS) == stages
    assert [name for name in Recipe.model_fields if name in modules] == stages
    assert "description" not in stages


def test_dvc_yaml_says_what_each_stage_reads_and_imports() -> None:
    faults = find_faults(read_stages(ROOT), ROOT)
    assert not faults, "\n".join(faults)


def test_dvc_yaml_fits_on_a_screen_and_a_half() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 140


def test_every_listed_recipe_has_its_figures() -> None:
    from flows.figures import FIGURES_FILE, render_figures

    assert (ROOT / FIGURES_FILE).read_text(encoding="utf-8") == render_figures(ROOT)


FOLDER = "artifacts/tiny/evaluate_student"
FIGURES = {
    "summary.json": '{"accuracy": 0.9, "size_mb": 17.5}',
    "learning_train.csv": "step,loss\n1,0.5\n2,0.25\n",
    "learning_dev.csv": "step,loss,accuracy\n2,0.3,0.8\n",
    "predictions.csv": "example_id,label,teacher,student\na,yes,yes,no\nb,no,no,no\n",
}


def test_dvc_shows_the_figures_of_a_recipe_that_ran_and_of_none_that_did_not(
    tmp_path: Path,
) -> None:
    """Real git and DVC: metrics, their difference to the commit, plots, and nothing to do."""
    from flows.figures import write_figures

    def dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    def make(figures: dict[str, str]) -> None:
        (tmp_path / "made.json").write_text(json.dumps(figures))
        dvc("repro", "-q", "evaluate_student@tiny")

    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / "params").mkdir()
    entry = ", ".join(f"{key}: params/remote" for key in LISTED)
    (tmp_path / "params" / "recipes.yaml").write_text(
        f"recipes:\n  tiny: {{{entry}}}\n  other: {{{entry}}}\n"
    )
    write_figures(tmp_path)
    (tmp_path / "make.py").write_text(
        "import json, os, pathlib, sys\nos.makedirs(sys.argv[1])\n"
        "for name, text in json.load(open('made.json')).items():\n"
        "    pathlib.Path(sys.argv[1], name).write_text(text)\n"
    )
    stage = {
        "cmd": "python make.py artifacts/${key}/evaluate_student",
        "deps": ["made.json"],
        "outs": ["artifacts/${key}/evaluate_student"],
    }
    stages = {"evaluate_student": {"foreach": "${recipes}", "do": stage}}
    (tmp_path / "dvc.yaml").write_text(
        json.dumps({"vars": ["params/recipes.yaml"], "stages": stages})
    )
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    dvc("init", "-q")
    make(FIGURES)
    for command in (["git", "add", "-A"], ["git", "commit", "-qm", "ran"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    shown = json.loads(dvc("metrics", "show", "--json"))[""]["data"]
    assert shown[f"{FOLDER}/summary.json"]["data"] == {"accuracy": 0.9, "size_mb": 17.5}
    make(FIGURES | {"summary.json": '{"accuracy": 0.95, "size_mb": 17.5}'})
    changed = json.loads(dvc("metrics", "diff", "--json"))
    assert changed[f"{FOLDER}/summary.json"]["accuracy"] == pytest.approx(
        {"old": 0.9, "new": 0.95, "diff": 0.05}
    )
    plots = json.loads(dvc("plots", "show", "--json"))["data"]
    made = {name: plot for name, plot in plots.items() if plot and name.endswith("of tiny")}
    assert set(made) == {"learning of tiny", "dev accuracy of tiny", "confusion of tiny"}
    assert "0.25" in json.dumps(made["learning of tiny"])
    assert '"student": "no"' in json.dumps(made["confusion of tiny"])
    experiments = dvc("exp", "show", "--csv")
    assert "accuracy" in experiments.splitlines()[0]
    assert "0.95" in experiments
    assert dvc("status", "evaluate_student@tiny").strip().endswith("up to date.")


def test_git_does_not_ignore_dvc_lock_for_then_dvc_refuses_to_run(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name in (
        "dvc.lock",
        "data/mails.csv.dvc",
        "data/2026/mails.csv.dvc",
        "data/2026/.gitignore",
    ):
        ignored = subprocess.run(["git", "check-ignore", name], cwd=tmp_path, check=False)
        assert ignored.returncode == 1, name
    for name in ("data/mails.csv", "data/2026/mails.csv", "artifacts/tiny/x"):
        subprocess.run(["git", "check-ignore", "-q", name], cwd=tmp_path, check=True)


@pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning")
def test_dvc_reads_it_as_one_chain_per_recipe(tmp_path: Path) -> None:
    from tasks.stages import INPUTS
    from tasks.versioning.asking import plan

    for name in ("dvc.yaml", ".dvcignore", ".dvc/config", "params/recipes.yaml", "params/remote"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    planned = plan(tmp_path, "quickstart")
    assert {stage.name: stage.upstream for stage in planned} == INPUTS
    assert [stage.name for stage in planned] == list(INPUTS)


# --- the guard fires ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (
            ("train_student", "do", "deps"),
            [],
            "train_student: imports tasks/kd/training/loop.py, which no dependency covers",
        ),
        (
            ("fetch_sources", "do", "deps"),
            [*SOURCES, "tasks/kd/levels"],
            "fetch_sources: depends on tasks/kd/levels, and imports nothing there",
        ),
        (("fetch_sources", "do", "deps"), [], "fetch_sources: must depend first on ${item.train}"),
        (
            ("prepare_data", "do", "deps"),
            ["artifacts/${key}/fetch_sources", "tasks/kd/tokens", "tasks/kd/data"],
            "prepare_data: rooms must stand once, in order",
        ),
        (("prepare_data", "do", "outs"), ["data"], "prepare_data: outs must be"),
        (("prepare_data", "do", "params"), [], "prepare_data: params must be"),
        (("prepare_data", "do", "cmd"), "sh x", "prepare_data: cmd must be"),
        (("prepare_data", "do", "always_changed"), True, "unknown key always_changed"),
        (("prepare_data", "foreach"), ["quickstart"], "prepare_data: one stage per recipe"),
    ],
)
def test_a_dvc_yaml_that_breaks_the_law_is_caught(
    path: tuple[str, ...], value: object, fault: str
) -> None:
    stages = copy.deepcopy(read_stages(ROOT))
    place = stages
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(fault in line for line in find_faults(stages, ROOT))


def test_the_closure_follows_every_way_to_import(tmp_path: Path) -> None:
    files = {
        "tasks/__init__.py": "",
        "tasks/stages/__init__.py": "import tasks.base",
        "tasks/stages/work.py": (
            "from __future__ import annotations\n"
            "from typing import TYPE_CHECKING\n"
            "from tasks.kd import direct\n"
            "if TYPE_CHECKING:\n    from tasks.kd import types_only\n"
            "def later():\n    from tasks.kd.deep.inner import thing\n"
        ),
        "tasks/stages/other.py": "",
        "tasks/base.py": "",  # imported by the frame alone
        "tasks/kd/__init__.py": "",
        "tasks/kd/direct.py": "PAGE = 'page.html.j2'",
        "tasks/kd/templates/page.html.j2": "",
        "tasks/kd/templates/unused.j2": "",
        "tasks/kd/types_only.py": "",
        "tasks/kd/deep/__init__.py": "",
        "tasks/kd/deep/inner.py": "import os, tasks.kd.direct",
        "tasks/kd/deep/FORMAT.md": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    left_out = ("base.py", "other.py", "types_only.py", "unused.j2", "FORMAT.md")
    assert find_closure(tmp_path, "work") == sorted(n for n in files if not n.endswith(left_out))
