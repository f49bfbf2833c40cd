"""Stages that are run as dvc runs them: what they say, how they end, a disk that is full."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.kd.errors import (
    CacheStaleError,
    KDError,
    StageError,
    TransientError,
)
from tasks.versioning.telling import reproduce
from tests.makers.dvc_repository import (
    dvc,
    edit,
    first,
    ignore,
)

# DVC asks pygtrie for something that pygtrie wants to withdraw.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning")


# --- reproduce ----------------------------------------------------------------------------------


def test_output_of_a_stage_streams_without_dvc_s_advice(fresh: Path) -> None:
    lines: list[str] = []
    progress: list[str] = []
    reproduce(fresh, first(fresh), on_line=lines.append, on_progress=progress.append)
    assert lines == [
        "Running stage 'fetch_sources@tiny':",
        "> python stage.py fetch_sources params/tiny.yaml",
        "fetch_sources at work",
        "100%",
    ]
    assert progress == [" 50%"]


def test_a_stage_runs_with_this_python_in_a_plain_shell(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("SHELL", "/no/such/shell")
    edit(fresh / "stage.py", "import json", "import sys; print(sys.executable)\nimport json")
    lines: list[str] = []
    reproduce(fresh, first(fresh), on_line=lines.append, on_progress=ignore)
    assert str(Path(sys.executable).parent / "python") in lines


@pytest.mark.parametrize(
    ("record", "kind", "transient"),
    [
        ({"type": "CacheStaleError", "message": "old", "transient": False}, CacheStaleError, False),
        ({"type": "TransientError", "message": "net", "transient": True}, TransientError, True),
        ({"type": "Unheard", "message": "what", "transient": True}, StageError, True),
    ],
)
def test_a_stage_s_own_error_is_raised_again(
    fresh: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: dict[str, object],
    kind: type[KDError],
    transient: bool,
) -> None:
    monkeypatch.setenv("FAULT", "named")
    monkeypatch.setenv("RECORD", json.dumps(record))
    with pytest.raises(KDError) as caught:
        reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)
    assert type(caught.value) is kind
    assert str(caught.value) == record["message"]
    assert caught.value.transient is transient


def test_without_a_record_the_last_lines_are_the_message_and_an_old_record_does_not_count(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fresh / ".work" / "errors" / "tiny.fetch_sources.json"
    old.parent.mkdir(parents=True)
    old.write_text('{"type": "CacheStaleError", "message": "of last week", "transient": false}')
    monkeypatch.setenv("FAULT", "crash")
    with pytest.raises(StageError, match=r"fetch_sources@tiny .*255(?s:.*)RuntimeError: a bug"):
        reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)


def test_a_stage_that_was_killed_says_what_may_have_killed_it(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "killed")
    with pytest.raises(StageError, match="out of memory"):
        reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)


def test_a_record_that_is_cut_short_is_no_record(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "crash")
    stage = first(fresh)

    def cut(_: str) -> None:
        record = fresh / ".work" / "errors" / "tiny.fetch_sources.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text('{"type": "Cache')

    with pytest.raises(StageError, match="named no error"):
        reproduce(fresh, stage, on_line=cut, on_progress=ignore)


def test_a_stage_ends_with_whoever_asked_for_it(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "hang")

    def stop(line: str) -> None:
        if line == "fetch_sources at work":
            while not (fresh / "stage.pid").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(fresh, first(fresh), on_line=stop, on_progress=ignore)
    with pytest.raises(ProcessLookupError):
        os.kill(int((fresh / "stage.pid").read_text()), 0)
    monkeypatch.delenv("FAULT")
    reproduce(fresh, first(fresh), on_line=ignore, on_progress=ignore)
    assert first(fresh).reasons == (), "no lock is left behind"


# --- a disk that is full --------------------------------------------------------------------------


@pytest.fixture
def no_room(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The first stage makes a file that DVC can't write, as on a full disk, until there is room.

    The stage itself lifts the limit on the size of files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    lift = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({hard}, {hard}))\n"
    edit(fresh / "stage.py", "import json", f"{lift}import json")
    edit(
        fresh / "stage.py",
        '(out / "made")',
        '(out / "large").write_bytes(bytes(17 << 20))\n(out / "made")',
    )

    def make_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, hard))
    yield make_room
    make_room()


def test_an_out_that_dvc_could_not_store_is_said_and_can_be_stored_without_another_run(
    fresh: Path, no_room: Callable[[], None]
) -> None:
    lines: list[str] = []
    with pytest.raises(StageError) as caught:
        reproduce(fresh, first(fresh), on_line=lines.append, on_progress=ignore)
    said = "DVC could not store what a stage made: artifacts/tiny/fetch_sources. It is whole,"
    assert str(caught.value).startswith(said)
    assert "File too large" in str(caught.value)
    assert "fetch_sources at work" in lines
    assert first(fresh).reasons == ("output artifacts/tiny/fetch_sources is not in DVC's cache",)
    no_room()
    command = str(caught.value).partition("Run: dvc ")[2].split()
    dvc(fresh, *command)
    assert first(fresh).reasons == ()
    lines.clear()
    reproduce(fresh, first(fresh), on_line=lines.append, on_progress=ignore)
    assert "fetch_sources at work" not in lines


def test_a_dvc_that_ends_on_a_full_disk_says_what_may_be_kept(
    fresh: Path, no_room: Callable[[], None]
) -> None:
    stage = first(fresh)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    with pytest.raises(
        StageError, match=r"seems to be full(?s:.*)dvc commit -f fetch_sources@tiny"
    ):
        reproduce(fresh, stage, on_line=ignore, on_progress=ignore)
