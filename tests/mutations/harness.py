"""Run one case as a user would, in a process of its own, and judge what came of it."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.mutations.cases import Case, Expected
from tests.mutations.figures import find_difference

STAGES = ("fetch_sources", "prepare_data", "train_teacher")
LIMIT_S = 60
RECIPE = "given"
GOOD = ("right", "refused")


@dataclass(frozen=True)
class Outcome:
    """How a case ended: one of right, refused, or a failure of a named sort."""

    result: str
    at: str
    said: str = ""

    @property
    def failed(self) -> bool:
        return self.result not in GOOD


@dataclass(frozen=True)
class Ended:
    """Where the product ended, with which code, and what it said there."""

    at: str
    code: int | None  # None: an exception that nobody caught
    said: str


def run_case(case: Case, expected: Expected, model: Any) -> Outcome:
    """Fork, run, judge. `model` is the good teacher, as its owner holds it."""

    def work() -> str:
        return json.dumps(asdict(judge(run_product(case), case, expected, model)))

    text = _apart(work)
    try:
        return Outcome(**json.loads(text))
    except ValueError:
        return Outcome("no answer", "?", text)


def run_apart(case: Case) -> Ended:
    """Fork and run, for whoever judges otherwise."""
    return Ended(**json.loads(_apart(lambda: json.dumps(asdict(run_product(case))))))


def _apart(work: Callable[[], str]) -> str:
    """What a child says; in words that are no JSON, why it said nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _answer(writer, work)
    os.close(writer)
    text = _listen(reader, child)
    _, status = os.waitpid(child, 0)
    if text is None:
        return f"a hang of {LIMIT_S} s"
    return text or f"the process ended with status {status}"


def _answer(writer: int, work: Callable[[], str]) -> None:
    """In the child: never returns."""
    try:
        text = work()
    except BaseException:  # noqa: BLE001 - whatever it is, the parent must hear of it
        text = f"a fault of the harness: {traceback.format_exc()[-1500:]}"
    with os.fdopen(writer, "w") as pipe:
        pipe.write(text)
    os._exit(0)


def _listen(reader: int, child: int) -> str | None:
    """All that the child writes, or None if it takes too long."""
    parts: list[bytes] = []
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], LIMIT_S)
            if not ready:
                os.kill(child, signal.SIGKILL)
                return None
            if not (part := pipe.read(65536)):
                return b"".join(parts).decode()
            parts.append(part)


def run_product(case: Case) -> Ended:
    """`check`, then the stages up to the teacher, each as the program that dvc.yaml calls."""
    log = case.root / "said.txt"
    stream = log.open("a", buffering=1)
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream  # a test's own are elsewhere
    os.chdir(case.root)
    _hurry()
    steps: dict[str, Callable[[], None]] = {"check": _check}
    steps |= {name: _stage(name) for name in STAGES}
    for name, step in steps.items():
        log.write_text("")
        code = _code_of(step)
        stream.flush()
        if code != 0:
            return Ended(name, code, log.read_text(errors="replace"))
    return Ended("done", 0, log.read_text(errors="replace"))


_PARSED: dict[bytes, Any] = {}


def remember_yaml(case: Case) -> None:
    """Parse a case's YAML files here, once for all cases that have the same."""
    from tasks.kd.recipe.document import read_yaml

    for path in (case.root / "dvc.yaml", *(case.root / "params").glob("*.yaml")):
        if (content := path.read_bytes()) not in _PARSED:
            _PARSED[content] = read_yaml(path)


def _hurry() -> None:
    """In the child alone: what was parsed is not parsed again, and the disk is not waited for."""
    from tasks.kd.recipe import document, files

    read = document.read_yaml

    def read_once(path: Path) -> Any:
        content = path.read_bytes() if path.is_file() else b""
        return _PARSED[content] if content in _PARSED else read(path)

    document.read_yaml = files.read_yaml = read_once  # type: ignore[attr-defined]
    os.fsync = _pass_over


def _pass_over(fd: Any) -> None:
    del fd


def _check() -> None:
    from flows.check import check_recipes
    from tasks.kd.errors import KDError

    try:
        check_recipes(Path.cwd(), RECIPE)
    except KDError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _stage(name: str) -> Callable[[], None]:
    def run() -> None:
        from importlib import import_module

        from tasks.stages import run_stage

        sys.argv = [name, f"params/{RECIPE}.yaml"]
        run_stage(name, import_module(f"tasks.stages.{name}").main)

    return run


def _code_of(step: Callable[[], None]) -> int | None:
    try:
        step()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - a panic of tokenizers is no Exception
        traceback.print_exc()
        return None
    return 0


def judge(ended: Ended, case: Case, expected: Expected, model: Any) -> Outcome:
    """Whether that is what must come of it."""
    if ended.code is None or "Traceback (most recent call last)" in ended.said:
        result = "traceback"
    elif ended.code == 2:
        result = _judge_refusal(message_of(ended), expected)
    elif ended.code:
        result = f"exit {ended.code}"
    elif expected.verdict == "fatal":
        result = "accepted, though fatal"
    else:
        wrong = find_difference(case, expected, model)
        return Outcome("wrong figures", ended.at, wrong) if wrong else Outcome("right", ended.at)
    return Outcome(result, ended.at, ended.said[-1500:])


def _judge_refusal(message: str, expected: Expected) -> str:
    if expected.verdict == "harmless":
        return "refused, though harmless"
    named = any(re.search(place, message, re.IGNORECASE) for place in expected.says)
    return "refused" if named or not expected.says else "refused without its place"


def message_of(ended: Ended) -> str:
    """The error alone: neither the stage's name before it nor what was logged earlier."""
    return re.split(rf"^{ended.at}: |\r{ended.at}: ", ended.said, flags=re.MULTILINE)[-1]


def clean(case: Case) -> None:
    shutil.rmtree(case.root, ignore_errors=True)
