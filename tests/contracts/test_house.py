"""The house in order: Makefile, CI, the README's tree, the error tree, tests without a network."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.environment import TELEMETRY_OFF
from tasks.kd import errors
from tasks.kd.errors import KDError
from tests.isolation import find_strays

TARGETS = {
    "setup",
    "format",
    "check",
    "quick",
    "test",
    "durations",
    "lowest",
    "demo",
    "bench",
    "study",
    "goldens",
    "docs",
    "ui",
    "clean",
}
TREE_LINE = re.compile(r"(?P<indent> *)(?P<names>\S+(?: \S+)*?)  +(?P<comment>\S.*)")
ROOM = re.compile(r"tasks(/kd)?/\w+")
ERROR_LINE = re.compile(r"(?P<indent>[ │├└─]*)(?P<name>\w*Error)\b.*?(?:exit (?P<code>\d))?")


# --- Makefile and CI -----------------------------------------------------------------------------


def read_targets(makefile: str) -> tuple[set[str], set[str]]:
    """Targets that can be called, and those of them that have a line of help."""
    phony = re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)
    assert phony is not None
    helped = re.findall(r"^([a-z]+):[^=\n]*## \S", makefile, re.MULTILINE)
    return set(phony[1].split()) - {"help"}, set(helped)


def make(root: Path, *arguments: str, **environment: str) -> str:
    """What make prints; CalledProcessError if it fails."""
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=root,
        env={**os.environ, "MAKEFLAGS": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_makefile_has_exactly_the_targets_of_the_house_all_with_help(root: Path) -> None:
    callable_, helped = read_targets((root / "Makefile").read_text())
    assert callable_ == helped == TARGETS


def test_a_target_without_help_is_found() -> None:
    callable_, helped = read_targets(".PHONY: help a b\na: ## says what\nb: a\n\ttrue\n")
    assert callable_ - helped == {"b"}


def test_make_alone_prints_every_target(root: Path) -> None:
    assert set(re.findall(r"^  make ([a-z]+) +\S", make(root), re.MULTILINE)) == TARGETS


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_dry_run_of_every_target_works(target: str, root: Path) -> None:
    assert make(root, "--dry-run", target)


def test_demo_and_test_install_first_where_nothing_is_installed(root: Path) -> None:
    for target in ("demo", "test"):
        plan = make(root, "--dry-run", target, "VENV=/nowhere/venv").splitlines()
        assert plan.index("touch /nowhere/venv/.installed") < len(plan) - 1
        assert plan[-1].startswith("/nowhere/venv/bin/")


def test_a_failing_command_stops_a_target(root: Path) -> None:
    program = ["--file", "Makefile", "--eval", "broken: ; false | true; echo reached", "broken"]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make(root, *program)
    assert "reached" not in caught.value.stdout.splitlines()


def test_make_switches_telemetry_off_as_the_program_does(root: Path) -> None:
    empty = dict.fromkeys(TELEMETRY_OFF, "")
    lines = make(root, "--file", "Makefile", "--eval", "show: ; @env", "show", **empty)
    shown = dict(line.split("=", 1) for line in lines.splitlines() if "=" in line)
    assert {name: shown[name] for name in TELEMETRY_OFF} == TELEMETRY_OFF


def test_ci_calls_the_same_targets_as_people(root: Path) -> None:
    script = (root / ".ci/run").read_text()
    called = re.findall(r"^make (\w+)$", script, re.MULTILINE)
    assert called == ["check", "test", "demo", "demo"]
    assert os.access(root / ".ci/run", os.X_OK)
    workflow = (root / ".github/workflows/ci.yml").read_text()
    assert "run: .ci/run" in workflow
    assert "run: make lowest" in workflow


def test_the_workflow_pins_actions_by_digest_and_runs_both_pythons(root: Path) -> None:
    workflow = (root / ".github/workflows/ci.yml").read_text()
    used = re.findall(r"uses: (\S+)", workflow)
    assert used
    assert [
        action for action in used if not re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action)
    ] == []
    assert 'python: ["3.11", "3.12"]' in workflow


def test_hooks_run_tools_that_are_installed(root: Path) -> None:
    """What a commit runs is what `make setup` installs: nothing is fetched by the hooks."""
    config = YAML(typ="safe").load(root / ".pre-commit-config.yaml")
    hooks = [hook for source in config["repos"] for hook in source["hooks"]]
    assert {source["repo"] for source in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        assert shutil.which(Path(program).name, path=str(Path(sys.executable).parent)), program


# --- the README's tree ---------------------------------------------------------------------------


def read_tree(readme: str) -> str:
    """The block that is fenced as ```tree; ValueError if there is none."""
    match = re.search(r"^```tree\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ValueError("the README has no block fenced as ```tree")
    return match[1]


def find_tree_faults(block: str, tracked: set[str], is_ignored: Callable[[str], bool]) -> list[str]:
    """Where a drawn tree and the tracked files differ.

    A line is `names  comment`, names parted by one blank, a folder's ending in /, what is in a
    folder two blanks further in. What git ignores need not be there. What must be drawn is the
    top, every package of tasks/ and every room of tasks/kd; the rest is drawn where it helps.
    """
    folders = {
        "/".join(path.split("/")[:i]) for path in tracked for i in range(path.count("/") + 1)
    }
    folders.discard("")
    faults: list[str] = []
    drawn: set[str] = set()
    above: list[str] = []
    for line in block.splitlines():
        match = TREE_LINE.fullmatch(line)
        if match is None or len(match["indent"]) % 2 or len(match["indent"]) // 2 > len(above):
            faults.append(f"not `names  comment`, or indented too far: {line!r}")
            continue
        del above[len(match["indent"]) // 2 :]
        parent = "".join(above)
        for name in match["names"].split(" "):
            path = parent + name
            drawn.add(path.rstrip("/"))
            there = path.rstrip("/") in folders if name.endswith("/") else path in tracked
            if not there and not is_ignored(path):
                faults.append(f"drawn, but not there: {path}")
        above.append(name if name.endswith("/") else f"{name}/")
    wanted = {path.split("/")[0] for path in tracked if not path.startswith(".")}
    packages = {folder for folder in folders if f"{folder}/__init__.py" in tracked}
    wanted |= {folder for folder in packages if ROOM.fullmatch(folder)}
    faults.extend(f"there, but not drawn: {path}" for path in sorted(wanted - drawn))
    return faults


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask git something."""
    return subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
    )


def test_the_readmes_tree_is_the_tree(root: Path) -> None:
    tracked = set(git(root, "ls-files", "-z").stdout.split("\0")) - {""}
    assert "README.md" in tracked
    block = read_tree((root / "README.md").read_text(encoding="utf-8"))
    faults = find_tree_faults(
        block, tracked, lambda path: git(root, "check-ignore", "-q", path).returncode == 0
    )
    assert faults == []


TRACKED = {
    "README.md",
    ".gitignore",
    "tests/x.py",
    "tasks/__init__.py",
    "tasks/one.py",
    "tasks/kd/__init__.py",
    "tasks/kd/errors.py",
    "tasks/kd/gate/__init__.py",
    "tasks/kd/gate/small/__init__.py",
    "tasks/kd/gate/templates/page.j2",
}
TREE = """\
README.md       what it is
tests/          a folder drawn shut
tasks/          a folder with packages
  kd/             a package with rooms
    errors.py       one of its files
    gate/           a room
out/            generated
"""


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        (TREE, None),
        (TREE.replace("    errors.py       one of its files\n", ""), None),
        (TREE.replace("    gate/           a room\n", ""), "there, but not drawn: tasks/kd/gate"),
        (TREE.replace("  kd/ ", "  ke/ "), "there, but not drawn: tasks/kd"),
        (TREE.replace("errors.py", "faults.py"), "drawn, but not there: tasks/kd/faults.py"),
        (TREE.replace("tests/  ", "trials/  "), "drawn, but not there: trials/"),
        (TREE.replace("README.md       what it is\n", ""), "there, but not drawn: README.md"),
        (TREE.replace("README.md       what it is", "README.md"), "not `names  comment`"),
        (TREE.replace("  kd/  ", "      kd/  "), "not `names  comment`, or indented too far"),
        (TREE.replace("tests/ ", "tests/x.py/ "), "drawn, but not there: tests/x.py/"),
    ],
)
def test_a_tree_that_differs_is_found(block: str, fault: str | None) -> None:
    faults = find_tree_faults(block, TRACKED, lambda path: path == "out/")
    assert bool(faults) is (fault is not None)
    assert fault is None or any(fault in found for found in faults)


# --- errors --------------------------------------------------------------------------------------


def draw_errors(text: str) -> dict[str, tuple[str | None, bool]]:
    """Name to (parent, whether it is the user's fault) of a drawn tree of errors."""
    drawn: dict[str, tuple[str | None, bool]] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := ERROR_LINE.fullmatch(line.rstrip()):
            depth = len(match["indent"])
            above = [entry for entry in above if entry[0] < depth]
            drawn[match["name"]] = (above[-1][1] if above else None, match["code"] == "2")
            above.append((depth, match["name"]))
    return drawn


def list_errors(kind: type[KDError] = KDError, parent: str | None = None) -> dict[str, object]:
    """The same of the classes themselves."""
    listed: dict[str, object] = {kind.__name__: (parent, kind.exit_code == 2)}
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            listed.update(list_errors(child, kind.__name__))
    return listed


def read_nodes(*folders: Path) -> Iterator[ast.AST]:
    """Every node of the modules below some folders."""
    for folder in folders:
        for path in folder.rglob("*.py"):
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def name_of(node: ast.AST) -> str:
    """The last word of a name, or nothing."""
    return str(getattr(node, "id", getattr(node, "attr", "")))


def walk_leaves(kind: type[KDError]) -> list[type[KDError]]:
    """The errors that nothing derives from: those that are raised."""
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [leaf for child in children for leaf in walk_leaves(child)] if children else [kind]


def test_the_drawn_error_tree_is_the_error_tree() -> None:
    assert errors.__doc__ is not None
    assert draw_errors(errors.__doc__) == list_errors()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("├── ShapeError", "├── FormError"),
        ("│   ├── CacheCorruptError", "├── CacheCorruptError"),
        ("└── TransientError", ""),
        ("exit 2", "exit 1"),
        ("the trained one", "the trained one exit 2"),
    ],
)
def test_a_wrongly_drawn_error_tree_is_found(old: str, new: str) -> None:
    text = errors.__doc__ or ""
    assert old in text
    assert draw_errors(text.replace(old, new)) != list_errors()


def test_every_error_is_raised_somewhere_and_seen_by_a_test(root: Path) -> None:
    leaves = {kind.__name__ for kind in walk_leaves(KDError)}
    program = read_nodes(root / "tasks", root / "flows")
    made = {name_of(node.func) for node in program if isinstance(node, ast.Call)}
    assert leaves - made == set()
    assert leaves - {name_of(node) for node in read_nodes(root / "tests")} == set()


# --- what a test may touch ------------------------------------------------------------------------


def test_a_test_has_no_network() -> None:
    with socket.socket() as outside, pytest.raises(OSError, match="tests have no network"):
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(urllib.error.URLError, match="tests have no network"):
        urllib.request.urlopen("http://example.invalid", timeout=1)


def test_a_test_reaches_its_own_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_an_mlflow_store_in_the_wrong_place_is_found(tmp_path: Path) -> None:
    assert find_strays(tmp_path) == set()
    (tmp_path / "mlruns").mkdir()
    assert find_strays(tmp_path) == {"mlruns"}
