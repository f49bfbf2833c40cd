"""Everything that can be wrong with a cache is refused by name before a value is used."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.cache.manifest import MANIFEST, read_manifest
from tasks.kd.cache.reader import CachedTargets, open_cache
from tasks.kd.cache.writer import write_cache
from tasks.kd.data import Split
from tasks.kd.errors import (
    CacheCorruptError,
    CacheError,
    CacheFormatError,
    CacheIncompleteError,
    CacheQuotaError,
    CacheStaleError,
    NonFiniteLossError,
)
from tests.kd.cache.conftest import make_job, make_params, open_written
from tests.kd.conftest import make_split, make_teacher


def folder_of(copied: Any) -> Path:
    _, manifest, store = copied
    return Path(store / manifest.fingerprint)


def reopen(copied: Any) -> CachedTargets:
    job, manifest, store = copied
    return open_written(job, manifest, store)


def test_the_copy_is_whole_until_it_is_broken(copied: Any) -> None:
    reopen(copied)


def test_a_thousand_flipped_cut_or_lengthened_files_are_all_found(copied: Any) -> None:
    folder = folder_of(copied)
    names = [*sorted(path.name for path in folder.glob("*.safetensors")), MANIFEST]
    chance = random.Random(2026)
    for number in range(1000):
        path = folder / chance.choice(names)
        whole = path.read_bytes()
        broken = bytearray(whole)
        kind = number % 3
        if kind == 0:
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del broken[chance.randrange(len(broken)) :]
        else:
            broken += bytes([chance.randrange(1, 256)]) * chance.randrange(1, 9)
        path.write_bytes(bytes(broken))
        if path.name == MANIFEST and _same_json(whole, bytes(broken)):
            path.write_bytes(whole)
            continue
        with pytest.raises(CacheError):
            reopen(copied)
        path.write_bytes(whole)
    reopen(copied)


def _same_json(first: bytes, second: bytes) -> bool:
    """A flipped blank does not change what a manifest says."""
    try:
        return bool(json.loads(first) == json.loads(second))
    except ValueError:
        return False


def test_swapped_shards_are_found(copied: Any) -> None:
    folder = folder_of(copied)
    first, second = folder / "shard-00000.safetensors", folder / "shard-00001.safetensors"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(CacheCorruptError, match=r"shard-00000"):
        reopen(copied)


def test_a_missing_shard_is_named_with_the_command_that_mends_it(copied: Any) -> None:
    (folder_of(copied) / "shard-00001.safetensors").unlink()
    with pytest.raises(CacheIncompleteError, match=r"shard-00001.*Run: dvc repro"):
        reopen(copied)


def test_a_store_without_the_shards_is_named(copied: Any, tmp_path: Path) -> None:
    job, manifest, _ = copied
    with pytest.raises(CacheIncompleteError, match=r"this machine's store lacks"):
        open_cache(manifest, tmp_path / "empty", expected=job.made_of, mend="dvc repro")


def test_an_edited_manifest_is_found(copied: Any) -> None:
    path = folder_of(copied) / MANIFEST
    path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1'))
    with pytest.raises(CacheCorruptError, match="edited or damaged"):
        read_manifest(path)


def test_another_format_version_is_refused(copied: Any) -> None:
    path = folder_of(copied) / MANIFEST
    path.write_text(path.read_text().replace('"format_version": 1,', '"format_version": 2,', 1))
    with pytest.raises(CacheFormatError, match=r"Expected format_version 1, found 2"):
        read_manifest(path)


def test_an_unfinished_cache_is_refused(copied: Any) -> None:
    (folder_of(copied) / MANIFEST).unlink()
    with pytest.raises(CacheIncompleteError):
        reopen(copied)


def test_a_stale_cache_is_refused_field_by_field(copied: Any) -> None:
    job, manifest, store = copied
    now = {**job.made_of, "teacher_sha256": "other"}
    with pytest.raises(CacheStaleError, match=r'teacher_sha256: expected "other", found "ttt'):
        open_cache(manifest, store, expected=now, mend="dvc repro cache_teacher@x")


def test_an_example_that_was_not_cached_is_refused(copied: Any) -> None:
    cached = reopen(copied)
    with pytest.raises(CacheIncompleteError, match="not in the teacher cache"):
        cached.fetch([np.asarray([2, 9, 9, 9, 9], dtype=np.int32)])


def test_a_record_under_another_text_s_key_is_refused(copied: Any, split: Split) -> None:
    """Even with digests that fit: token ids are compared on every read."""
    cached = reopen(copied)
    first, second = list(cached._where)[:2]
    cached._where[first], cached._where[second] = cached._where[second], cached._where[first]
    with pytest.raises(CacheCorruptError, match="token ids are not those"):
        cached.fetch(split.input_ids)


def test_a_teacher_that_gives_nan_is_refused_and_no_shard_is_kept(tmp_path: Path) -> None:
    teacher = make_teacher()
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    job = make_job(make_split(8), make_params(), teacher)
    with pytest.raises(NonFiniteLossError, match=r"teacher's .* holds NaN"):
        write_cache(job, tmp_path, on_tokens=lambda _: None)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_quota_is_kept_before_the_first_byte(tmp_path: Path) -> None:
    job = make_job(make_split(8), make_params(quota_gib=1e-6))
    with pytest.raises(CacheQuotaError, match=r"pass its quota.*quota_gib"):
        write_cache(job, tmp_path, on_tokens=lambda _: None)
    assert not list(tmp_path.rglob("shard*"))


def test_a_disk_that_is_too_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(CacheQuotaError, match=r"disk is too full.*STILLHOUSE_STORE"):
        write_cache(make_job(make_split(8), make_params()), tmp_path, on_tokens=lambda _: None)


def test_a_damaged_cache_is_mended_by_its_writer(copied: Any) -> None:
    """What every message advises: run the stage again."""
    job, manifest, store = copied
    folder = folder_of(copied)
    shard = folder / "shard-00001.safetensors"
    for broken in (b"", shard.read_bytes()[:-1], None):
        if broken is None:
            shard.unlink()
        else:
            shard.write_bytes(broken)
        told: list[int] = []
        assert write_cache(job, store, on_tokens=told.append) == manifest
        reopen(copied)
    (folder / MANIFEST).write_text("{")
    assert write_cache(job, store, on_tokens=lambda _: None) == manifest
    reopen(copied)


def test_a_writer_that_goes_on_with_another_shard_size_loses_and_repeats_nothing(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def stop(_: int) -> None:
        if len(list(tmp_path.rglob("shard-*.safetensors"))) == 3:
            raise Killed

    for first, second in ((2**13, 2**15), (2**15, 2**13)):
        job = make_job(split, make_params(batch_tokens=64))
        monkeypatch.setattr("tasks.kd.cache.writer.MEBIBYTE", first)
        with contextlib.suppress(Killed):
            write_cache(job, tmp_path / str(first), on_tokens=stop)
        next((tmp_path / str(first)).iterdir()).joinpath(MANIFEST).unlink(missing_ok=True)
        monkeypatch.setattr("tasks.kd.cache.writer.MEBIBYTE", second)
        manifest = write_cache(job, tmp_path / str(first), on_tokens=lambda _: None)
        folder = tmp_path / str(first) / manifest.fingerprint
        names = {path.name for path in folder.glob("*.safetensors")} - {"slices.safetensors"}
        assert names == {shard.name for shard in manifest.shards}
        assert manifest.examples == sum(shard.examples for shard in manifest.shards)
        open_written(job, manifest, tmp_path / str(first)).fetch(split.input_ids)


def test_a_finished_shard_that_was_damaged_is_computed_again(copied: Any) -> None:
    job, manifest, store = copied
    folder = folder_of(copied)
    (folder / MANIFEST).unlink()
    shard = folder / "shard-00002.safetensors"
    tensors = load_file(shard)
    tensors["hidden.2"] += 1
    save_file(tensors, shard)
    assert write_cache(job, store, on_tokens=lambda _: None) == manifest
    reopen(copied)
