"""Who uses a store: what is noted, what protects, and that a note which lies is no protection."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

import pytest

from tasks.kd.cache.care import users
from tasks.kd.cache.care.clearing import find_waste, remove
from tasks.kd.cache.care.entries import Kept, Needs
from tasks.kd.cache.care.users import forget, read_users, register
from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.errors import CacheCorruptError

Copied = tuple[CacheJob, Manifest, Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_what_was_noted_is_read_by_all_but_its_own_repository(
    store: Store, root: Path, tmp_path: Path
) -> None:
    register(store, root, "triage", ["b" * 32, "a" * 32])
    register(store, root, "mobile", [])
    assert read_users(store, apart_from=root) == []
    assert read_users(store, apart_from=root / ".." / "here") == []
    mobile, triage = sorted(read_users(store, apart_from=tmp_path), key=lambda one: one.recipe)
    assert (mobile.recipe, mobile.entries) == ("mobile", ())
    assert triage.entries == ("a" * 32, "b" * 32)
    assert (triage.root, triage.machine) == (str(root), socket.gethostname())
    assert triage.seen_at.endswith("+00:00")
    assert triage.is_here
    assert not triage.is_gone
    assert store.entries() == []  # the notes are no entry


def test_the_last_note_of_a_recipe_counts(store: Store, root: Path, tmp_path: Path) -> None:
    for names in (["a" * 32], ["b" * 32]):
        register(store, root, "triage", names)
    (user,) = read_users(store, apart_from=tmp_path)
    assert user.entries == ("b" * 32,)


def test_a_repository_that_is_gone_is_known_by_its_own_machine_alone(
    store: Store, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(store, root, "triage", ["a" * 32])
    root.rmdir()
    (user,) = read_users(store, apart_from=tmp_path)
    assert (user.is_gone, user.is_here) == (True, True)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert (user.is_gone, user.is_here) == (False, False)
    register(store, tmp_path, "triage", ["c" * 32])  # the same path on another machine
    assert {one.machine for one in read_users(store, apart_from=root)} > {"another"}
    forget([user])
    assert user not in read_users(store, apart_from=root)


@pytest.mark.parametrize("text", ["{", "[]", '{"root": "/x"}', '{"machine": 1, "entries": 3}'])
def test_a_note_that_can_t_be_read_is_not_passed_over(
    text: str, store: Store, root: Path, tmp_path: Path
) -> None:
    register(store, root, "triage", ["a" * 32])
    (user,) = read_users(store, apart_from=tmp_path)
    user.note.write_text(text)
    with pytest.raises(CacheCorruptError, match=rf"note of who uses the store .*{user.note}"):
        read_users(store, apart_from=tmp_path)


def test_a_store_that_can_only_be_read_is_used_without_a_note(
    store: Store, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        def write(*_: object) -> None:
            raise OSError(number, "refused")

        monkeypatch.setattr(users, "write_json", write)

    for number in (errno.EROFS, errno.EACCES, errno.EPERM):
        refuse(number)
        register(store, root, "triage", ["a" * 32])
    assert read_users(store, apart_from=tmp_path) == []
    refuse(errno.ENOSPC)  # unprotected without anybody knowing
    with pytest.raises(OSError, match="refused"):
        register(store, root, "triage", ["a" * 32])


def test_a_note_is_whole_and_readable_by_people(store: Store, root: Path) -> None:
    register(store, root, "triage", ["a" * 32])
    (path,) = (store.folder / "users").iterdir()
    assert path.name.endswith("-triage.json")
    assert json.loads(path.read_text())["entries"] == ["a" * 32]


def test_what_others_need_is_waste_that_stays(copied: Copied) -> None:
    _, manifest, folder = copied
    name = manifest.streams["hidden.2"].fingerprint
    kept, nothing = Kept(Store(folder)), Needs({}, {})
    others = {name: ("triage of /other",)}
    found = {one.name: one for one in find_waste(kept, nothing, remote=False, others=others)}
    assert found[name].needed_by == ("triage of /other",)
    assert not remove(kept, found[name])
    assert (folder / name / "manifest.json").exists()
    assert {one for one in found if found[one].needed_by} == {name}
    assert remove(kept, found[manifest.streams["logits"].fingerprint])
