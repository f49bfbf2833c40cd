"""Clearing a store: what no recipe needs goes, what is needed or in use does not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.kd.cache.care.clearing import TRIAL_S, Waste, find_waste, remove
from tasks.kd.cache.care.entries import Kept, Needs, open_kept, read_entries
from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.store.store import Store, open_cache_store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.data.examples.prepared import Split
from tasks.kd.errors import CacheCorruptError, CacheError
from tests.isolation import ROOT
from tests.makers.caches import make_job, make_params, open_written, write

Copied = tuple[CacheJob, Manifest, Path]
NOTHING = Needs({}, {})
HOLD = """
import sys
from pathlib import Path
from tasks.kd.cache.store.store import Store
store, how, name = Store(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
if how == "use":
    leave = store.use([name])
    print("held", flush=True)
    sys.stdin.read()
else:
    with store.writing([name]):
        print("held", flush=True)
        sys.stdin.read()
"""


@contextmanager
def held(folder: Path, how: str, name: str) -> Iterator[None]:
    """Another process that uses or writes an entry; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how, name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "held\n"
        yield
        process.kill()


def names_of(waste: list[Waste]) -> set[str]:
    return {one.name for one in waste}


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make_old(folder: Path) -> None:
    """As if nothing had touched it since longer than a trial can take."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (0, path.stat().st_mtime - TRIAL_S - 60))


# --- what goes -----------------------------------------------------------------------------------


def test_what_a_recipe_needs_stays_and_serves(copied: Copied, split: Split) -> None:
    job, manifest, store = copied
    other = write(make_job(split, make_params(codec="int8", streams=("hidden.2",))), store)
    kept, needs = Kept(Store(store)), Needs({"x": manifest}, {})
    waste = find_waste(kept, needs, remote=False)
    assert names_of(waste) == {other.fingerprint, *(e.fingerprint for e in other.entries)}
    assert all(remove(kept, one) for one in waste)
    assert find_waste(kept, needs, remote=False) == []
    assert open_written(job, manifest, store).fetch(split.input_ids[:4])
    assert names_of(find_waste(kept, NOTHING, remote=False)) == {
        entry.fingerprint for entry in (manifest, *manifest.entries)
    }


def test_all_that_is_left_of_an_entry_are_its_very_locks(copied: Copied) -> None:
    """A writer that waits for `lock` while it is cleared must get the one that others see."""
    _, manifest, store = copied
    folder = store / manifest.streams["hidden.2"].fingerprint
    lock = (folder / "lock").stat().st_ino
    kept = Kept(Store(store))
    (waste,) = [one for one in find_waste(kept, NOTHING, remote=False) if one.name == folder.name]
    before = sum(p.stat().st_size for p in folder.iterdir() if p.name not in ("lock", "use"))
    assert waste.bytes == before
    assert remove(kept, waste)
    assert left_in(folder) == {"lock", "use"}
    assert (folder / "lock").stat().st_ino == lock
    assert folder.name not in {entry.fingerprint for entry in read_entries(kept, NOTHING)}


def test_the_manifest_goes_first(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    _, manifest, store = copied
    gone: list[str] = []
    unlink = Path.unlink

    def note(path: Path, missing_ok: bool = False) -> None:
        gone.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", note)
    kept = Kept(Store(store))
    name = manifest.streams["hidden.2"].fingerprint
    for one in find_waste(kept, NOTHING, remote=False):
        if one.name == name:
            assert remove(kept, one)
    assert gone[0] == "manifest.json"
    assert len(gone) > 3


def test_an_unfinished_entry_goes_once_its_writer_is_gone(copied: Copied) -> None:
    _, manifest, folder = copied
    name = manifest.streams["hidden.2"].fingerprint
    (folder / name / "manifest.json").unlink()
    kept = Kept(Store(folder))
    with held(folder, "write", name):
        (waste,) = [w for w in find_waste(kept, NOTHING, remote=False) if w.name == name]
        assert (waste.in_use, waste.why) == (True, "being written")
        assert not remove(kept, waste)
        assert "shard-00000.safetensors" in left_in(folder / name)
    (waste,) = [w for w in find_waste(kept, NOTHING, remote=False) if w.name == name]
    assert (waste.in_use, waste.why) == (False, "unfinished, and its writer is gone")
    assert remove(kept, waste)
    assert left_in(folder / name) == {"lock", "use"}


def test_an_unfinished_entry_that_a_recipe_needs_stays_as_its_writer_goes_on_with_it(
    copied: Copied,
) -> None:
    _, manifest, store = copied
    (store / manifest.streams["hidden.2"].fingerprint / "manifest.json").unlink()
    assert find_waste(Kept(Store(store)), Needs({"x": manifest}, {}), remote=False) == []


def test_a_damaged_manifest_goes_if_no_recipe_needs_it(copied: Copied) -> None:
    _, manifest, store = copied
    name = manifest.streams["hidden.2"].fingerprint
    (store / name / "manifest.json").write_text("{}")
    kept = Kept(Store(store))
    (waste,) = [w for w in find_waste(kept, NOTHING, remote=False) if w.name == name]
    assert waste.why == "damaged, and no recipe needs it"
    assert remove(kept, waste)


def test_temporaries_of_a_dead_writer_go_and_nothing_else_of_the_entry(copied: Copied) -> None:
    _, manifest, store = copied
    name = manifest.streams["hidden.2"].fingerprint
    before = left_in(store / name)
    kept, needs = Kept(Store(store)), Needs({"x": manifest}, {})
    with held(store, "write", name):
        (store / name / ".shard-00007.safetensors.123.tmp").write_bytes(b"x" * 100)
        (waste,) = find_waste(kept, needs, remote=False)
        assert waste.in_use
        assert not remove(kept, waste)
    (waste,) = find_waste(kept, needs, remote=False)
    assert (waste.kind, waste.bytes, waste.in_use) == ("temporary", 100, False)
    assert remove(kept, waste)
    assert left_in(store / name) == before | {"use"}


def test_a_trial_goes_when_it_is_old_enough_to_be_over(copied: Copied) -> None:
    _, manifest, store = copied
    (store / "trial-abc" / "deeper").mkdir(parents=True)
    (store / "trial-abc" / "deeper" / "0").write_bytes(b"x" * 10)
    kept, needs = Kept(Store(store)), Needs({"x": manifest}, {})
    (waste,) = find_waste(kept, needs, remote=False)
    assert (waste.in_use, waste.bytes) == (True, 10)
    assert not remove(kept, waste)
    make_old(store / "trial-abc")
    (waste,) = find_waste(kept, needs, remote=False)
    assert not waste.in_use
    assert remove(kept, waste)
    assert not (store / "trial-abc").exists()


def test_what_is_none_of_the_stores_stays(copied: Copied) -> None:
    _, _, store = copied
    (store / "my notes").mkdir()
    (store / "my notes" / "a.txt").touch()
    kept = Kept(Store(store))
    for one in find_waste(kept, NOTHING, remote=False):
        assert remove(kept, one)
    assert (store / "my notes" / "a.txt").exists()


def test_there_is_nothing_to_clear_where_there_is_no_store(tmp_path: Path) -> None:
    assert find_waste(open_kept(str(tmp_path / "none"), tmp_path), NOTHING, remote=False) == []


# --- what stays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["use", "write"])
def test_what_another_process_uses_or_writes_stays_until_it_is_gone(
    copied: Copied, how: str
) -> None:
    _, manifest, folder = copied
    name = manifest.streams["hidden.2"].fingerprint
    kept = Kept(Store(folder))
    with held(folder, how, name):
        before = left_in(folder / name)
        in_use = {one.name for one in find_waste(kept, NOTHING, remote=False) if one.in_use}
        assert in_use == {name, manifest.fingerprint}  # and the cache that it is part of
        for one in find_waste(kept, NOTHING, remote=False):
            assert remove(kept, one) is (one.name not in in_use)
        assert left_in(folder / name) >= before
    assert all(remove(kept, one) for one in find_waste(kept, NOTHING, remote=False))


def test_what_came_into_use_since_it_was_listed_stays(copied: Copied) -> None:
    _, manifest, folder = copied
    kept, name = Kept(Store(folder)), manifest.streams["hidden.2"].fingerprint
    (waste,) = [w for w in find_waste(kept, NOTHING, remote=False) if w.name == name]
    assert not waste.in_use
    with held(folder, "use", name):
        assert not remove(kept, waste)
    assert (folder / name / "manifest.json").exists()


def test_nothing_is_waste_while_it_is_not_known_what_a_recipe_needs(copied: Copied) -> None:
    needs = Needs({}, {"x": CacheCorruptError("the manifest is not JSON")})
    with pytest.raises(CacheCorruptError, match="not JSON"):
        find_waste(Kept(Store(copied[2])), needs, remote=False)


def test_a_refusal_of_the_system_is_named(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, store = copied
    kept = Kept(Store(store))
    waste = find_waste(kept, NOTHING, remote=False)[0]

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CacheError, match=r"can't be cleared: .*Found Permission denied"):
        remove(kept, waste)


def test_what_somebody_else_removed_meanwhile_is_no_fault(tmp_path: Path) -> None:
    kept = Kept(Store(tmp_path))
    assert remove(kept, Waste("f" * 32, "entry", "", 0))
    assert remove(kept, Waste("trial-x", "trial", "", 0))


# --- a store at a URL ----------------------------------------------------------------------------


def test_copies_go_and_entries_at_the_url_only_when_asked(
    copied: Copied, split: Split, tmp_path: Path
) -> None:
    _, manifest, folder = copied
    url, here = f"file://{tmp_path}/remote", tmp_path / "here"
    other = write(make_job(split, make_params(codec="int8", streams=("hidden.2",))), folder)
    for one in (manifest, other):
        open_cache_store(url, folder, copies_bytes=2**20).share(one)
    reader = open_cache_store(url, here, copies_bytes=2**20)
    for entry in (manifest.streams["hidden.2"], other.streams["hidden.2"]):
        for file in entry.files:
            assert reader.path(entry, file).is_file()
    kept, needs = open_kept(url, here), Needs({"x": manifest}, {})
    (waste,) = find_waste(kept, needs, remote=False)
    assert waste.kind == "copies"
    needed = {file.sha256: file.bytes for file in manifest.streams["hidden.2"].files}
    copied_too = {file.sha256: file.bytes for file in other.streams["hidden.2"].files}
    assert needed.keys() & copied_too.keys()  # the statistics, which both have
    assert waste.bytes == sum(copied_too[one] for one in copied_too.keys() - needed.keys())
    assert remove(kept, waste)
    left = {path.parent.name for path in (here / "copies").glob("[!.]*/*")}
    assert left == set(needed)
    assert find_waste(kept, needs, remote=False) == []
    there = find_waste(kept, needs, remote=True)
    assert {(one.kind, one.name) for one in there} == {
        ("remote", entry.fingerprint) for entry in (other, *other.entries)
    }
    assert all(remove(kept, one) for one in there)
    finished = {entry.fingerprint for entry in read_entries(kept, needs)}
    assert finished == {entry.fingerprint for entry in (manifest, *manifest.entries)}
