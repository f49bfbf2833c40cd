"""The store behind a URL, on a real S3 server of this machine and on a folder."""

from __future__ import annotations

import errno
import hashlib
import pickle
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.cache.store.copies import LocalCopies
from tasks.kd.cache.store.remote import Remote
from tasks.kd.errors import (
    CacheCorruptError,
    CacheError,
    CacheFormatError,
    CacheIncompleteError,
    CacheQuotaError,
    KDError,
    ParamsError,
    TransientError,
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

# Every file and its digest, then the manifest.
WRITES = 2 * len(SIZES) + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store" / ENTRY


@pytest.fixture
def files(folder: Path) -> list[File]:
    return make_entry(folder, SIZES)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """What every S3 driver finds in its environment: no account of whoever runs the tests."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stillhouse")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    S3FileSystem.clear_instance_cache()
    yield monkeypatch
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def impatient(s3: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Drivers that give up at once."""
    s3.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.setattr(S3FileSystem, "retries", 1)
    return s3


@pytest.fixture
def bucket(s3: pytest.MonkeyPatch, server: str, request: pytest.FixtureRequest) -> str:
    s3.setenv("AWS_ENDPOINT_URL", server)
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    S3FileSystem().mkdir(name)
    return name


@pytest.fixture(params=["s3", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    if request.param == "file":
        return Remote(f"file://{tmp_path}/remote")
    return Remote(f"s3://{request.getfixturevalue('bucket')}/some/prefix/")


@pytest.fixture
def uploaded(remote: Remote, folder: Path, files: list[File]) -> Remote:
    remote.upload(folder, files)
    return remote


def names_in(remote: Remote) -> set[str]:
    driver, place = raw(remote)
    return {path.rpartition("/")[2] for path in driver.ls(place, detail=False)}


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it has any effect."""


class Dying:
    """A driver whose process is killed at its next write but some."""

    def __init__(self, driver: Any, allowed: int) -> None:
        self._driver, self._allowed, self.written = driver, allowed, list[str]()

    def __getattr__(self, name: str) -> Any:
        if len(self.written) > self._allowed:
            raise Killed
        act = getattr(self._driver, name)
        if name not in ("put_file", "pipe_file", "mv"):
            return act

        def write(source: str, to: Any, *rest: Any) -> None:
            self.written.append(source if name == "pipe_file" else to)
            if len(self.written) > self._allowed:
                raise Killed
            act(source, to, *rest)

        return write


def make_dying(remote: Remote, monkeypatch: pytest.MonkeyPatch, allowed: int) -> Dying:
    driver, root = remote._open()
    dying = Dying(driver, allowed)
    monkeypatch.setattr(remote, "_open", lambda: (dying, root))
    return dying


# --- the store ------------------------------------------------------------------------------------


def test_what_comes_down_is_what_went_up(
    uploaded: Remote, folder: Path, files: list[File], tmp_path: Path
) -> None:
    assert uploaded.entries() == [ENTRY]
    assert uploaded.manifest(ENTRY) == (folder / MANIFEST).read_bytes()
    for file in files:
        uploaded.fetch(ENTRY, file, tmp_path / file.name)
        assert (tmp_path / file.name).read_bytes() == (folder / file.name).read_bytes()


def test_the_store_needs_no_prefix_and_no_server(folder: Path, files: list[File]) -> None:
    for url in ("memory://", "memory://some/prefix"):
        remote = Remote(url)
        assert remote.entries() == []
        remote.upload(folder, files)
        assert remote.entries() == [ENTRY]
        remote.delete(ENTRY)
        assert remote.entries() == []


def test_the_layout_is_the_local_one_with_digests_that_sha256sum_reads(
    folder: Path, files: list[File], tmp_path: Path
) -> None:
    Remote(f"file://{tmp_path}/remote").upload(folder, files)
    place = tmp_path / "remote" / ENTRY
    sides = {f"{name}.sha256" for name in SIZES}
    assert {path.name for path in place.iterdir()} == {MANIFEST, *SIZES, *sides}
    check = subprocess.run(["sha256sum", "-c", *sides], cwd=place, capture_output=True, check=False)
    assert check.returncode == 0
    (place / "slices").write_bytes(b"x")
    check = subprocess.run(["sha256sum", "-c", *sides], cwd=place, capture_output=True, check=False)
    assert check.returncode == 1


def test_an_empty_store_has_no_entries(remote: Remote) -> None:
    assert remote.entries() == []
    assert remote.manifest(ENTRY) is None
    remote.delete(ENTRY)


def test_a_store_can_be_handed_to_another_process(uploaded: Remote) -> None:
    assert pickle.loads(pickle.dumps(uploaded)).entries() == [ENTRY]


def test_an_upload_killed_at_any_write_is_not_offered_and_then_goes_on(
    remote: Remote, folder: Path, files: list[File], monkeypatch: pytest.MonkeyPatch
) -> None:
    renames = 2 if remote.where.startswith("file") else 1
    for allowed in range(WRITES * renames):
        with monkeypatch.context() as patch:
            dying = make_dying(remote, patch, allowed)
            with pytest.raises(Killed):
                remote.upload(folder, files)
        assert remote.entries() == []
        assert remote.manifest(ENTRY) is None
        # What has its digest is not sent again: one write for each thing that is not there yet.
        there = sum(f"{file.name}.sha256" in finished(remote) for file in files)
        with monkeypatch.context() as patch:
            resumed = make_dying(remote, patch, 1000)
            remote.upload(folder, files)
        assert len(resumed.written) == (WRITES - 2 * there) * renames
        assert there == allowed // (2 * renames)
        assert resumed.written[-1].endswith(f"/{MANIFEST}")
        assert dying.written != resumed.written or allowed == 0
        assert remote.entries() == [ENTRY]
        remote.delete(ENTRY)


def finished(remote: Remote) -> set[str]:
    try:
        return names_in(remote)
    except FileNotFoundError:
        return set()


def test_nothing_is_sent_twice(
    uploaded: Remote, folder: Path, files: list[File], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = make_dying(uploaded, monkeypatch, 0)
    uploaded.upload(folder, files)
    assert again.written == []


@pytest.mark.parametrize("damage", ["other digest", "other size", "no digest", "gone"])
def test_a_file_that_is_not_as_named_is_sent_again_and_no_other(
    damage: str,
    uploaded: Remote,
    folder: Path,
    files: list[File],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    driver, place = raw(uploaded)
    shard = f"{place}/{files[0].name}"
    if damage == "other digest":
        driver.pipe_file(f"{shard}.sha256", b"0" * 64 + f"  {files[0].name}\n".encode())
    elif damage == "other size":
        driver.pipe_file(shard, b"short")
    else:
        driver.rm_file(f"{shard}.sha256" if damage == "no digest" else shard)
    with monkeypatch.context() as patch:
        again = make_dying(uploaded, patch, 1000)
        uploaded.upload(folder, files)
    assert {name for name in again.written if "/." not in name} == {shard, f"{shard}.sha256"}
    uploaded.fetch(ENTRY, files[0], tmp_path / "shard")


def test_an_entry_with_another_manifest_is_withdrawn_before_its_files_change(
    uploaded: Remote, folder: Path, files: list[File], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = make_file(folder, files[0].name, b"other content")
    (folder / MANIFEST).write_bytes(b'{"format_version": 2}')
    with monkeypatch.context() as patch:
        make_dying(uploaded, patch, 0)
        with pytest.raises(Killed):
            uploaded.upload(folder, [changed, *files[1:]])
    assert uploaded.entries() == []
    # The old digest went first: it must not vouch for the new bytes, nor they for it.
    assert f"{changed.name}.sha256" not in names_in(uploaded)
    uploaded.upload(folder, [changed, *files[1:]])
    assert uploaded.manifest(ENTRY) == b'{"format_version": 2}'


def test_uploads_of_the_same_entry_at_once_do_no_harm(
    remote: Remote, folder: Path, files: list[File], tmp_path: Path
) -> None:
    faults = run_at_once([lambda: remote.upload(folder, files)] * 3)
    assert faults == []
    for file in files:
        remote.fetch(ENTRY, file, tmp_path / file.name)
    assert not [name for name in names_in(remote) if name.endswith(".part")]


def test_files_of_an_s3_store_are_read_through_copies(
    bucket: str, folder: Path, files: list[File], tmp_path: Path
) -> None:
    remote = Remote(f"s3://{bucket}")
    remote.upload(folder, files)
    copies = LocalCopies(tmp_path / "copies", remote, limit_bytes=70_000)
    for file in [*files, *files]:
        assert copies.path(ENTRY, file).read_bytes() == make_content(file.name, file.bytes)


def test_what_others_put_there_meanwhile_is_seen(bucket: str) -> None:
    remote, other = Remote(f"s3://{bucket}/prefix"), S3FileSystem(skip_instance_cache=True)
    for name in ("first", "second"):
        other.pipe_file(f"{bucket}/prefix/{name}/slices", b"")
        assert name not in remote.entries()
        other.pipe_file(f"{bucket}/prefix/{name}/{MANIFEST}", b"{}")
        assert name in remote.entries()


def test_what_is_deleted_during_an_upload_is_not_finished(
    remote: Remote, folder: Path, files: list[File], monkeypatch: pytest.MonkeyPatch
) -> None:
    send = remote._send

    def send_and_lose(folder: Path, file: Any, sizes: dict[str, int]) -> None:
        send(folder, file, sizes)
        if file == files[-1]:
            remote._remove(ENTRY, files[0].name)

    monkeypatch.setattr(remote, "_send", send_and_lose)
    with pytest.raises(TransientError, match=f"Found {files[0].name} missing"):
        remote.upload(folder, files)
    assert remote.entries() == []


def test_a_folder_that_fills_up_keeps_no_half_file(
    folder: Path, files: list[File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: Any, source: str, to: str, **named: Any) -> None:
        Path(to).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    remote = Remote(f"file://{tmp_path}/remote")
    monkeypatch.setattr(LocalFileSystem, "put_file", fill)
    with pytest.raises(CacheQuotaError, match=r"no space is left.*file://"):
        remote.upload(folder, files)
    assert names_in(remote) == set()


def test_only_a_finished_and_whole_entry_goes_up(
    remote: Remote, folder: Path, files: list[File]
) -> None:
    content = (folder / files[1].name).read_bytes()
    (folder / files[1].name).write_bytes(content[:-1] + b"\0")
    with pytest.raises(CacheCorruptError, match=files[1].name):
        remote.upload(folder, files)
    (folder / files[1].name).unlink()
    with pytest.raises(CacheIncompleteError, match=files[1].name):
        remote.upload(folder, files)
    (folder / MANIFEST).unlink()
    with pytest.raises(CacheIncompleteError, match=r"finished entry.*manifest\.json"):
        remote.upload(folder, files)
    assert remote.entries() == []


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "empty"])
def test_a_damaged_object_is_named(
    damage: str, uploaded: Remote, files: list[File], tmp_path: Path
) -> None:
    driver, place = raw(uploaded)
    content = bytearray(driver.cat_file(f"{place}/{files[1].name}"))
    if damage == "flipped":
        content[40_000] ^= 1
    elif damage == "longer":
        content += b"\0"
    else:
        del content[69_999 if damage == "truncated" else 0 :]
    driver.pipe_file(f"{place}/{files[1].name}", bytes(content))
    with pytest.raises(CacheCorruptError, match=f"{ENTRY}/{files[1].name}.*{files[1].sha256}"):
        uploaded.fetch(ENTRY, files[1], tmp_path / "shard")


def test_a_missing_object_is_named(uploaded: Remote, files: list[File], tmp_path: Path) -> None:
    driver, place = raw(uploaded)
    driver.rm_file(f"{place}/{files[0].name}")
    for entry in (ENTRY, "absent"):
        with pytest.raises(CacheIncompleteError, match=f"{entry}/{files[0].name}"):
            uploaded.fetch(entry, files[0], tmp_path / "shard")


def test_a_delete_that_is_killed_leaves_nothing_on_offer(
    uploaded: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = []

    def remove(entry: str, name: str) -> None:
        removed.append(name)
        if len(removed) == 2:
            raise Killed
        real(entry, name)

    real = uploaded._remove
    with monkeypatch.context() as patch:
        patch.setattr(uploaded, "_remove", remove)
        with pytest.raises(Killed):
            uploaded.delete(ENTRY)
    assert removed[0] == MANIFEST
    assert uploaded.entries() == []
    uploaded.delete(ENTRY)
    assert finished(uploaded) == set()


def test_deleting_one_entry_leaves_the_others(uploaded: Remote, folder: Path) -> None:
    other = folder.with_name("77ab")
    file = make_file(other, "slices", b"other")
    (other / MANIFEST).write_bytes(b"{}")
    uploaded.upload(other, [file])
    assert uploaded.entries() == ["77ab", ENTRY]
    uploaded.delete(ENTRY)
    assert uploaded.entries() == ["77ab"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", "*", "[a]", ".hidden", "?v"]
)
def test_a_name_that_leads_elsewhere_is_refused(
    name: str, folder: Path, files: list[File], tmp_path: Path
) -> None:
    near = Remote(f"file://{tmp_path}/remote")
    near.upload(folder, files)
    copies = LocalCopies(tmp_path / "copies", near, limit_bytes=100_000)
    evil = File(name, files[0].bytes, files[0].sha256)
    for act in (
        lambda: near.delete(name),
        lambda: near.manifest(name),
        lambda: near.fetch(name, files[0], tmp_path / "x"),
        lambda: near.fetch(ENTRY, evil, tmp_path / "x"),
        lambda: near.upload(folder, [evil]),
        lambda: copies.path(name, files[0]),
        lambda: copies.path(ENTRY, evil),
    ):
        with pytest.raises(CacheFormatError, match="not a name"):
            act()
    assert near.entries() == [ENTRY]


# --- what can be wrong with a store ---------------------------------------------------------------


@pytest.mark.parametrize("url", ["", ".store", "/abs/store", "s3:/x", "s3://", "file:///", "://x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ParamsError, match="needs a URL"):
        Remote(url)


def test_a_scheme_without_its_driver_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ParamsError, match=r"no driver for nowhere:// is installed"):
        Remote("nowhere://user:pass@place")
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ParamsError, match=r"s3://.*s3fs.*pip install 'stillhouse\[s3\]'"):
        Remote("s3://bucket/prefix")


def all_acts(remote: Remote, folder: Path, files: list[File]) -> list[Callable[[], Any]]:
    return [
        remote.entries,
        lambda: remote.manifest(ENTRY),
        lambda: remote.upload(folder, files),
        lambda: remote.fetch(ENTRY, files[0], folder.parent / "x"),
        lambda: remote.delete(ENTRY),
    ]


def test_a_bucket_that_is_not_there_is_neither_empty_nor_made(
    bucket: str, folder: Path, files: list[File]
) -> None:
    for act in all_acts(Remote("s3://never-made/prefix"), folder, files):
        with pytest.raises(ParamsError, match="bucket is not there: s3://never-made/prefix"):
            act()
    assert S3FileSystem().ls("", refresh=True, detail=False).count("never-made") == 0


def test_a_server_that_is_down_is_transient_and_told_in_one_line(
    impatient: pytest.MonkeyPatch, free_port: int, folder: Path, files: list[File]
) -> None:
    impatient.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    for act in all_acts(Remote("s3://bucket/prefix"), folder, files):
        with pytest.raises(
            TransientError, match="reached or is busy: s3://bucket/prefix"
        ) as caught:
            act()
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_a_server_that_answers_late_is_transient(impatient: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        impatient.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        impatient.setattr(S3FileSystem, "read_timeout", 0.2)
        with pytest.raises(TransientError, match=r"[Tt]imeout"):
            Remote("s3://bucket/prefix").manifest(ENTRY)


def test_a_server_that_denies_is_named(
    bucket: str, server: str, folder: Path, files: list[File]
) -> None:
    remote = Remote(f"s3://{bucket}/prefix")
    set_unchecked(server, "0")
    try:
        for act in all_acts(remote, folder, files):
            with pytest.raises(CacheError, match="denies access: s3://"):
                act()
    finally:
        set_unchecked(server, "inf")
    assert remote.entries() == []


def set_unchecked(server: str, requests: str) -> None:
    """How many requests moto answers before it asks who is there."""
    ask = urllib.request.Request(
        f"{server}/moto-api/reset-auth", requests.encode(), {"Content-Type": "text/plain"}
    )
    with urllib.request.urlopen(ask) as answer:
        assert answer.status == 200


def test_missing_credentials_are_named(s3: pytest.MonkeyPatch, server: str, bucket: str) -> None:
    s3.delenv("AWS_ACCESS_KEY_ID")
    s3.delenv("AWS_SECRET_ACCESS_KEY")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(CacheError, match=r"denies access.*Unable to locate credentials"):
        Remote(f"s3://{bucket}").entries()


def test_a_store_never_shows_its_secrets(bucket: str, folder: Path, files: list[File]) -> None:
    remote = Remote(f"s3://me:hush@{bucket}/prefix")
    assert repr(remote) == f"Remote('s3://{bucket}/prefix')"
    for act in all_acts(remote, folder, files):
        with pytest.raises(KDError) as caught:
            act()
        assert "hush" not in str(caught.value)
