"""Recipes that need the same of one teacher use one copy; what is lacking is added alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.kd.cache.format.manifest import MANIFEST, Manifest
from tasks.kd.cache.reading.audit import audit
from tasks.kd.cache.store.store import Store
from tasks.kd.data.examples.prepared import Split
from tests.kd.conftest import make_split, make_teacher
from tests.makers.caches import (
    STREAMS,
    content_of,
    identities_in,
    live_of,
    make_job,
    make_params,
    open_written,
    write,
)


def fingerprints(manifest: Manifest) -> dict[str, str]:
    return {name: entry.fingerprint for name, entry in manifest.streams.items()}


def require_served(job: Any, manifest: Manifest, store: Path) -> None:
    cached = open_written(job, manifest, store)
    assert set(cached.streams) == set(job.params.streams)
    audit(cached, live_of(job), job.input_ids, count=100)


def test_the_same_streams_are_one_copy(copied: Any, split: Split, asked: list[Any]) -> None:
    """Whatever else differs between the recipes: their shards, batches, quotas, audits."""
    _, manifest, store = copied
    before = content_of(store)
    params = make_params(shard_mib=7, batch_tokens=99, quota_gib=0.5, audit_examples=1)
    assert write(make_job(split, params), store) == manifest
    assert content_of(store) == before
    assert asked == []


@pytest.mark.parametrize("stream", ["hidden.1", "hidden.3"])
def test_a_stream_that_another_recipe_reads_inwardly_is_there_already(
    stream: str, copied: Any, split: Split, asked: list[Any]
) -> None:
    """Attention of layer 2 is computed from hidden layer 1, which a level may read as well."""
    _, manifest, store = copied
    before = identities_in(store)
    job = make_job(split, make_params(streams=(stream, "hidden.0")))
    again = write(job, store)
    assert again.streams == {stream: manifest.streams[stream]}
    assert asked == []
    assert identities_in(store) == before
    require_served(job, again, store)


def test_one_stream_more_is_computed_and_written_alone(
    split: Split, tmp_path: Path, asked: list[Any]
) -> None:
    first = write(make_job(split, make_params(streams=("logits", "hidden.2"))), tmp_path)
    assert set(asked) == {("logits", "hidden.2")}
    before, content = identities_in(tmp_path), content_of(tmp_path)
    asked.clear()
    job = make_job(split, make_params(streams=("logits", "hidden.2", "hidden.3", "attention.3")))
    second = write(job, tmp_path)
    assert set(asked) == {("hidden.3",)}
    after = identities_in(tmp_path)
    assert {path: after[path] for path in before} == before
    new = {path.parent.name for path in after.keys() - before.keys()}
    assert new == {second.streams["hidden.3"].fingerprint}
    assert content_of(tmp_path).items() >= content.items()
    assert {s: second.streams[s] for s in first.streams} == first.streams
    require_served(job, second, tmp_path)


def test_recipes_that_overlap_share_what_they_have_in_common(
    split: Split, tmp_path: Path, asked: list[Any]
) -> None:
    one = make_job(split, make_params(streams=("logits", "hidden.2", "relation.4")))
    two = make_job(split, make_params(streams=("hidden.3", "hidden.4", "attention.2")))
    first, second = write(one, tmp_path), write(two, tmp_path)
    assert set(first.streams) == {"logits", "hidden.2", "hidden.3"}
    assert set(second.streams) == {"hidden.1", "hidden.3", "hidden.4"}
    assert first.streams["hidden.3"] == second.streams["hidden.3"]
    assert set(asked) == {("logits", "hidden.2", "hidden.3"), ("hidden.1", "hidden.4")}
    assert first.fingerprint != second.fingerprint
    folders = {path.parent.name for path in tmp_path.glob("*/shard-00000.safetensors")}
    assert folders == {*fingerprints(first).values(), *fingerprints(second).values()}
    assert len(folders) == 5
    for job, manifest in ((one, first), (two, second)):
        require_served(job, manifest, tmp_path)


def test_the_order_of_recipes_does_not_matter(split: Split, tmp_path: Path) -> None:
    jobs = [
        make_job(split, make_params(streams=streams))
        for streams in (("logits", "hidden.2"), ("hidden.2", "attention.3"), STREAMS)
    ]
    for job in jobs:
        write(job, tmp_path / "forwards")
    for job in reversed(jobs):
        write(job, tmp_path / "backwards")
    assert content_of(tmp_path / "forwards") == content_of(tmp_path / "backwards")


def test_logits_and_pieces_are_shared_by_all_codecs(
    copied: Any, split: Split, asked: list[Any]
) -> None:
    _, manifest, store = copied
    before = identities_in(store)
    job = make_job(split, make_params(codec="int8"))
    coarse = write(job, store)
    assert coarse.streams["logits"] == manifest.streams["logits"]
    assert coarse.pieces == manifest.pieces
    assert not any("logits" in streams for streams in asked)
    shared = set(fingerprints(coarse).values()) & set(fingerprints(manifest).values())
    assert shared == {manifest.streams["logits"].fingerprint}
    after = identities_in(store)
    assert {path: after[path] for path in before} == before
    require_served(job, coarse, store)


def test_pieces_are_shared_by_all_data(copied: Any, other_split: Split) -> None:
    _, manifest, store = copied
    weights = {path: path.stat().st_mtime_ns for path in Path(store).glob("*/weights.safetensors")}
    job = make_job(other_split, make_params(), encoded_sha256="f" * 64)
    other = write(job, store)
    assert other.pieces == manifest.pieces
    assert set(fingerprints(other).values()).isdisjoint(fingerprints(manifest).values())
    assert weights == {path: path.stat().st_mtime_ns for path in weights}
    assert len(weights) == 3
    require_served(job, other, store)


def test_another_teacher_shares_nothing(copied: Any, split: Split) -> None:
    _, manifest, store = copied
    before = content_of(store)
    job = make_job(split, make_params(), make_teacher(seed=1), teacher_sha256="u" * 64)
    other = write(job, store)
    own = {entry.fingerprint for entry in other.entries}
    assert own.isdisjoint(entry.fingerprint for entry in manifest.entries)
    assert content_of(store).items() >= before.items()
    require_served(job, other, store)


def test_recomputing_layers_uses_what_is_stored_of_their_inputs(
    split: Split, tmp_path: Path, asked: list[Any]
) -> None:
    streams = ("hidden.3", "attention.3", "relation.3")
    write(make_job(split, make_params(streams=streams)), tmp_path)
    asked.clear()
    job = make_job(split, make_params(streams=streams, recompute="layers"))
    again = write(job, tmp_path)
    assert asked == []
    assert set(again.streams) == {"hidden.2"}
    require_served(job, again, tmp_path)


# --- the store itself ----------------------------------------------------------------------------


def test_an_entry_is_in_use_while_a_reader_has_it_open(copied: Any) -> None:
    job, manifest, store = copied
    kept = Store(store)
    names = {entry.fingerprint for entry in manifest.entries}
    assert {name for name in kept.entries() if kept.in_use(name)} == set()
    cached = open_written(job, manifest, store)
    assert {name for name in kept.entries() if kept.in_use(name)} == names
    del cached
    assert {name for name in kept.entries() if kept.in_use(name)} == set()


def test_an_entry_is_in_use_while_it_is_written(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    with kept.writing(["a" * 32, "b" * 32]):
        assert kept.entries() == ["a" * 32, "b" * 32]
        assert all(map(kept.in_use, kept.entries()))
    assert not any(map(kept.in_use, kept.entries()))


def test_entries_are_folders_that_are_named_by_a_fingerprint(tmp_path: Path) -> None:
    for name in ("a" * 32, "0123456789abcdef" * 2, "a" * 31, "g" * 32, "copies", "A" * 32):
        (tmp_path / name).mkdir()
    (tmp_path / ("b" * 32)).write_text("a file")
    assert Store(tmp_path).entries() == ["0123456789abcdef" * 2, "a" * 32]
    assert Store(tmp_path / "none").entries() == []


def test_what_a_killed_writer_left_is_removed_by_the_next(copied: Any) -> None:
    """In every entry that it writes, pieces and the cache's own included."""
    job, manifest, store = copied
    before = content_of(store)
    for name in [manifest.fingerprint, *(entry.fingerprint for entry in manifest.entries)]:
        (store / name / f".{MANIFEST}.4711.tmp").write_text("half")
        (store / name / ".tmpAbC123").write_text("half")  # as safetensors names its own
    assert write(job, store) == manifest
    assert content_of(store) == before


def test_what_another_recipe_s_writer_is_at_is_left_alone(copied: Any, split: Split) -> None:
    job, _, store = copied
    other = make_job(make_split(5, seed=4), make_params(), encoded_sha256="f" * 64)
    folder = store / next(iter(other.streams.values()))
    with Store(store).writing([folder.name]):
        (folder / ".shard-00000.safetensors.4711.tmp").write_text("half")
        write(job, store)
        assert (folder / ".shard-00000.safetensors.4711.tmp").exists()
