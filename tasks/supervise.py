"""Run a command whose whole process tree ends when we end, however that happens.

    run()  ->  shim: this file as a program, in a session of its own  ->  the command and its own

On Linux the shim is the *reaper* of everything below it: a process whose parent died becomes the
shim's child, even one with a session of its own, so no descendant can escape. When the process
that called `run` dies, even of SIGKILL, the kernel wakes the shim, which kills them all. Elsewhere
the shim notices within half a second that its parent is gone and ends the command's process group;
a descendant with a session of its own outlives that.

A request to stop (SIGTERM to the shim) goes to every descendant as SIGTERM. Processes that still
live after the grace period are killed. A second request kills at once.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import math
import os
import platform
import re
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import FrameType

GRACE_S = 10.0
_POLL_S = 0.5  # a lost parent is noticed within this time, even if the kernel sends no signal
_LINGER_S = 1.0  # processes that outlive the command have this long to end by themselves
_MARGIN_S = 5.0  # the shim's own time, on top of the grace period
_MAX_LINE = 1 << 16
_LINUX = platform.system() == "Linux"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

# --- in the process that asks -------------------------------------------------------------------


def run(
    argv: Sequence[str],
    cwd: Path,
    *,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
    grace_s: float = GRACE_S,
) -> int:
    """Run a command to its end and return its exit code: 128 + n if signal n ended it.

    Standard output and error arrive merged, in order, as UTF-8 text. `on_line` gets each line that
    ends in a newline; `on_progress` gets each text that ends in a carriage return, to be
    overwritten. Anything raised meanwhile (KeyboardInterrupt, a cancellation, an error of a
    callback) first ends the whole tree: SIGTERM, `grace_s` seconds, SIGKILL.
    """
    options = ["--parent", str(os.getpid()), "--grace", str(grace_s), "--"]
    shim = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *options, *argv],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        splitter = Splitter(on_line, on_progress)
        _pump(shim, splitter.feed, math.inf)
        splitter.close()
    except BaseException:
        _stop(shim, grace_s)
        raise
    finally:
        _end_group(shim)
    return shim.returncode if shim.returncode >= 0 else 128 - shim.returncode


class Splitter:
    """A byte stream cut into lines (newline) and progress (carriage return)."""

    def __init__(self, on_line: Callable[[str], None], on_progress: Callable[[str], None]) -> None:
        self._on_line, self._on_progress = on_line, on_progress
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._overwrites = False
        self._shown = ""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes and call back for every complete text in them."""
        text = self._rest + self._decoder.decode(chunk)
        # A carriage return at the very end may be the first half of a line's "\r\n".
        pieces = re.split(r"(\r\n|\n|\r(?!\Z))", text)
        self._rest = pieces.pop()
        for piece, end in zip(pieces[::2], pieces[1::2], strict=True):
            if end == "\r":
                self._progress(piece)
            else:
                self._line(piece)
        if self._overwrites or self._rest.endswith("\r"):
            self._progress(self._rest.rstrip("\r"))
        if len(self._rest) > _MAX_LINE:
            self._line(self._rest)
            self._rest = ""

    def close(self) -> None:
        """End the stream: the rest is a line, unless it is progress, which was shown already."""
        rest = self._rest + self._decoder.decode(b"", final=True)
        if rest.strip() and not rest.endswith("\r"):
            self._line(rest)
        self._rest = ""

    def _line(self, text: str) -> None:
        self._overwrites, self._shown = False, ""
        self._on_line(text)

    def _progress(self, text: str) -> None:
        self._overwrites = True
        if text.strip() and text != self._shown:
            self._shown = text
            self._on_progress(text)


def _pump(shim: subprocess.Popen[bytes], feed: Callable[[bytes], None], deadline: float) -> None:
    """Pass output on until the shim has ended and its pipe is empty, or until the deadline."""
    if shim.stdout is None or shim.stdout.closed:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(shim.stdout, selectors.EVENT_READ)
        # Waits are short, since a cancellation is raised in this thread only between instructions.
        while time.monotonic() < deadline:
            if selector.select(_POLL_S / 2):
                chunk = os.read(shim.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                feed(chunk)
            elif shim.poll() is not None:
                return  # the shim was killed, and a descendant still holds the pipe
    while shim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def _stop(shim: subprocess.Popen[bytes], grace_s: float) -> None:
    try:
        shim.terminate()
        _pump(shim, _discard, time.monotonic() + grace_s + _MARGIN_S)
    finally:
        if shim.poll() is None:
            shim.terminate()
            _pump(shim, _discard, time.monotonic() + _MARGIN_S)


def _discard(_: bytes) -> None:
    """Drop the output of a command that is being stopped, so that it never waits for a reader."""


def _end_group(shim: subprocess.Popen[bytes]) -> None:
    """Kill the shim's process group, which the command shares, if the shim was killed."""
    if shim.poll() is None or shim.returncode < 0:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(shim.pid, signal.SIGKILL)
    shim.wait()
    if shim.stdout is not None:
        shim.stdout.close()


# --- the shim -----------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """`python -m tasks.supervise [--parent PID] [--grace SECONDS] -- command...`."""
    if "--" not in argv or argv[-1] == "--":
        sys.stderr.write("usage: python -m tasks.supervise [--grace SECONDS] -- command...\n")
        return 2
    cut = list(argv).index("--")
    options = dict(zip(argv[:cut:2], argv[1:cut:2], strict=False))
    parent = int(options.get("--parent", os.getppid()))
    code = _watch(list(argv[cut + 1 :]), parent, float(options.get("--grace", GRACE_S)))
    return code if code >= 0 else 128 - code


def _watch(command: list[str], parent: int, grace_s: float) -> int:
    requests, wake = _listen()
    _become_reaper()
    if os.getppid() != parent:
        return -signal.SIGKILL  # the parent died before we could ask for its signal
    try:
        child = _start(command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    deadline = math.inf
    code, alone = _reap(child, None)
    while not alone:
        now = time.monotonic()
        if deadline == math.inf and requests:
            # The grace period stands even if the command ends first: dvc ends at once, while the
            # stage below it writes a checkpoint.
            deadline = now + grace_s
            _ask_all(child)
        elif deadline == math.inf and code is not None:
            deadline = now + _LINGER_S
        if os.getppid() != parent or len(requests) > 1 or now >= deadline:
            code = _kill_all(child, code)
            break
        _sleep(wake, min(_POLL_S, deadline - now))
        code, alone = _reap(child, code)
    return -signal.SIGKILL if code is None else code


def _listen() -> tuple[list[int], int]:
    """A list that collects requests to stop, and a descriptor that any signal makes readable."""
    requests: list[int] = []
    wake, alarm = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)

    def request(number: int, _: FrameType | None) -> None:
        requests.append(number)

    def notice(_: int, __: FrameType | None) -> None: ...

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, request)
    for number in (signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, notice)
    return requests, wake


def _become_reaper() -> None:
    if _LINUX:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        # SIGUSR1 only wakes us to see whether the parent still lives. The kernel sends it when the
        # *thread* that started us ends, which need not be the end of its process.
        for option, value in ((_PR_SET_PDEATHSIG, signal.SIGUSR1), (_PR_SET_CHILD_SUBREAPER, 1)):
            if prctl(option, int(value), 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl")


def _start(command: list[str]) -> int:
    # Python ignores these two signals; the command must get a shell's defaults.
    defaults = [signal.SIGPIPE, signal.SIGXFSZ]
    if _LINUX:
        return os.posix_spawnp(command[0], command, os.environ, setsigdef=defaults)
    return os.posix_spawnp(command[0], command, os.environ, setsigdef=defaults, setpgroup=0)


def _reap(child: int, code: int | None) -> tuple[int | None, bool]:
    """Collect ended children. Returns the command's exit code if known, and whether all ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, True
        if pid == 0:
            return code, False
        if pid == child:
            code = os.waitstatus_to_exitcode(status)


def _kill_all(child: int, code: int | None) -> int | None:
    """Send SIGKILL until no child is left. Killed parents' children become ours and are next."""
    deadline = time.monotonic() + _MARGIN_S
    alone = False
    while not alone and time.monotonic() < deadline:
        _signal_all(child, signal.SIGKILL)
        time.sleep(0.005)
        code, alone = _reap(child, code)
    return code


def _ask_all(child: int) -> None:
    """Send SIGTERM once to each process, until no new one appears.

    One reading of /proc misses processes that start, or become ours, in the meantime.
    """
    asked: set[int] = set()
    while new := _signal_all(child, signal.SIGTERM, but=asked):
        asked |= new


def _signal_all(child: int, number: signal.Signals, *, but: Set[int] = frozenset()) -> set[int]:
    """Signal the whole tree except `but`. Returns the signalled processes; none without /proc."""
    signalled: set[int] = set()
    if _LINUX:
        for pid in _descendants():
            if pid not in but:
                signalled.add(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, number)
    return signalled


def _descendants() -> list[int]:
    """Every process below this one, parents before children."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # `pid (name) state ppid ...`; the name may hold blanks and brackets
            fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(process.name))
    below = [os.getpid()]
    for pid in below:
        below.extend(children.get(pid, ()))
    return below[1:]


def _sleep(wake: int, seconds: float) -> None:
    select.select([wake], [], [], max(0.0, seconds))
    with contextlib.suppress(BlockingIOError):
        while os.read(wake, 1024):
            pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
