"""Processes that must not outlive us: real ones, really killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks import supervise
from tasks.supervise import Splitter

ROOT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")

# Leaves a line `<name> <pid>` in the file for itself and for each of its children: one ordinary,
# one in a session of its own, and one there whose parent has already ended.
FAMILY = """
import os, signal, subprocess, sys, time
pids, deaf = sys.argv[1], "deaf" in sys.argv[2:]
if deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def note(name):
    with open(pids, "a") as file:
        file.write(f"{name} {os.getpid()}\\n")
def child(name):
    if os.fork() == 0:
        if name != "child":
            os.setsid()
        if name == "orphan" and os.fork():
            os._exit(0)
        note(name)
        time.sleep(600)
for name in ("child", "daemon", "orphan"):
    child(name)
note("command")
print("ready", flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


class Family:
    """The processes that FAMILY starts."""

    def __init__(self, folder: Path) -> None:
        self.script, self.pids = folder / "family.py", folder / "pids"
        self.script.write_text(FAMILY)

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(self.script), str(self.pids)]

    def members(self) -> dict[str, int]:
        lines = self.pids.read_text().splitlines() if self.pids.exists() else []
        return {name: int(pid) for name, pid in map(str.split, lines)}

    def is_complete(self) -> bool:
        return len(self.members()) == 4

    def survivors(self) -> list[str]:
        return [name for name, pid in self.members().items() if is_alive(pid)]


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    for pid in family.members().values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def run(argv: list[str], cwd: Path, *, grace_s: float = 10.0) -> tuple[int, list[str], list[str]]:
    """Exit code, lines, progress."""
    lines: list[str] = []
    progress: list[str] = []
    code = supervise.run(
        argv,
        cwd,
        env=os.environ,
        on_line=lines.append,
        on_progress=progress.append,
        grace_s=grace_s,
    )
    return code, lines, progress


def start_parent(family: Family) -> subprocess.Popen[bytes]:
    """A process that supervises the family, as a flow does: from a thread, which only waits."""
    program = f"""
        import os, sys, threading
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from tasks import supervise
        def work():
            supervise.run({family.command!r}, Path({str(family.script.parent)!r}),
                          env=os.environ, on_line=print, on_progress=print)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.DEVNULL
    )
    assert wait_until(family.is_complete, 20)
    return parent


# --- ending the tree ----------------------------------------------------------------------------


@linux
def test_no_process_outlives_a_parent_that_is_killed(family: Family) -> None:
    parent = start_parent(family)
    assert len(family.survivors()) == 4
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not family.survivors(), 2), family.survivors()


@linux
def test_the_guard_is_the_shim_for_without_it_children_outlive_their_parent(family: Family) -> None:
    parent = subprocess.Popen(family.command, stdout=subprocess.DEVNULL)
    assert wait_until(family.is_complete, 20)
    parent.kill()
    parent.wait()
    assert sorted(family.survivors()) == ["child", "daemon", "orphan"]


@linux
def test_a_command_that_ends_takes_what_it_left_behind_with_it(family: Family) -> None:
    shell = f"{' '.join(family.command)} > /dev/null & sleep 1; exit 7"
    code, _, _ = run(["sh", "-c", shell], family.script.parent)
    assert code == 7
    assert family.is_complete()
    assert not family.survivors()


@linux
def test_an_exception_of_a_callback_ends_the_tree_and_is_raised(family: Family) -> None:
    def fail(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise.run(
            family.command,
            family.script.parent,
            env=os.environ,
            on_line=fail,
            on_progress=fail,
            grace_s=600.0,  # a process that SIGTERM did not reach would still be there at a timeout
        )
    assert not family.survivors()


@linux
def test_an_exception_that_is_raised_into_the_waiting_thread_ends_the_tree(family: Family) -> None:
    import ctypes

    raised: list[BaseException] = []

    class Cancelled(BaseException):
        """As Prefect cancels a task that runs in a thread."""

    def work() -> None:
        try:
            run(family.command, family.script.parent)
        except Cancelled as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert wait_until(family.is_complete, 20)
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Cancelled)
    )
    thread.join(60)
    assert raised
    assert not family.survivors()


@linux
def test_a_tree_that_ignores_sigterm_is_killed_after_the_grace_period(family: Family) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("enough")

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="enough"):
        supervise.run(
            [*family.command, "deaf"],
            family.script.parent,
            env=os.environ,
            on_line=fail,
            on_progress=fail,
            grace_s=1.0,
        )
    assert time.monotonic() - began >= 1.0
    assert not family.survivors()


def test_sigterm_reaches_a_grandchild_and_leaves_it_time_to_finish(tmp_path: Path) -> None:
    # As with dvc: the command itself goes at once, the stage below it is the one with work to save.
    saver = tmp_path / "saver.py"
    saver.write_text(
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(1.5)\n"
        "    open('saved', 'w').close()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    middle = f"import subprocess, sys; subprocess.call([sys.executable, {str(saver)!r}])"

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise.run(
            [sys.executable, "-c", middle], tmp_path, env=os.environ, on_line=stop, on_progress=stop
        )
    assert (tmp_path / "saved").exists()


@linux
def test_the_group_is_ended_when_the_shim_itself_is_killed(tmp_path: Path) -> None:
    def kill_the_shim(line: str) -> None:
        os.kill(int(line), signal.SIGKILL)

    code = supervise.run(
        ["sh", "-c", "echo $PPID; sleep 600"],
        tmp_path,
        env=os.environ,
        on_line=kill_the_shim,
        on_progress=kill_the_shim,
    )
    assert code == 137


@linux
def test_as_a_program_it_ends_its_command_on_sigterm(family: Family) -> None:
    shim = subprocess.Popen(
        [sys.executable, "-m", "tasks.supervise", "--", *family.command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    assert wait_until(family.is_complete, 20)
    shim.terminate()
    assert shim.wait(8) == 143
    assert not family.survivors()


# --- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_exit_code_is_the_command_s(tmp_path: Path, script: str, code: int) -> None:
    assert run(["sh", "-c", script], tmp_path)[0] == code


def test_a_command_that_is_not_there_is_127_and_a_line(tmp_path: Path) -> None:
    code, lines, _ = run(["no-such-command"], tmp_path)
    assert code == 127
    assert lines == ["no-such-command: No such file or directory"]


def test_as_a_program_without_a_command_it_says_how_to_call_it() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "tasks.supervise", "--"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("usage: python -m tasks.supervise")


def test_the_command_runs_where_and_with_what_it_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    supervise.run(
        ["sh", "-c", 'pwd; echo "$COLOUR"; cat'],
        tmp_path,
        env={"COLOUR": "green", "PATH": os.environ["PATH"]},
        on_line=lines.append,
        on_progress=lines.append,
    )
    assert lines == [str(tmp_path), "green"]


def test_standard_output_and_error_arrive_in_the_order_of_writing(tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done"
    _, lines, _ = run(["sh", "-c", script], tmp_path)
    assert lines == [f"{name} {i}" for i in range(1, 6) for name in ("out", "err")]


def test_a_line_arrives_while_the_command_still_runs(tmp_path: Path) -> None:
    arrived: list[float] = []
    supervise.run(
        ["sh", "-c", "echo now; sleep 1"],
        tmp_path,
        env=os.environ,
        on_line=lambda _: arrived.append(time.monotonic()),
        on_progress=lambda _: None,
    )
    assert time.monotonic() - arrived[0] > 0.8


def test_large_output_is_complete(tmp_path: Path) -> None:
    count = 200_000
    code, lines, _ = run(["seq", str(count)], tmp_path)
    assert code == 0
    assert lines == [str(i) for i in range(1, count + 1)]


def test_bytes_that_are_not_text_are_replaced(tmp_path: Path) -> None:
    _, lines, _ = run(["printf", r"caf\303\251 \377\n"], tmp_path)
    assert lines == ["café �"]


def test_tqdm_is_progress_and_what_stays_of_it_is_a_line(tmp_path: Path) -> None:
    script = (
        "from tqdm import tqdm\n"
        "for leave in (False, True):\n"
        "    for _ in tqdm(range(3), mininterval=0, leave=leave): pass\n"
        "print('done')\n"
    )
    _, lines, progress = run([sys.executable, "-u", "-c", script], tmp_path)
    assert lines[-1] == "done"
    assert ["100%" in line for line in lines[:-1]] == [True]
    assert any(" 33%" in text for text in progress)
    assert len(progress) >= 6


@pytest.mark.parametrize(
    ("chunks", "lines", "progress"),
    [
        ([b"a\nb\n"], ["a", "b"], []),
        ([b"a", b"b\n"], ["ab"], []),
        ([b"a\r\nb"], ["a", "b"], []),
        ([b"a\r", b"\nb\n"], ["a", "b"], ["a"]),
        ([b"10%\r20%\r", b"30%\r"], [], ["10%", "20%", "30%"]),
        ([b"\r10%", b"\r20%", b"\r   \r", b"end\n"], ["end"], ["10%", "20%"]),
        ([b"\r10%", b"\n", b"next"], ["10%", "next"], ["10%"]),
        ([b"\xc3", b"\xa9\n"], ["é"], []),
        ([b"\n\n"], ["", ""], []),
        ([b"x" * (1 << 17)], ["x" * (1 << 17)], []),
    ],
)
def test_splitter(chunks: list[bytes], lines: list[str], progress: list[str]) -> None:
    got_lines: list[str] = []
    got_progress: list[str] = []
    splitter = Splitter(got_lines.append, got_progress.append)
    for chunk in chunks:
        splitter.feed(chunk)
    splitter.close()
    assert got_lines == lines
    assert [text for text in got_progress if text.strip()] == progress
