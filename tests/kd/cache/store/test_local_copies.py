"""Bounded copies of a remote store's files, shared by threads and processes."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.kd.cache.store import copies as local_copies
from tasks.kd.cache.store.copies import LocalCopies
from tasks.kd.cache.store.remote import Remote
from tasks.kd.errors import (
    CacheCorruptError,
    CacheError,
    CacheFormatError,
    CacheQuotaError,
    ParamsError,
)
from tests.makers.remote_stores import (
    ENTRY,
    SIZES,
    File,
    make_content,
    make_entry,
    make_file,
    raw,
    run_at_once,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store" / ENTRY


@pytest.fixture
def files(folder: Path) -> list[File]:
    return make_entry(folder, SIZES)


@pytest.fixture
def near(tmp_path: Path, folder: Path, files: list[File]) -> Remote:
    """A store that costs no server."""
    store = Remote(f"file://{tmp_path}/remote")
    store.upload(folder, files)
    return store


def make_many(folder: Path, sizes: dict[str, int]) -> tuple[Remote, list[File]]:
    """A store with an entry of files of these sizes."""
    made = make_entry(folder, sizes)
    remote = Remote(f"file://{folder.parent.parent}/far")
    remote.upload(folder, made)
    return remote, made


def kept(folder: Path) -> dict[str, int]:
    """Name to bytes of the copies."""
    return {path.name: path.stat().st_size for path in folder.glob("[!.]*/*")}


def count_fetches(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    fetched: list[str] = []
    fetch = remote.fetch

    def counting(entry: str, file: Any, temporary: Path) -> None:
        fetched.append(file.name)
        fetch(entry, file, temporary)

    monkeypatch.setattr(remote, "fetch", counting)
    return fetched


def test_a_copy_is_fetched_once_and_read_from_then_on(
    near: Remote,
    folder: Path,
    files: list[File],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched = count_fetches(near, monkeypatch)
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=100_000)
    for _ in range(3):
        for file in files:
            path = copies.path(ENTRY, file)
            assert path.read_bytes() == (folder / file.name).read_bytes()
    assert fetched == list(SIZES)
    again = LocalCopies(tmp_path / "copies", near, limit_bytes=100_000)
    assert again.path(ENTRY, files[1]).stat().st_size == files[1].bytes
    assert len(fetched) == 3


def test_the_bound_holds_and_the_least_recently_used_goes(folder: Path, tmp_path: Path) -> None:
    remote, files = make_many(folder, dict.fromkeys("abcd", 100) | {"big": 250})
    here = tmp_path / "copies"
    copies = LocalCopies(here, remote, limit_bytes=300)
    # What is asked for, and what is there afterwards.
    for name, there in [
        ("a", "a"),
        ("b", "ab"),
        ("c", "abc"),
        ("a", "abc"),
        ("d", "acd"),
        ("c", "acd"),
        ("b", "bcd"),
    ]:
        copies.path(ENTRY, files["abcd".index(name)])
        assert set(kept(here)) == set(there)
        assert sum(kept(here).values()) <= 300
    copies.path(ENTRY, files[4])
    assert kept(here) == {"big": 250}


def test_a_lower_limit_holds_from_the_start(folder: Path, tmp_path: Path) -> None:
    remote, files = make_many(folder, dict.fromkeys("abc", 100))
    here = tmp_path / "copies"
    copies = LocalCopies(here, remote, limit_bytes=300)
    for file in (files[1], files[2], files[0]):
        copies.path(ENTRY, file)
    LocalCopies(here, remote, limit_bytes=200)
    assert set(kept(here)) == {"a", "c"}


def test_what_is_evicted_leaves_no_folder(near: Remote, files: list[File], tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=100_000)
    copies.path(ENTRY, files[0])
    LocalCopies(tmp_path / "copies", near, limit_bytes=10)
    assert list((tmp_path / "copies").glob("[!.]*")) == []


def test_room_is_made_before_a_download_and_again_when_it_is_placed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, files = make_many(folder, dict.fromkeys("abcd", 100))
    here, fetch = tmp_path / "copies", remote.fetch
    copies = LocalCopies(here, remote, limit_bytes=200)
    for file in files[:2]:
        copies.path(ENTRY, file)

    def fetch_while_another_places(entry: str, file: Any, temporary: Path) -> None:
        assert set(kept(here)) == {"b"}
        other = here / ("c" * 64) / "c"
        other.parent.mkdir()
        other.write_bytes(bytes(100))
        fetch(entry, file, temporary)

    monkeypatch.setattr(remote, "fetch", fetch_while_another_places)
    copies.path(ENTRY, files[3])
    assert set(kept(here)) == {"c", "d"}


def test_a_file_larger_than_the_bound_is_refused_with_both_numbers(
    near: Remote, files: list[File], tmp_path: Path
) -> None:
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=69_999)
    copies.path(ENTRY, files[0])
    with pytest.raises(CacheQuotaError, match=r"at most 69999 bytes, found 70000 bytes"):
        copies.path(ENTRY, files[1])
    assert set(kept(tmp_path / "copies")) == {files[0].name}


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_copy_is_found_at_first_use_and_fetched_again(
    damage: str,
    near: Remote,
    folder: Path,
    files: list[File],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6).path(ENTRY, files[1])
    content = bytearray(path.read_bytes())
    content[123] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-1])
    fetched = count_fetches(near, monkeypatch)
    later = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6).path(ENTRY, files[1])
    assert later.read_bytes() == (folder / files[1].name).read_bytes()
    assert fetched == [files[1].name]


def test_a_copy_truncated_after_its_first_use_is_found(
    near: Remote, files: list[File], tmp_path: Path
) -> None:
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6)
    path = copies.path(ENTRY, files[1])
    path.write_bytes(b"short")
    assert copies.path(ENTRY, files[1]).stat().st_size == files[1].bytes


def test_a_copy_of_another_content_under_the_same_name_is_not_taken(
    near: Remote, folder: Path, files: list[File], tmp_path: Path
) -> None:
    """One process may follow an entry's old manifest while another follows the new one."""
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6)
    old = copies.path(ENTRY, files[0]).read_bytes()
    changed = make_file(folder, files[0].name, bytes(len(old)))
    near.upload(folder, [changed, *files[1:]])
    other = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6)
    assert other.path(ENTRY, changed).read_bytes() == bytes(len(old))
    assert copies.path(ENTRY, files[0]).read_bytes() == old
    LocalCopies(tmp_path / "copies", near, limit_bytes=0)
    with pytest.raises(CacheCorruptError):
        copies.path(ENTRY, files[0])


@pytest.mark.parametrize("digest", ["", "0" * 63, "../" * 21 + "x", "A" * 64])
def test_a_digest_that_is_none_is_refused(digest: str, near: Remote, tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6)
    with pytest.raises(CacheFormatError, match="not a digest"):
        copies.path(ENTRY, File("slices", 0, digest))


def test_a_corrupt_object_never_becomes_a_copy(
    near: Remote, files: list[File], tmp_path: Path
) -> None:
    driver, place = raw(near)
    driver.pipe_file(f"{place}/{files[0].name}", b"x" * files[0].bytes)
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6)
    for _ in range(2):
        with pytest.raises(CacheCorruptError):
            copies.path(ENTRY, files[0])
    assert kept(tmp_path / "copies") == {}
    assert list((tmp_path / "copies" / ".coming").glob("*.part")) == []


def test_what_is_memory_mapped_stays_readable_when_it_is_evicted(
    folder: Path, tmp_path: Path
) -> None:
    remote, files = make_many(folder, {"a": 100, "b": 100})
    copies = LocalCopies(tmp_path / "copies", remote, limit_bytes=100)
    with (
        copies.path(ENTRY, files[0]).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        copies.path(ENTRY, files[1])
        assert set(kept(tmp_path / "copies")) == {"b"}
        assert mapped[:] == make_content("a", 100)


def test_a_copy_evicted_between_looking_and_marking_is_fetched_again(
    near: Remote, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6)
    copies.path(ENTRY, files[0])
    marked: list[Path] = []

    def evict_then_mark(path: Path) -> None:
        if not marked:
            path.unlink()
        marked.append(path)
        mark(path)

    mark = local_copies._touch
    monkeypatch.setattr(local_copies, "_touch", evict_then_mark)
    assert copies.path(ENTRY, files[0]).read_bytes()
    assert len(marked) > 1


def test_a_folder_with_other_things_is_refused(
    near: Remote, files: list[File], tmp_path: Path
) -> None:
    (tmp_path / "precious" / "thesis").mkdir(parents=True)
    (tmp_path / "precious" / "thesis" / "chapter").write_bytes(b"years")
    with pytest.raises(ParamsError, match="holds other things"):
        LocalCopies(tmp_path / "precious", near, limit_bytes=0)
    assert (tmp_path / "precious" / "thesis" / "chapter").exists()


def test_a_folder_that_can_t_be_made_is_named(near: Remote, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="can't be read or written"):
        LocalCopies(tmp_path / "file" / "copies", near, limit_bytes=1)


def test_a_disk_that_fills_up_is_named_and_nothing_is_left_behind(
    near: Remote, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6)
    monkeypatch.setattr("tasks.kd.cache.store.copies.commit_file", fill)
    with pytest.raises(CacheQuotaError, match="No space left"):
        copies.path(ENTRY, files[0])
    assert kept(tmp_path / "copies") == {}


def test_one_of_those_that_want_a_file_fetches_it_and_the_others_wait(
    near: Remote, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = count_fetches(near, monkeypatch)
    both = threading.Barrier(2)
    opened = [LocalCopies(tmp_path / "copies", near, limit_bytes=10**6) for _ in range(2)]

    def ask(copies: LocalCopies) -> None:
        both.wait()
        for file in files:
            copies.path(ENTRY, file)

    assert run_at_once([lambda copies=copies: ask(copies) for copies in opened]) == []  # type: ignore[misc]
    assert sorted(fetched) == sorted(SIZES)


def test_files_are_downloaded_in_parallel(
    near: Remote, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two downloads waits for the other to have begun: one after the other would hang."""
    both, fetch = threading.Barrier(2, timeout=60), near.fetch

    def fetch_together(entry: str, file: Any, temporary: Path) -> None:
        both.wait()
        fetch(entry, file, temporary)

    monkeypatch.setattr(near, "fetch", fetch_together)
    opened = [LocalCopies(tmp_path / "copies", near, limit_bytes=10**6) for _ in range(2)]
    faults = run_at_once(
        [
            lambda: opened[0].path(ENTRY, files[0]),
            lambda: opened[1].path(ENTRY, files[1]),
        ]
    )
    assert faults == []


def test_a_lock_ends_although_a_forked_child_has_its_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors: list[int] = []

    def open_and_fork(*asked: Any) -> int:
        descriptors.append(real(*asked))
        descriptors.append(os.dup(descriptors[-1]))  # what a fork does
        return descriptors[-2]

    real = os.open
    with monkeypatch.context() as patch:
        patch.setattr("tasks.kd.cache.store.copies.os.open", open_and_fork)
        with local_copies._locked(tmp_path / "lock"):
            pass
    with local_copies._locked(tmp_path / "lock", wait=False):
        os.close(descriptors[1])


PREAMBLE = """
import fcntl, hashlib, os, random, signal, sys
from dataclasses import dataclass
from pathlib import Path
from tasks.kd.cache.store.remote import Remote
from tasks.kd.cache.store.copies import LocalCopies

@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str

url, folder, limit, seed, *listed = sys.argv[1:]
remote, folder = Remote(url), Path(folder)
files = [File(name, int(size), digest) for name, size, digest in (f.split(":") for f in listed)]
copies = LocalCopies(folder, remote, limit_bytes=int(limit))
"""
SHARE = """
draw = random.Random(seed)
for _ in range(150):
    file = draw.choice(files)
    while True:
        try:
            content = copies.path("9f2c", file).read_bytes()
            break
        except FileNotFoundError:
            pass
    assert hashlib.sha256(content).hexdigest() == file.sha256
    with (folder / ".copies.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sum(path.stat().st_size for path in folder.glob("[!.]*/*")) <= int(limit)
print("shared")
"""
DIE = """
def fetch(entry, file, temporary):
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
remote.fetch = fetch
copies.path("9f2c", files[0])
"""


def start(
    program: str, root: Path, remote: Remote, here: Path, *, limit: int, files: list[File]
) -> subprocess.Popen[str]:
    listed = [f"{file.name}:{file.bytes}:{file.sha256}" for file in files]
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + program, remote._url, here, str(limit), "1", *listed],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_share_a_folder_within_its_bound(
    root: Path, folder: Path, tmp_path: Path
) -> None:
    remote, files = make_many(folder, {f"f{n}": 1000 + 100 * n for n in range(8)})
    here = tmp_path / "copies"
    running = [start(SHARE, root, remote, here, limit=4000, files=files) for _ in range(2)]
    ended = [(*process.communicate(), process.returncode) for process in running]
    assert ended == [("shared\n", "", 0)] * 2
    assert 0 < sum(kept(here).values()) <= 4000
    assert list((here / ".coming").glob("*.part")) == []


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_fetches_is_not(
    root: Path,
    near: Remote,
    files: list[File],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "copies"
    dead = start(DIE, root, near, here, limit=10**6, files=files[:1])
    dead.communicate()
    assert dead.returncode == -signal.SIGKILL
    assert len(parts(here)) == 1
    copies, fetch = LocalCopies(here, near, limit_bytes=10**6), near.fetch
    assert parts(here) == []

    def fetch_while_another_opens(entry: str, file: Any, temporary: Path) -> None:
        fetch(entry, file, temporary)
        LocalCopies(here, near, limit_bytes=10**6)
        assert parts(here) == [temporary]

    monkeypatch.setattr(near, "fetch", fetch_while_another_opens)
    assert copies.path(ENTRY, files[0]).exists()
    assert parts(here) == []


def parts(here: Path) -> list[Path]:
    return list((here / ".coming").glob("*.part"))


def test_use_is_marked_finer_than_the_kernel_would(
    near: Remote, files: list[File], tmp_path: Path
) -> None:
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=10**6)
    before = time.time_ns()
    marks = [copies.path(ENTRY, file).stat().st_mtime_ns for file in [*files, *files]]
    assert before < marks[0]
    assert marks == sorted(set(marks))
