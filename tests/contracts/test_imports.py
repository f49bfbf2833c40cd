"""Who may import whom, where import-linter can't say it, and that import-linter says the rest."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What a file or folder may import besides the standard library.
ALLOWED = {
    "tasks/kd/recipe/maps.py": ("tasks.kd.errors",),
    "tasks/kd/gate/paired.py": (),
    "tasks/kd/gate/evidence.py": ("tasks.kd.errors",),
    "tasks/kd/gate/decision.py": (
        "tasks.kd.documents.decision",
        "tasks.kd.gate.evidence",
        "tasks.kd.gate.paired",
    ),
    "tasks/kd/cache/format/fingerprint.py": ("tasks.kd.errors",),
    "tasks/kd/recipe/streams.py": (),
    "tasks/kd/recipe/losses.py": ("pydantic", "tasks.kd.recipe.levels"),
    "tasks/kd/levels/losses": (
        "torch",
        "tasks.kd.errors",
        "tasks.kd.shapes",
        "tasks.kd.totals",
        "tasks.kd.levels.losses",
    ),
}
NEVER_IN_KD = {"os.environ", "os.getenv", "os.putenv", "sys.argv", "print"}
# Needed by another library, never imported here.
NOT_IMPORTED = {"onnxscript"}
TOOLS = {"codespell", "import-linter", "mypy", "pandas-stubs", "pre-commit", "pre-commit-hooks"}
TOOLS |= {"pytest-timeout", "pytest-xdist", "ruff"}

BLOCK_ENGINES = """
import importlib, importlib.machinery, pkgutil, sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    engine = name.partition(".")[0] in {"prefect", "mlflow", "dvc"}
    return None if engine else find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
"""
IMPORT_KD = """
import tasks.kd
names = [module.name for module in pkgutil.walk_packages(tasks.kd.__path__, "tasks.kd.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
HEAVY = {"accelerate", "datasets", "dvc", "matplotlib", "mlflow", "onnxruntime", "torch"}
HEAVY |= {"pandas", "pyarrow", "sklearn", "transformers"}

# One line per contract of pyproject.toml that breaks it: file, import, contract.
BREACHES = [
    ("tasks/kd/recipe/maps.py", "import tasks.supervise", "flows -> versioning | registry -> kd"),
    ("flows/root.py", "import tasks.stages", "stages are run by dvc.yaml"),
    (
        "tasks/serving/served_student.py",
        "import tasks.kd.recipe.maps",
        "the served student carries none",
    ),
    ("tasks/kd/gate/decision.py", "import prefect", "prefect only in flows"),
    ("flows/root.py", "import mlflow", "mlflow only in tasks.registry"),
    ("tasks/supervise.py", "from dvc.repo import Repo", "dvc only in tasks.versioning"),
    ("tasks/versioning/imports.py", "import accelerate", "accelerate only in"),
    ("tasks/versioning/imports.py", "import transformers", "transformers only in"),
    ("tasks/kd/levels/plans.py", "import tasks.kd.training.loop", "the rooms of tasks.kd"),
    (
        "tasks/kd/cache/store/faults.py",
        "import tasks.kd.cache.care.users",
        "the rooms of the cache",
    ),
    ("tasks/kd/cache/store/store.py", "import torch", "no torch in what says what a cache is"),
    ("tasks/kd/digests.py", "import tasks.stages", "no circle among modules"),
    ("tasks/kd/training/loop.py", "import tasks.kd.levels.objective", "the early stages"),
    ("tasks/kd/data/tables.py", "import tasks.kd.gate.paired", "sources and data are made"),
    ("tasks/kd/recipe/losses.py", "import torch", "a recipe is read and checked without torch"),
]


def find_imports(source: str) -> set[str]:
    """Full names of all that a module imports when it runs, inside functions too."""
    names: set[str] = set()
    for node in walk_running(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def walk_running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those of `if TYPE_CHECKING:`, which only a type checker reads."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children: Iterable[ast.AST] = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from walk_running(child)


def find_strangers(source: str, allowed: tuple[str, ...]) -> set[str]:
    """Imports that are neither the standard library's nor at or below an allowed name."""
    return {
        name
        for name in find_imports(source)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}.".startswith(f"{place}.") for place in allowed)
    }


def find_outside_world(source: str) -> set[str]:
    """Uses of print, sys.argv and os.environ, under whatever name they were imported."""
    tree = ast.parse(source)
    aliases = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    used = find_imports(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.add(f"{aliases.get(node.value.id, node.value.id)}.{node.attr}")
        elif isinstance(node, ast.Name):
            used.add(node.id)
    return used & NEVER_IN_KD


def read_sources(root: Path, *places: str) -> Iterator[tuple[str, str]]:
    """(path from the root, text) of the Python files at or below some places."""
    for place in places:
        top = root / place
        for path in sorted(top.rglob("*.py")) if top.is_dir() else [top]:
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def run_python(program: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, from the root."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("place", ALLOWED)
def test_what_must_stay_small_imports_only_what_it_may(place: str, root: Path) -> None:
    sources = list(read_sources(root, place))
    assert sources
    strangers = {path: find_strangers(text, ALLOWED[place]) for path, text in sources}
    assert {path: names for path, names in strangers.items() if names} == {}


def test_a_stranger_is_found_wherever_it_is_imported() -> None:
    source = """
import json, numpy.linalg
from tasks.kd.errors_extra import x
from tasks.kd.errors import KDError
def late():
    from torch import nn
if TYPE_CHECKING:
    import pandas
else:
    import scipy
"""
    assert find_strangers(source, ("tasks.kd.errors",)) == {
        "numpy.linalg",
        "scipy",
        "tasks.kd.errors_extra.x",
        "torch.nn",
    }


def test_kd_never_prints_and_never_reads_the_environment_or_arguments(root: Path) -> None:
    sources = list(read_sources(root, "tasks/kd"))
    assert len(sources) > 10
    uses = {path: find_outside_world(text) for path, text in sources}
    assert {path: names for path, names in uses.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("print(1)", "print"),
        ("say = print", "print"),
        ("import os\nos.environ['A']", "os.environ"),
        ("import os as system\nsystem.getenv('A')", "os.getenv"),
        ("from os import environ", "os.environ"),
        ("def f():\n    import sys\n    return sys.argv[1]", "sys.argv"),
    ],
)
def test_a_use_of_the_outside_world_is_found(source: str, use: str) -> None:
    assert find_outside_world(source) == {use}


@pytest.mark.slow
def test_kd_works_with_prefect_mlflow_and_dvc_uninstalled(root: Path) -> None:
    done = run_python(BLOCK_ENGINES + IMPORT_KD, root)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


@pytest.mark.parametrize("engine", ["prefect", "mlflow", "dvc"])
def test_the_block_that_stands_for_uninstalling_holds(engine: str, root: Path) -> None:
    done = run_python(f"{BLOCK_ENGINES}\nimport {engine}", root)
    assert done.returncode == 1
    assert f"No module named '{engine}'" in done.stderr


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("flows", HEAVY), ("flows.distill", HEAVY), ("flows.cli", HEAVY | {"prefect"})],
)
def test_flows_load_nothing_heavy(module: str, unwanted: set[str], root: Path) -> None:
    done = run_python(f"import sys, {module}\nprint(*sys.modules)", root)
    assert done.returncode == 0, done.stderr
    assert module in done.stdout.split()
    assert set(done.stdout.split()) & unwanted == set()


def test_no_module_of_the_recipe_loads_anything_heavy(root: Path) -> None:
    paths = sorted((root / "tasks/kd/recipe").rglob("[!_]*.py"))
    modules = [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    done = run_python(f"import sys, {', '.join(modules)}\nprint(*sys.modules)", root)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert set(modules) <= loaded
    assert loaded & (HEAVY | {"numpy"}) == set()


@pytest.mark.parametrize(
    "package",
    [
        "tasks.kd.cache.care",
        "tasks.kd.cache.format.estimate",
        "tasks.kd.cache.format.fingerprint",
        "tasks.kd.cache.format.manifest",
        "tasks.kd.cache.format.parsing",
        "tasks.kd.cache.store",
        "tasks.kd.recipe.streams",
    ],
)
def test_what_says_what_a_cache_is_loads_no_torch(package: str, root: Path) -> None:
    folder = root / package.replace(".", "/")
    modules = [f"{package}.{path.stem}" for path in folder.glob("[!_]*.py")] or [package]
    done = run_python(f"import sys, {', '.join(modules)}\nprint(*sys.modules)", root)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {*modules} <= loaded
    assert loaded & HEAVY == set()


@pytest.mark.slow
def test_import_linter_finds_a_breach_of_every_contract(root: Path, tmp_path: Path) -> None:
    for folder in ("flows", "tasks"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.copy(root / "pyproject.toml", tmp_path)
    for file, line, _ in BREACHES:
        with (tmp_path / file).open("a", encoding="utf-8") as module:
            module.write(f"\n\ndef late() -> None:\n    {line}\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(broken) == len(contracts["contracts"]) == len(BREACHES), done.stdout
    for _, _, name in BREACHES:
        assert any(line.startswith(name) for line in broken), name


@pytest.mark.slow
@pytest.mark.parametrize("room", ["tasks/kd/attic", "tasks/kd/cache/attic"])
def test_a_new_folder_that_stands_in_no_layer_fails(room: str, root: Path, tmp_path: Path) -> None:
    for folder in ("flows", "tasks"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.copy(root / "pyproject.toml", tmp_path)
    (tmp_path / room).mkdir()
    (tmp_path / room / "__init__.py").touch()
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "attic" in done.stdout


def find_distributions(imports: set[str], root: Path) -> dict[str, set[str]]:
    """Import name to the packages that may ship it, for what is neither ours nor standard."""
    shipped = importlib.metadata.packages_distributions()
    ours = {path.name for path in root.iterdir() if path.is_dir()}
    tops = {name.partition(".")[0] for name in imports} - ours - set(sys.stdlib_module_names)
    return {top: {canonicalize_name(name) for name in shipped.get(top, [])} for top in tops}


def read_declared(root: Path) -> tuple[set[str], set[str]]:
    """Names of the packages that pyproject.toml asks for: to run, extras too, and to develop."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    dev_lines = extras.pop("dev")
    lines = (
        [*project["dependencies"], *(line for lines in extras.values() for line in lines)],
        dev_lines,
    )
    run, dev = ({str(canonicalize_name(Requirement(line).name)) for line in part} for part in lines)
    return run, dev


@pytest.mark.parametrize(
    ("places", "with_dev"),
    [(("flows", "tasks"), False), (("tests", "docs", "study", "bench"), True)],
)
def test_every_import_is_of_a_declared_package(
    places: tuple[str, ...], with_dev: bool, root: Path
) -> None:
    run, dev = read_declared(root)
    sources = read_sources(root, *places)
    imports = {name for _, text in sources for name in find_imports(text)}
    declared = run | dev if with_dev else run
    undeclared = {
        top: names
        for top, names in find_distributions(imports, root).items()
        if not names & declared
    }
    assert undeclared == {}


def test_every_declared_package_is_imported(root: Path) -> None:
    run, dev = read_declared(root)
    sources = read_sources(root, "flows", "tasks", "tests", "docs", "study", "bench")
    imports = {name for _, text in sources for name in find_imports(text)}
    used = set[str]().union(*find_distributions(imports, root).values())
    assert (run | dev) - used == NOT_IMPORTED | TOOLS
