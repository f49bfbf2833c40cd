"""What is read is what the teacher said, for every codec, whoever wrote it and however often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.kd.cache.reading.audit import audit, tolerance
from tasks.kd.cache.writing.job import distinct
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import Targets
from tasks.kd.recipe.streams import kind_of, plan_streams
from tasks.kd.targets.targets import LiveTargets
from tests.kd.conftest import make_split, make_teacher
from tests.makers.caches import (
    CODECS,
    STREAMS,
    content_of,
    identities_in,
    job_of,
    live_of,
    make_job,
    make_params,
    open_written,
    texts_of,
    write,
)
from tests.makers.small_families import CONFIGS, small

# Everything of layer 3, so that its output can be computed again.
MORE = (*STREAMS, "hidden.1", "hidden.3", "attention.3", "relation.3", "relation.1", "attention.1")


def require_close(own: Targets, theirs: Targets, texts: Any, bounds: dict[str, float]) -> None:
    """One padded batch of both: the same streams and shapes, as close as the codec explains."""
    found, expected = own.fetch(texts), theirs.fetch(texts)
    assert found.keys() == expected.keys()
    real = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.bool)
    for row, ids in enumerate(texts):
        real[row, : len(ids)] = True
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.shape == expected[name].shape
        difference, whole = value - expected[name], expected[name]
        if kind_of(name) == "attention":  # what stands at padding means nothing
            pairs = (real[:, :, None] & real[:, None, :])[:, None].expand_as(value)
            pairs = pairs & ~torch.isneginf(whole)  # nor what a local window excludes
            assert torch.equal(torch.isneginf(value), torch.isneginf(whole))
            difference, whole = difference[pairs], whole[pairs]
        elif name != "logits":
            assert not bool(value[~real].any())
        assert float(difference.norm()) <= bounds[name] * float(whole.norm())


@pytest.mark.parametrize("recompute", ["projections", "layers"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_stream_of_every_example_is_the_teacher_s(
    codec: str, recompute: str, split: Split, tmp_path: Path
) -> None:
    job = make_job(split, make_params(codec=codec, recompute=recompute, streams=MORE))
    manifest = write(job, tmp_path)
    cached, live = open_written(job, manifest, tmp_path), live_of(job)
    assert audit(cached, live, split.input_ids, count=100) == len(split)
    bounds = tolerance(manifest.codec_errors)
    assert max(bounds.values()) < {"float32": 2e-4, "float16": 2e-3}.get(codec, 0.05)
    require_close(cached, live, [split.input_ids[row] for row in (3, 17, 5, 3)], bounds)
    assert set(manifest.streams) == set(plan_streams(MORE, recompute).stored)  # type: ignore[arg-type]
    assert set(manifest.computed) == set(MORE) - set(manifest.streams)
    assert len(manifest.streams["hidden.1"].shards) > 3


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=16),
    codec=st.sampled_from(CODECS),
    recompute=st.sampled_from(["projections", "layers"]),
    streams=st.sets(st.sampled_from(MORE), min_size=1),
    seed=st.integers(0, 99),
)
def test_ragged_texts_come_back_whatever_is_asked_for(
    lengths: list[int], codec: str, recompute: str, streams: set[str], seed: int
) -> None:
    texts = texts_of(lengths, seed)
    params = make_params(codec=codec, recompute=recompute, streams=tuple(sorted(streams)))
    job = job_of(texts, params)
    with TemporaryDirectory() as folder:
        manifest = write(job, Path(folder))
        cached = open_written(job, manifest, Path(folder))
        live = live_of(job)
        audit(cached, live, texts, count=len(texts))
        require_close(cached, live, texts, tolerance(manifest.codec_errors))


@pytest.mark.parametrize("recompute", ["projections", "layers"])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_family_s_streams_come_back(family: str, recompute: str, tmp_path: Path) -> None:
    """Rotary and relative positions, local windows, shared and fused weights, norms before."""
    streams: tuple[str, ...] = ("logits", "hidden.0", "hidden.1", "hidden.2", "hidden.4")
    if family != "deberta-v2":
        streams = (*streams, "attention.1", "attention.2", "attention.4", "relation.2")
    params = make_params(streams=streams, recompute=recompute, max_relative_error=1.0)
    texts = texts_of([3, 17, 9, 9, 5, 12])
    job = replace(job_of(texts, params, small(family)), pad_id=1)
    manifest = write(job, tmp_path)
    cached = open_written(job, manifest, tmp_path)
    cached._pad_id = 1
    assert audit(cached, live_of(job), texts, count=100) == len(texts)
    require_close(cached, live_of(job), texts[:3], tolerance(manifest.codec_errors))
    has_kl = {name for name, stream in manifest.streams.items() if stream.attention_kl is not None}
    inner = set(manifest.streams) & {"hidden.1", "hidden.2", "hidden.3"}
    assert has_kl == (set() if family == "deberta-v2" else inner)


@pytest.fixture(scope="module")
def one_by_one(written: Any, split: Split) -> tuple[Targets, list[dict[str, torch.Tensor]]]:
    """A cache, and what it serves of each example alone."""
    job, manifest, store = written
    cached = open_written(job, manifest, store, verify=False)
    return cached, [cached.fetch([ids]) for ids in split.input_ids]


@given(st.lists(st.integers(0, 39), min_size=1, max_size=12))
def test_a_batch_of_any_examples_in_any_order_is_theirs(
    one_by_one: Any, split: Split, rows: list[int]
) -> None:
    """Stored streams bit for bit as alone; padding is zero."""
    cached, each = one_by_one
    together = cached.fetch([split.input_ids[row] for row in rows])
    for place, row in enumerate(rows):
        alone = each[row]
        length = len(split.input_ids[row])
        assert torch.equal(together["logits"][place], alone["logits"][0])
        for name in ("hidden.2", "hidden.4"):
            assert torch.equal(together[name][place, :length], alone[name][0])
            assert not bool(together[name][place, length:].any())
        relation = together["relation.4"][place, :length]
        torch.testing.assert_close(relation, alone["relation.4"][0], atol=1e-6, rtol=1e-5)


def test_no_padding_is_stored(written: Any, split: Split) -> None:
    _, manifest, _ = written
    unique = {ids.tobytes(): len(ids) for ids in split.input_ids}
    assert manifest.examples == len(unique)
    assert manifest.tokens == sum(unique.values())
    assert all(stream.tokens == manifest.tokens for stream in manifest.streams.values())


def test_equal_texts_are_stored_once(tmp_path: Path) -> None:
    split = make_split(6)
    twice = replace(split, input_ids=[*split.input_ids, *split.input_ids])
    once = write(make_job(split, make_params()), tmp_path / "once")
    both = write(make_job(twice, make_params()), tmp_path / "both")
    assert both.examples == len({ids.tobytes() for ids in split.input_ids})
    assert both == once


def test_records_are_sorted_by_length_and_then_by_key() -> None:
    keys, texts = distinct(texts_of([5, 3, 9, 3, 5, 3]))
    assert [len(ids) for ids in texts] == [3, 3, 3, 5, 5, 9]
    assert keys[:3] == sorted(keys[:3])
    assert keys[3:5] == sorted(keys[3:5])


def test_the_bytes_do_not_depend_on_the_order_of_the_examples(
    written: Any, split: Split, tmp_path: Path
) -> None:
    _, manifest, store = written
    shuffled = split.take(np.random.default_rng(1).permutation(len(split)))
    assert write(make_job(shuffled, make_params()), tmp_path) == manifest
    assert content_of(tmp_path) == content_of(store)


def test_a_teacher_left_in_train_mode_is_put_into_eval_mode(
    written: Any, split: Split, tmp_path: Path
) -> None:
    _, manifest, _ = written
    assert write(make_job(split, make_params(), make_teacher().train()), tmp_path) == manifest


def test_a_second_writer_finds_it_done_and_writes_nothing(
    copied: Any, asked: list[tuple[str, ...]]
) -> None:
    job, manifest, store = copied
    told: list[int] = []
    before = identities_in(store), content_of(store)
    assert write(job, store, on_tokens=told.append) == manifest
    assert told == []
    assert asked == []
    assert (identities_in(store), content_of(store)) == before


def test_progress_counts_every_token_once(split: Split, tmp_path: Path) -> None:
    told: list[int] = []
    manifest = write(make_job(split, make_params()), tmp_path, on_tokens=told.append)
    assert sum(told) == manifest.tokens
    assert len(told) > 5


def test_streams_that_no_level_reads_are_not_served(split: Split, tmp_path: Path) -> None:
    job = make_job(split, make_params(streams=("attention.3", "hidden.3", "hidden.0")))
    manifest = write(job, tmp_path)
    assert set(manifest.streams) == {"hidden.2", "hidden.3"}
    assert manifest.internal == {"hidden.2"}
    assert manifest.served == ("hidden.0", "attention.3", "hidden.3")
    cached = open_written(job, manifest, tmp_path)
    assert tuple(cached.fetch(split.input_ids[:2])) == manifest.served == cached.streams


def test_a_recipe_of_nothing_but_embeddings_stores_nothing(split: Split, tmp_path: Path) -> None:
    job = make_job(split, make_params(streams=("hidden.0", "relation.1")))
    manifest = write(job, tmp_path)
    assert (manifest.streams, manifest.examples, manifest.tokens) == ({}, 0, 0)
    assert not list(tmp_path.rglob("shard*"))
    cached = open_written(job, manifest, tmp_path)
    assert audit(cached, live_of(job), split.input_ids, count=9) == 9


def test_streams_whose_shards_are_cut_elsewhere_are_served_together(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stream of an earlier recipe with other shards; a third where all texts are in one."""
    for size, streams in ((2**12, ("hidden.2",)), (2**13, ("hidden.3",)), (2**20, STREAMS)):
        monkeypatch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", size)
        job = make_job(split, make_params(streams=streams))
        manifest = write(job, tmp_path)
    counts = {name: len(stream.shards) for name, stream in manifest.streams.items()}
    assert counts["hidden.2"] > counts["hidden.3"] > counts["hidden.4"] == counts["logits"] == 1
    cached, live = open_written(job, manifest, tmp_path), live_of(job)
    assert audit(cached, live, split.input_ids, count=100) == len(split)
    require_close(cached, live, split.input_ids, tolerance(manifest.codec_errors))


def test_one_text_of_one_token_is_a_cache(tmp_path: Path) -> None:
    texts = texts_of([1])
    job = job_of(texts, make_params(codec="int8"))
    manifest = write(job, tmp_path)
    assert (manifest.examples, manifest.tokens) == (1, 1)
    audit(open_written(job, manifest, tmp_path), live_of(job), texts, count=1)


# --- where a codec is too coarse -----------------------------------------------------------------


def test_a_layer_that_overflows_the_codec_is_kept_in_float32_and_named(tmp_path: Path) -> None:
    teacher = make_teacher()
    with torch.no_grad():
        teacher.bert.encoder.layer[3].output.LayerNorm.weight[0] = 1e6
    split = make_split(8)
    job = make_job(split, make_params(), teacher)
    manifest = write(job, tmp_path)
    assert manifest.coarser == {"hidden.4": "float32"}
    kept = {name: stream.codec for name, stream in manifest.streams.items()}
    assert kept.pop("logits") == kept.pop("hidden.4") == "float32"
    assert set(kept.values()) == {"float16"}
    assert manifest.streams["hidden.4"].relative_error == 0
    assert manifest.made_of["codec"] == "float16"
    audit(open_written(job, manifest, tmp_path), live_of(job), split.input_ids, count=100)


def test_a_layer_whose_error_passes_the_bound_is_kept_in_float32(
    split: Split, tmp_path: Path
) -> None:
    free = write(make_job(split, make_params(codec="int8")), tmp_path)
    errors = {s: free.streams[s].relative_error for s in free.streams if s != "logits"}
    assert free.coarser == {}
    worst, next_worst = sorted(errors.values(), reverse=True)[:2]
    bound = (worst + next_worst) / 2
    job = make_job(split, make_params(codec="int8", max_relative_error=bound))
    bounded = write(job, tmp_path)
    too_coarse = {stream for stream, error in errors.items() if error > bound}
    assert set(bounded.coarser) == too_coarse
    assert len(too_coarse) == 1
    assert all(bounded.streams[s].relative_error == 0 for s in too_coarse)
    audit(open_written(job, bounded, tmp_path), live_of(job), split.input_ids, count=100)


def test_the_audit_s_records_are_the_same_ones_each_time(
    written: Any, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    seen: list[list[bytes]] = []
    for _ in range(2):
        seen.append([])
        monkeypatch.setattr(
            "tasks.kd.cache.reading.audit.compare",
            lambda a, b, ids, c: seen[-1].append(ids.tobytes()),
        )
        live = LiveTargets(make_teacher(), STREAMS, pad_id=0)
        assert audit(cached, live, split.input_ids, count=7) == 7
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 7
