"""Each way in which caches are known to fail (methods.md, section 3c), done to ours on purpose.

A test or more for each row of that table, in its order, begins with the row's words. What else can
be wrong with a cache is in test_damage.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tasks.kd.cache.format.fingerprint import differences, fingerprint, stream_fields
from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.cache.reading.audit import audit, compare, tolerance
from tasks.kd.cache.reading.reader import open_cache
from tasks.kd.cache.store.store import Store
from tasks.kd.data.examples.batching import epoch_batches, micro_batches
from tasks.kd.data.examples.prepared import Split
from tasks.kd.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheQuotaError,
    CacheStaleError,
    DataError,
)
from tasks.kd.targets.targets import run_teacher
from tests.kd.conftest import make_split, make_teacher
from tests.makers.broken_caches import (
    artifact,
    change,
    forge,
    open_artifact,
    reopen,
    shards_of,
    stop_after,
)
from tests.makers.caches import (
    MEND,
    STREAMS,
    content_of,
    job_of,
    live_of,
    make_job,
    make_params,
    open_written,
    same_streams,
    spread_teacher,
    texts_of,
    write,
)
from tests.makers.small_families import small


def test_the_copy_is_whole_until_it_is_broken(copied: Any, split: Split, tmp_path: Path) -> None:
    job, _, _ = copied
    assert audit(reopen(copied), live_of(job), split.input_ids, count=100) == len(split)
    path = artifact(copied, tmp_path)
    forge(path, lambda _: None)
    open_artifact(copied, path)


# --- row 1: positional keys ----------------------------------------------------------------------


def test_positional_key_data_in_another_order_gets_its_own_targets(
    written: Any, split: Split
) -> None:
    """Re-ordered, filtered, split and repeated examples: each is found by its tokens."""
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    live = live_of(job)
    order = np.random.default_rng(3).permutation(len(split))
    for rows in (order, order[::3], [order[0]] * 3):
        for row in rows:
            compare(cached, live, split.input_ids[row], tolerance(manifest.codec_errors))


def test_positional_key_data_that_were_not_cached_are_refused(
    written: Any, split: Split, other_split: Split
) -> None:
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    for ids in other_split.input_ids:
        with pytest.raises(CacheIncompleteError, match=r"not in the teacher cache.*begins \[2, "):
            cached.fetch([split.input_ids[0], ids])


@pytest.mark.parametrize("stream", ["logits", "hidden.1", "hidden.4"])
@pytest.mark.parametrize("verify", [True, False])
def test_positional_key_token_ids_are_compared_on_every_read_of_every_stream(
    stream: str, verify: bool, copied: Any, split: Split
) -> None:
    """Two records of like length exchange their token ids in one stream alone."""
    shard = shards_of(copied, stream)[0]
    found: list[np.ndarray] = []

    def exchange(tensors: dict[str, torch.Tensor]) -> None:
        ends = tensors["offsets"].tolist()
        ids = tensors["input_ids"]
        first, second = ids[ends[0] : ends[1]].clone(), ids[ends[1] : ends[2]].clone()
        assert len(first) == len(second)
        ids[ends[0] : ends[1]], ids[ends[1] : ends[2]] = second, first
        found.extend([first.numpy(), second.numpy()])

    change(shard, exchange)
    if verify:
        with pytest.raises(CacheCorruptError, match="is damaged"):
            reopen(copied)
        return
    cached = reopen(copied, verify=False)
    for ids in found:
        with pytest.raises(CacheCorruptError, match=rf"token ids are not.*{stream}, {shard.name}"):
            cached.fetch([split.input_ids[0], ids])
    untouched = [ids for ids in split.input_ids if not any(np.array_equal(ids, x) for x in found)]
    cached.fetch(untouched)


def test_positional_key_records_under_one_another_s_keys_are_refused(
    copied: Any, split: Split
) -> None:
    """In the index alone, in all streams alike: what a shuffled index file would do."""
    for stream in copied[1].streams:
        for path in shards_of(copied, stream):
            change(path, lambda tensors: tensors["keys"].copy_(tensors["keys"].flip(0)))
    cached = reopen(copied, verify=False)
    for ids in split.input_ids:
        with pytest.raises((CacheCorruptError, CacheIncompleteError)):
            cached.fetch([ids])


# --- row 2: another teacher or configuration -----------------------------------------------------

CHANGES = {
    "teacher_sha256": "u" * 64,
    "tokenizer_sha256": "u" * 64,
    "encoded_sha256": "u" * 64,
    "format_version": 2,
    "numerics": {"dtype": "bfloat16", "attention": "eager"},
    "codec": "int8",
    "max_relative_error": 0.5,
    "recompute": "layers",
    "streams": ["logits"],
}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_config_or_teacher_changed_is_refused_with_the_field_that_differs(
    field: str, written: Any
) -> None:
    job, manifest, store = written
    now = {**job.made_of, field: CHANGES[field]}
    with pytest.raises(CacheStaleError) as told:
        open_cache(manifest, Store(store), expected=now, pad_id=0, mend=MEND)
    assert f"It differs in {field}: expected {json.dumps(CHANGES[field])}, found " in str(
        told.value
    )
    assert str(told.value).endswith(f"Run: {MEND}")
    others = set(CHANGES) - {field}
    assert not [other for other in others if f"{other}: expected" in str(told.value)]


def test_config_or_teacher_changed_every_field_of_the_fingerprint_is_tried(written: Any) -> None:
    assert set(CHANGES) == set(written[0].made_of)


def test_config_or_teacher_changed_all_fields_that_differ_are_named(written: Any) -> None:
    job, manifest, store = written
    now = {**job.made_of, **CHANGES}
    with pytest.raises(CacheStaleError) as told:
        open_cache(manifest, Store(store), expected=now, pad_id=0, mend=MEND)
    assert all(f"{field}: expected " in str(told.value) for field in CHANGES)


def test_config_or_teacher_changed_other_streams_are_other_entries(split: Split) -> None:
    job = make_job(split, make_params())
    own = stream_fields(job.base, "hidden.2", codec="float16", max_relative_error=0.02)
    for other in (
        stream_fields(job.base, "hidden.3", codec="float16", max_relative_error=0.02),
        stream_fields(job.base, "hidden.2", codec="int8", max_relative_error=0.02),
        stream_fields(job.base, "hidden.2", codec="float16", max_relative_error=0.1),
        *(
            {**own, field: CHANGES[field]}
            for field in ("teacher_sha256", "tokenizer_sha256", "encoded_sha256", "numerics")
        ),
    ):
        assert fingerprint(other) != fingerprint(own)
        assert len(differences(own, other)) == 1


def test_config_or_teacher_changed_work_alone_is_no_other_cache(split: Split) -> None:
    changed = make_params(shard_mib=64, quota_gib=9.0, batch_tokens=512, audit_examples=1)
    one, two = make_job(split, make_params()), make_job(split, changed)
    assert fingerprint(one.made_of) == fingerprint(two.made_of)
    assert (one.streams, one.pieces) == (two.streams, two.pieces)


def test_config_or_teacher_changed_a_resumed_run_mixes_nothing(
    split: Split, tmp_path: Path
) -> None:
    """Half of the old teacher's cache is there; the new one's holds nothing of it."""
    old = make_job(split, make_params())
    new = make_job(split, make_params(), make_teacher(seed=1), teacher_sha256="u" * 64)
    stop_after(old, tmp_path / "store", 300)
    assert list((tmp_path / "store").rglob("shard-*.safetensors"))
    fresh = write(new, tmp_path / "fresh")
    assert write(new, tmp_path / "store") == fresh
    cached = open_written(new, fresh, tmp_path / "store")
    assert audit(cached, live_of(new), split.input_ids, count=100) == len(split)
    content = content_of(tmp_path / "store")
    assert content.items() >= content_of(tmp_path / "fresh").items()


def test_config_or_teacher_changed_without_its_digest_is_found_by_the_audit(
    written: Any, split: Split
) -> None:
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    other = replace(job, teacher=make_teacher(seed=5))
    with pytest.raises(CacheCorruptError, match=r"cache's .* is not what the teacher says.*begins"):
        audit(cached, live_of(other), split.input_ids, count=1)


# --- row 3: another row's states -----------------------------------------------------------------


@pytest.mark.parametrize("stream", ["logits", "hidden.2", "hidden.4"])
def test_batched_generator_that_returns_other_rows_states_is_found_by_the_audit(
    stream: str, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right one by one, wrong in a batch, in one stream alone; every digest fits."""

    def mixed(teacher: Any, ids: Any, mask: Any, streams: Any) -> Any:
        found = run_teacher(teacher, ids, mask, streams)
        if stream in found and len(ids) > 1:
            found[stream] = found[stream].roll(1, 0)
        return found

    monkeypatch.setattr("tasks.kd.cache.writing.encoding.run_teacher", mixed)
    # One length, so that no row is cut; texts that differ.
    job = job_of(texts_of([8] * 20), make_params())
    manifest = write(job, tmp_path)
    cached = open_written(job, manifest, tmp_path)
    with pytest.raises(CacheCorruptError, match=rf"cache's {stream} is not what the teacher says"):
        audit(cached, live_of(job), job.input_ids, count=8)


# --- row 4: a teacher in train mode, autocast, another kernel ------------------------------------


def test_teacher_in_train_mode_is_put_into_eval_mode(
    written: Any, split: Split, tmp_path: Path
) -> None:
    _, manifest, _ = written
    teacher = make_teacher().train()
    assert write(make_job(split, make_params(), teacher), tmp_path) == manifest
    assert not teacher.training


def test_teacher_in_train_mode_is_found_by_the_audit(written: Any, split: Split) -> None:
    job, manifest, store = written
    cached, live = open_written(job, manifest, store), live_of(replace(job, teacher=make_teacher()))
    live._teacher.train()
    with pytest.raises(CacheCorruptError, match="is not what the teacher says"):
        audit(cached, live, split.input_ids, count=1)


def test_teacher_in_half_precision_is_refused_before_anything_is_written(
    split: Split, tmp_path: Path
) -> None:
    job = make_job(split, make_params(), make_teacher().bfloat16())
    with pytest.raises(DataError, match=r"Expected float32, found bfloat16"):
        write(job, tmp_path)
    assert not list(tmp_path.rglob("shard*"))


def test_teacher_under_autocast_is_run_in_full_float32(
    written: Any, split: Split, tmp_path: Path
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = make_teacher()(input_ids=torch.tensor([[2, 7]])).logits
        assert half.dtype == torch.bfloat16
        assert write(make_job(split, make_params()), tmp_path) == written[1]


def test_teacher_whose_weights_were_in_half_precision_is_found_by_the_audit(
    split: Split, tmp_path: Path
) -> None:
    """What comes out is float32, what it was made from was not."""
    job = make_job(split, make_params(streams=("hidden.2", "hidden.4")), spread_teacher())
    manifest = write(replace(job, teacher=spread_teacher().bfloat16().float()), tmp_path)
    cached = open_written(job, manifest, tmp_path)
    with pytest.raises(CacheCorruptError, match="is not what the teacher says"):
        audit(cached, live_of(job), split.input_ids, count=8)


def test_teacher_under_another_attention_kernel_says_the_same(written: Any, split: Split) -> None:
    job, manifest, store = written
    eager = make_teacher()
    eager.set_attn_implementation("eager")
    cached = open_written(job, manifest, store)
    live = live_of(replace(job, teacher=eager))
    assert audit(cached, live, split.input_ids, count=100) == len(split)


def test_teacher_under_another_attention_kernel_than_the_fingerprint_says_is_refused(
    split: Split, tmp_path: Path
) -> None:
    """The families without an SDPA kernel, and a model that was loaded in another way."""
    eager = make_teacher()
    eager.set_attn_implementation("eager")
    job = replace(make_job(split, make_params()), teacher=eager)
    with pytest.raises(DataError, match=r"attention kernel .*Expected sdpa, found eager"):
        write(job, tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))
    mpnet = small("mpnet")
    job = make_job(split, make_params(streams=("hidden.2",)), mpnet)
    assert write(job, tmp_path).made_of["numerics"]["attention"] == "eager"


def test_teacher_run_twice_gives_the_same_bits(split: Split, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(make_job(split, make_params()), tmp_path / name)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


# --- row 5: dynamic padding ----------------------------------------------------------------------


def test_dynamic_padding_neither_stored_nor_seen_in_another_batch(
    written: Any, split: Split
) -> None:
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    tokens = {ids.tobytes(): len(ids) for ids in split.input_ids}
    for entry in manifest.streams.values():
        held = [load_file(store / entry.fingerprint / shard.name) for shard in entry.shards]
        rows = manifest.examples if entry.made_of["stream"] == "logits" else sum(tokens.values())
        assert sum(len(shard["values"]) for shard in held) == rows
        assert sum(len(shard["input_ids"]) for shard in held) == sum(tokens.values())
    short, long = min(split.input_ids, key=len), max(split.input_ids, key=len)
    alone, beside = cached.fetch([short]), cached.fetch([long, short])
    length = len(short)
    for name in ("hidden.0", "hidden.2", "relation.4"):
        torch.testing.assert_close(beside[name][1, :length], alone[name][0], atol=1e-6, rtol=0)
        assert not bool(beside[name][1, length:].any())


def test_dynamic_padding_a_text_that_is_a_prefix_of_another_is_not_it(tmp_path: Path) -> None:
    """Pads are no part of a key: 2 5 and 2 5 0 are two texts."""
    texts = [np.asarray(ids, dtype=np.int32) for ids in ([2, 5], [2, 5, 0], [2, 5, 0, 0])]
    job = job_of(texts[:2], make_params())
    manifest = write(job, tmp_path)
    assert manifest.examples == 2
    cached = open_written(job, manifest, tmp_path)
    cached.fetch(texts[:2])
    with pytest.raises(CacheIncompleteError):
        cached.fetch([texts[2]])


# --- row 6: a truncated file ---------------------------------------------------------------------


def test_truncated_file_is_refused_wherever_it_was_cut(copied: Any) -> None:
    """Every file that readers read, at its start, within its header, near its end."""
    _, manifest, store = copied
    for entry in manifest.entries:
        for file in entry.files:
            path = store / entry.fingerprint / file.name
            whole = path.read_bytes()
            for length in (0, 7, 60, len(whole) // 2, len(whole) - 1):
                path.write_bytes(whole[:length])
                for verify in (True, False):
                    with pytest.raises(CacheCorruptError, match=rf"wrong size: .*{file.name}"):
                        reopen(copied, verify=verify)
            path.write_bytes(whole)
    reopen(copied)


def test_truncated_file_is_computed_again_by_a_resumed_writer(copied: Any) -> None:
    job, manifest, store = copied
    before = content_of(store)
    last = shards_of(copied, "hidden.2")[-1]
    for length in (0, 100, last.stat().st_size - 1):
        last.write_bytes(last.read_bytes()[:length])
        (last.parent / MANIFEST).unlink()
        assert write(job, store) == manifest
        assert content_of(store) == before


# --- row 7: dynamic masking ----------------------------------------------------------------------


def test_dynamic_masking_of_a_cached_text_is_refused(written: Any, split: Split) -> None:
    """Any one token changed, added, dropped or moved is another text."""
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    ids = max(split.input_ids, key=len)
    for place in range(len(ids)):
        masked = ids.copy()
        masked[place] = 4
        for other in (masked, np.delete(ids, place), np.insert(ids, place, 4), ids[::-1].copy()):
            with pytest.raises(CacheIncompleteError, match="not in the teacher cache"):
                cached.fetch([other])


# --- row 8: fields that a loader drops -----------------------------------------------------------


@pytest.mark.parametrize(
    "streams", [("logits",), ("hidden.0",), ("hidden.4", "logits"), ("relation.2",), STREAMS]
)
def test_dropped_columns_every_stream_that_was_asked_for_is_in_every_batch(
    streams: tuple[str, ...], split: Split, tmp_path: Path
) -> None:
    job = make_job(split, make_params(streams=streams))
    cached = open_written(job, write(job, tmp_path), tmp_path)
    for rows in ([0], [3, 4, 5]):
        assert set(cached.fetch([split.input_ids[row] for row in rows])) == set(streams)


# --- row 9: a forced order -----------------------------------------------------------------------


def test_forced_order_any_world_size_reads_the_same_targets(written: Any, split: Split) -> None:
    """An epoch's batches as one rank reads them, and as three do: each example once, its own."""
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    lengths = split.lengths
    seen: dict[int, dict[int, torch.Tensor]] = {}
    for world_size in (1, 3):
        seen[world_size] = {}
        for batch in epoch_batches(lengths, batch_examples=9, seed=1, epoch=2):
            for rank in range(world_size):
                pieces = micro_batches(
                    batch, lengths, max_tokens=40, rank=rank, world_size=world_size
                )
                for rows in (piece for piece in pieces if len(piece)):
                    states = cached.fetch([split.input_ids[row] for row in rows])["hidden.2"]
                    for place, row in enumerate(rows.tolist()):
                        assert row not in seen[world_size]
                        seen[world_size][row] = states[place, : lengths[row]]
    assert sorted(seen[1]) == sorted(seen[3]) == list(range(len(split)))
    assert all(torch.equal(seen[1][row], seen[3][row]) for row in seen[1])


# --- row 10: a resumed run differs from a fresh one ----------------------------------------------


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_resumed_run_serves_what_a_fresh_one_does_bit_for_bit(
    codec: str, split: Split, tmp_path: Path
) -> None:
    """Nothing but decoded values is ever served, by the writer's own run as well."""
    job = make_job(split, make_params(codec=codec))
    manifest = write(job, tmp_path / "fresh")
    first = open_written(job, manifest, tmp_path / "fresh").fetch(split.input_ids)
    again = open_written(job, manifest, tmp_path / "fresh").fetch(split.input_ids)
    assert same_streams(first, again)
    for tokens in (1, 150, 400):
        store = tmp_path / f"stopped-{tokens}"
        stop_after(job, store, tokens)
        assert write(job, store) == manifest
        assert content_of(store) == content_of(tmp_path / "fresh")
        assert same_streams(open_written(job, manifest, store).fetch(split.input_ids), first)
    live = live_of(job).fetch(split.input_ids)
    assert not torch.equal(first["hidden.2"], live["hidden.2"])  # the codec's own, not the states


# --- row 11: the disk fills up -------------------------------------------------------------------


def test_disk_fills_a_quota_is_kept_before_the_first_shard(tmp_path: Path) -> None:
    job = make_job(make_split(8), make_params(quota_gib=1e-6))
    with pytest.raises(CacheQuotaError, match=r"pass its quota.*quota_gib.*estimate of"):
        write(job, tmp_path)
    assert not list(tmp_path.rglob("shard*"))
    enough = make_job(make_split(8), make_params())
    assert write(enough, tmp_path) == write(enough, tmp_path / "fresh")


def test_disk_fills_too_little_room_is_named_before_the_first_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100

    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: Usage)
        with pytest.raises(CacheQuotaError, match=r"disk is too full.*STILLHOUSE_STORE"):
            write(make_job(make_split(8), make_params()), tmp_path)
    assert not list(tmp_path.rglob("shard*"))
