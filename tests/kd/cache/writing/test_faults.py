"""What goes wrong while a cache is written: a named error, nothing lost, and it goes on later."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tasks.kd.cache.format.manifest import MANIFEST, Manifest
from tasks.kd.cache.reading.audit import audit
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.data.examples.prepared import Ids, Split
from tasks.kd.digests import write_json
from tasks.kd.errors import CacheError, CacheQuotaError, NonFiniteLossError
from tasks.kd.targets.targets import run_teacher
from tests.kd.conftest import VOCABULARY, make_split, make_teacher
from tests.makers.caches import (
    content_of,
    finished_in,
    identities_in,
    job_of,
    live_of,
    make_job,
    make_params,
    open_written,
    texts_of,
    write,
)

RARE = 1  # no text of texts_of holds it


def temporaries(store: Path) -> list[Path]:
    return list(store.rglob(".*"))


def require_goes_on(job: CacheJob, store: Path, fresh: Path) -> Manifest:
    """It ends with the very bytes of a cache that was never interrupted."""
    manifest = write(job, store)
    assert write(job, fresh) == manifest
    assert content_of(store) == content_of(fresh)
    assert not temporaries(store)
    audit(open_written(job, manifest, store), live_of(job), job.input_ids, count=100)
    return manifest


def require_served(job: CacheJob, store: Path) -> None:
    cached = open_written(job, write(job, store), store)
    audit(cached, live_of(job), job.input_ids, count=100)


# --- a teacher that gives what is no number ------------------------------------------------------

BROKEN: dict[str, tuple[str, tuple[int, ...]]] = {
    "hidden": ("bert.encoder.layer.1.output.dense.weight", (0, 0)),
    "logits": ("classifier.bias", (1,)),
    "attention": ("bert.encoder.layer.1.attention.self.query.bias", (3,)),
    "last layer": ("bert.encoder.layer.3.output.LayerNorm.bias", (0,)),
    "embeddings": ("bert.embeddings.LayerNorm.weight", (5,)),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", sorted(BROKEN))
def test_a_teacher_of_no_numbers_is_named_and_no_shard_is_kept(
    place: str, value: float, tmp_path: Path
) -> None:
    teacher, (name, at) = make_teacher(), BROKEN[place]
    with torch.no_grad():
        teacher.get_parameter(name)[at] = value
    split = make_split(8)
    with pytest.raises(NonFiniteLossError, match=r"teacher's \S+ holds NaN or infinity.*weights"):
        write(make_job(split, make_params(), teacher), tmp_path / "store")
    assert not list((tmp_path / "store").rglob("shard*"))
    mended = make_job(split, make_params(), teacher_sha256="m" * 64)
    require_served(mended, tmp_path / "store")


@pytest.mark.parametrize("streams", [("hidden.0",), ("attention.1",), ("relation.1",)])
def test_a_teacher_of_no_numbers_is_named_where_nothing_would_be_stored(
    streams: tuple[str, ...], tmp_path: Path
) -> None:
    teacher = make_teacher()
    with torch.no_grad():
        teacher.bert.embeddings.LayerNorm.weight[2] = float("nan")
    with pytest.raises(NonFiniteLossError, match=rf"teacher's {streams[0]} holds NaN"):
        write(make_job(make_split(8), make_params(streams=streams), teacher), tmp_path)


def one_rare_text() -> list[Ids]:
    """Texts of which one, that is not calibrated on and in no first shard, holds a rare token."""
    texts = texts_of(range(5, 35))
    texts[20][3] = RARE
    return texts


@pytest.fixture
def rarely_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the shortest and the longest text alone."""
    monkeypatch.setattr("tasks.kd.cache.writing.calibration.EXAMPLES", 2)
    monkeypatch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", 2**13)


@pytest.mark.usefixtures("rarely_calibrated")
def test_nan_in_one_text_is_named_with_the_text_and_earlier_shards_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = tmp_path / "store", job_of(one_rare_text(), make_params())

    def unlucky(teacher: Any, ids: torch.Tensor, mask: Any, streams: Any) -> Any:
        found = run_teacher(teacher, ids, mask, streams)
        if bool((ids == RARE).any()):
            found["hidden.3"][0, 3] = float("nan")
        return found

    with monkeypatch.context() as patch:
        patch.setattr("tasks.kd.cache.writing.encoding.run_teacher", unlucky)
        with pytest.raises(NonFiniteLossError, match=r"hidden\.3 holds NaN.*text begins \["):
            write(job, store)
    kept = finished_in(store)
    assert len(kept) > 10
    assert not (store / job.streams["hidden.3"] / MANIFEST).exists()
    require_goes_on(job, store, tmp_path / "fresh")
    assert {path: identities_in(store)[path] for path in kept} == kept


@pytest.mark.usefixtures("rarely_calibrated")
def test_an_overflow_beyond_the_calibration_is_named_with_what_helps(tmp_path: Path) -> None:
    """A channel that stays just within float16 in the texts that were measured."""
    texts, teacher = one_rare_text(), make_teacher()
    job = job_of(texts, make_params(), teacher)
    largest = live_of(job).fetch(texts)["hidden.4"].abs().amax((0, 1))
    measured = live_of(job).fetch([texts[0], texts[-1]])["hidden.4"].abs().amax((0, 1))
    channel = int((largest / measured).argmax())
    assert float(largest[channel]) > 1.01 * float(measured[channel])
    with torch.no_grad():
        factor = 0.999 * 65504 / measured[channel]
        teacher.bert.encoder.layer[3].output.LayerNorm.weight[channel] *= factor
    with pytest.raises(NonFiniteLossError, match=r"hidden\.4 .* overflow float16.*bfloat16 or"):
        write(job, tmp_path / "store")
    better = job_of(texts, make_params(codec="bfloat16"), teacher)
    require_goes_on(better, tmp_path / "better", tmp_path / "fresh")
    require_served(better, tmp_path / "store")


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip("nobody may mount here; the same faults are also simulated")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, spare: int) -> Path:
    """Take all of a disk but some."""
    ballast = folder / "ballast"
    usage = os.statvfs(folder)
    ballast.write_bytes(bytes(max(0, usage.f_bavail * usage.f_frsize - spare)))
    return ballast


@pytest.mark.parametrize("spare", [0, 4096, 12288, 20480])
@pytest.mark.parametrize("tokens", [1, 200])
def test_a_real_disk_that_somebody_fills_up_is_named_and_nothing_is_lost(
    spare: int, tokens: int, disk: Path, tmp_path: Path, split: Split
) -> None:
    store, job, done = disk / "store", make_job(split, make_params()), 0

    def count(found: int) -> None:
        nonlocal done
        done += found
        if done >= tokens and not (disk / "ballast").exists():
            fill(disk, spare)

    with pytest.raises(CacheQuotaError, match=r"disk filled up.*STILLHOUSE_STORE"):
        write(job, store, on_tokens=count)
    kept = finished_in(store)
    with pytest.raises(CacheQuotaError):  # it is still full
        write(job, store)
    (disk / "ballast").unlink()
    require_goes_on(job, store, tmp_path / "fresh")
    assert {path: identities_in(store)[path] for path in kept} == kept
    if tokens > 1:
        assert kept


def test_a_real_disk_that_is_too_small_is_refused_beforehand(disk: Path, split: Split) -> None:
    job = make_job(split, make_params(codec="float32"))
    fill(disk, 150 * 1024)
    with pytest.raises(CacheQuotaError, match=r"disk is too full.*GiB free"):
        write(job, disk / "store")
    assert not list(disk.rglob("shard*"))


@pytest.mark.parametrize("number", [1, 2, 5, 9])
@pytest.mark.parametrize("what", ["tensors", "notes"])
def test_a_full_disk_is_named_whatever_was_being_written(
    what: str, number: int, tmp_path: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, calls = make_job(split, make_params()), 0

    def full(act: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise error
            return act(*args, **named)

        return wrapped

    with monkeypatch.context() as patch:
        if what == "tensors":
            text = "Error while serializing: I/O error: No space left on device (os error 28)"
            failing = full(save_file, SafetensorError(text))
            patch.setattr("tasks.kd.cache.writing.shards.save_file", failing)
        else:
            failing = full(write_json, OSError(errno.ENOSPC, "No space left on device"))
            patch.setattr("tasks.kd.cache.writing.shards.write_json", failing)
        with pytest.raises(CacheQuotaError, match="disk filled up"):
            write(job, tmp_path / "store")
    kept = finished_in(tmp_path / "store")
    require_goes_on(job, tmp_path / "store", tmp_path / "fresh")
    assert {path: identities_in(tmp_path / "store")[path] for path in kept} == kept


def test_what_is_no_full_disk_is_not_called_one(
    tmp_path: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise SafetensorError("Error while serializing: something else")

    monkeypatch.setattr("tasks.kd.cache.writing.shards.save_file", fail)
    with pytest.raises(SafetensorError, match="something else"):
        write(make_job(split, make_params()), tmp_path)


@pytest.fixture
def sealed(
    copied: tuple[CacheJob, Manifest, Path], disk: Path
) -> Iterator[tuple[CacheJob, Manifest, Path]]:
    """A store that can only be read, even by root."""
    job, manifest, store = copied
    subprocess.run(["cp", "-r", str(store), str(disk / "store")], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield job, manifest, disk / "store"
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def test_a_store_that_can_only_be_read_is_read(sealed: Any, split: Split) -> None:
    job, manifest, store = sealed
    cached = open_written(job, manifest, store)
    assert audit(cached, live_of(job), split.input_ids, count=9) == 9


def test_a_store_that_can_only_be_read_is_named_when_it_is_written(
    sealed: Any, other_split: Split
) -> None:
    _, _, store = sealed
    before = content_of(store)
    other = make_job(other_split, make_params(), encoded_sha256="f" * 64)
    with pytest.raises(CacheError, match=r"store can't be written.*STILLHOUSE_STORE"):
        write(other, store)
    assert content_of(store) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_is_not_one_s_own_is_named(
    number: int, tmp_path: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **named: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(CacheError, match=rf"can't be written: .*{os.strerror(number)}"):
            write(make_job(split, make_params()), tmp_path / "store")
    require_goes_on(make_job(split, make_params()), tmp_path / "store", tmp_path / "fresh")


# --- two at once ---------------------------------------------------------------------------------


def test_a_second_writer_waits_and_finds_it_done(
    split: Split, tmp_path: Path, asked: list[Any]
) -> None:
    """It begins while the first one is at work; the teacher is run for the first alone."""
    job, store = make_job(split, make_params()), tmp_path / "store"
    found: list[Manifest] = []
    second = threading.Thread(target=lambda: found.append(write(job, store)))

    def begin(_: int) -> None:
        if second.ident is None:
            second.start()

    first = write(job, store, on_tokens=begin)
    passes = len(asked)
    second.join()
    assert found == [first]
    assert len(asked) == passes
    require_goes_on(job, store, tmp_path / "fresh")


def test_writers_of_recipes_that_overlap_neither_wait_for_ever_nor_disturb_one_another(
    split: Split, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    recipes = [
        ("logits", "hidden.2", "attention.4"),
        ("hidden.3", "hidden.2", "hidden.1"),
        ("hidden.4", "logits", "relation.2"),
    ]
    jobs = [make_job(split, make_params(streams=streams)) for streams in recipes]
    found: dict[int, Manifest] = {}

    def work(number: int) -> None:
        found[number] = write(jobs[number], store)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, job in enumerate(jobs):
        assert write(job, tmp_path / "fresh") == found[number]
        audit(open_written(job, found[number], store), live_of(job), split.input_ids, count=100)
    assert content_of(store) == content_of(tmp_path / "fresh")


def test_the_rare_token_is_in_one_text_alone() -> None:
    texts = one_rare_text()
    assert [row for row, ids in enumerate(texts) if RARE in ids] == [20]
    assert max(int(np.max(ids)) for ids in texts) < VOCABULARY


def test_a_quota_counts_what_is_shared_as_well(split: Split, tmp_path: Path) -> None:
    first = write(make_job(split, make_params(streams=("hidden.1", "hidden.2"))), tmp_path)
    quota = 1.2 * first.bytes / 2**30
    more = make_params(streams=("hidden.1", "hidden.2", "hidden.3"), quota_gib=quota)
    with pytest.raises(CacheQuotaError, match=r"cache_teacher.quota_gib"):
        write(make_job(split, more), tmp_path)
    assert not list(tmp_path.rglob(".*"))
