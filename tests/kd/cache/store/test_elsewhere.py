"""A cache in a store elsewhere: written there, read from there, through a bounded folder here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.reading.audit import audit
from tasks.kd.cache.reading.reader import CachedTargets, open_cache
from tasks.kd.cache.store.copies import LocalCopies
from tasks.kd.cache.store.remote import Remote
from tasks.kd.cache.store.store import Store, open_cache_store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache
from tasks.kd.data.examples.prepared import Split
from tasks.kd.errors import CacheCorruptError, CacheIncompleteError
from tasks.kd.targets.targets import LiveTargets
from tests.kd.conftest import make_teacher
from tests.makers.caches import MEND, make_job, make_params

LIMIT = 100_000


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["s3", "file"])
def url(
    request: pytest.FixtureRequest, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/elsewhere"
        return
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stillhouse")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    S3FileSystem().mkdir("caches")
    yield "s3://caches/some/prefix"
    S3FileSystem().rm("caches", recursive=True)
    S3FileSystem.clear_instance_cache()


def store_at(url: str, local: Path) -> Store:
    return open_cache_store(url, local, copies_bytes=LIMIT)


def fill(job: CacheJob, store: Store) -> Manifest:
    manifest = write_cache(job, store, on_tokens=lambda _: None)
    store.share(manifest)
    return manifest


def reader(job: CacheJob, manifest: Manifest, store: Store) -> CachedTargets:
    return open_cache(manifest, store, expected=job.made_of, pad_id=0, mend=MEND)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_another_machine_reads_what_this_one_wrote(
    codec: str, url: str, split: Split, tmp_path: Path
) -> None:
    job = make_job(split, make_params(codec=codec))
    manifest = fill(job, store_at(url, tmp_path / "here"))
    assert size_of(tmp_path / "here") > LIMIT
    there = store_at(url, tmp_path / "there")
    cached = reader(job, manifest, there)
    live = LiveTargets(make_teacher(), cached.streams, pad_id=0)
    assert audit(cached, live, split.input_ids, count=100) == len(split)
    assert 0 < size_of(tmp_path / "there") <= LIMIT


def test_what_is_elsewhere_is_not_computed_again(
    url: str, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(split, make_params())
    manifest = fill(job, store_at(url, tmp_path / "here"))
    monkeypatch.setattr("tasks.kd.cache.writing.writer.write_share", refuse)
    there = store_at(url, tmp_path / "there")
    assert fill(make_job(split, make_params()), there) == manifest
    more = make_job(split, make_params(streams=("logits", "hidden.2", "attention.3")))
    assert set(fill(more, there).streams) == {"logits", "hidden.2"}


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the teacher is run again")


def test_a_stream_more_is_written_here_and_put_there(
    url: str, split: Split, tmp_path: Path
) -> None:
    fill(make_job(split, make_params(streams=("hidden.2",))), store_at(url, tmp_path / "here"))
    job = make_job(split, make_params(streams=("hidden.2", "hidden.4", "hidden.1", "hidden.3")))
    there = store_at(url, tmp_path / "there")
    manifest = fill(job, there)
    shutil.rmtree(tmp_path / "here")
    third = store_at(url, tmp_path / "third")
    reader(job, manifest, third).fetch(split.input_ids[:4])


def test_damage_elsewhere_is_found_on_arrival(split: Split, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/elsewhere"
    job = make_job(split, make_params())
    manifest = fill(job, store_at(url, tmp_path / "here"))
    stream = manifest.streams["hidden.2"]
    shard = tmp_path / "elsewhere" / stream.fingerprint / stream.shards[-1].name
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(bytes(content))
    cached = reader(job, manifest, store_at(url, tmp_path / "there"))
    with pytest.raises(CacheCorruptError, match="sha256"):
        cached.fetch(split.input_ids)


def test_a_cache_that_is_nowhere_is_said_with_what_mends_it(
    url: str, split: Split, tmp_path: Path
) -> None:
    job = make_job(split, make_params())
    manifest = fill(job, Store(tmp_path / "here"))
    with pytest.raises(CacheIncompleteError, match=f"lacks a part.*{MEND}"):
        reader(job, manifest, store_at(url, tmp_path / "there"))


def test_an_entry_that_was_never_finished_is_not_put_elsewhere(
    split: Split, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/elsewhere"
    here = store_at(url, tmp_path / "here")
    manifest = write_cache(make_job(split, make_params()), here, on_tokens=lambda _: None)
    (here.entry(manifest.streams["hidden.4"].fingerprint) / "manifest.json").unlink()
    with pytest.raises(CacheIncompleteError, match="neither here nor elsewhere"):
        here.share(manifest)
    assert Remote(url).manifest(manifest.fingerprint) is None


def test_a_copy_that_another_process_removed_is_fetched_again(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/elsewhere"
    job = make_job(split, make_params())
    manifest = fill(job, store_at(url, tmp_path / "here"))
    fetched = LocalCopies.path
    calls: list[str] = []

    def removed_at_first(self: LocalCopies, entry: str, file: Any) -> Path:
        path = fetched(self, entry, file)
        if file.name not in calls:
            path.unlink()
        calls.append(file.name)
        return path

    monkeypatch.setattr(LocalCopies, "path", removed_at_first)
    cached = reader(job, manifest, store_at(url, tmp_path / "there"))
    cached.fetch(split.input_ids[:3])
    assert len(calls) > len(set(calls))
