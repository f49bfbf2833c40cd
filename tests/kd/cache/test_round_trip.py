"""What is read is what the teacher said, for every codec, whoever wrote it and however often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.kd.cache import codec as codecs
from tasks.kd.cache.audit import audit, cached_error, compare
from tasks.kd.cache.fingerprint import differences, fingerprint
from tasks.kd.cache.writer import fields_of, write_cache
from tasks.kd.data import Split
from tasks.kd.targets import LiveTargets
from tests.kd.cache.conftest import STREAMS, make_job, make_params, open_written
from tests.kd.conftest import make_split, make_teacher


@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16"])
def test_every_stream_of_every_example_is_the_teacher_s(
    codec: str, split: Split, tmp_path: Path
) -> None:
    job = make_job(split, make_params(codec=codec))
    manifest = write_cache(job, tmp_path, on_tokens=lambda _: None)
    cached = open_written(job, manifest, tmp_path)
    live = LiveTargets(make_teacher(), STREAMS, pad_id=0)
    assert audit(cached, live, split.input_ids, count=100) == len(split)
    rows = [3, 17, 5]
    stored = cached.fetch([split.input_ids[row] for row in rows])
    fresh = live.fetch([split.input_ids[row] for row in rows])
    assert set(stored) == set(fresh) == set(STREAMS)
    for name in STREAMS:
        atol = 3e-6 if codec == "float32" or name in ("logits", "hidden.0") else 2e-2
        torch.testing.assert_close(stored[name], fresh[name], atol=atol, rtol=0)


def test_padding_is_zero_and_never_stored(written: Any, split: Split) -> None:
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    short, long = min(split.input_ids, key=len), max(split.input_ids, key=len)
    states = cached.fetch([short, long])["hidden.2"]
    assert float(states[0, len(short) :].abs().sum()) == 0
    unique = {ids.tobytes(): len(ids) for ids in split.input_ids}
    assert manifest.tokens == sum(unique.values())


def test_equal_texts_are_stored_once(tmp_path: Path) -> None:
    split = make_split(6)
    twice = replace(split, input_ids=[*split.input_ids, *split.input_ids])
    manifest = write_cache(make_job(twice, make_params()), tmp_path, on_tokens=lambda _: None)
    assert manifest.examples == len({ids.tobytes() for ids in split.input_ids})


def test_the_content_does_not_depend_on_the_order_of_the_examples(
    written: Any, split: Split, tmp_path: Path
) -> None:
    _, manifest, _ = written
    reversed_split = split.take(np.arange(len(split))[::-1])
    again = write_cache(make_job(reversed_split, make_params()), tmp_path, on_tokens=lambda _: None)
    assert again == manifest


def test_a_second_writer_finds_it_done(copied: Any) -> None:
    job, manifest, store = copied
    told: list[int] = []
    assert write_cache(job, store, on_tokens=told.append) == manifest
    assert told == []


def test_progress_counts_every_token_once(split: Split, tmp_path: Path) -> None:
    told: list[int] = []
    manifest = write_cache(make_job(split, make_params()), tmp_path, on_tokens=told.append)
    assert sum(told) == manifest.tokens
    assert len(told) == len(manifest.shards) > 3


def test_deviations_are_those_of_all_tokens(written: Any, split: Split) -> None:
    job, manifest, store = written
    cached = open_written(job, manifest, store)
    unique = list({ids.tobytes(): ids for ids in split.input_ids}.values())
    live = LiveTargets(make_teacher(), STREAMS, pad_id=0)
    for layer in (0, 2):
        states = torch.cat([live.fetch([ids])[f"hidden.{layer}"][0] for ids in unique])
        expected = states.std(0, correction=0)
        torch.testing.assert_close(cached.deviations[layer], expected, atol=1e-3, rtol=1e-3)


def test_a_layer_that_the_codec_cannot_hold_is_kept_in_float32(tmp_path: Path) -> None:
    teacher = make_teacher()
    with torch.no_grad():
        teacher.bert.encoder.layer[3].output.LayerNorm.weight[0] = 1e6
    job = make_job(make_split(8), make_params(), teacher)
    manifest = write_cache(job, tmp_path, on_tokens=lambda _: None)
    kept = {name: stream.codec for name, stream in manifest.streams.items()}
    assert kept == {"logits": "float32", "hidden.2": "float16", "hidden.4": "float32"}


def test_a_codec_s_measured_error_is_infinite_where_it_overflows() -> None:
    assert codecs.relative_error(torch.tensor([1e6, 1.0]), "float16") == float("inf")
    assert codecs.relative_error(torch.tensor([1e6, 1.0]), "bfloat16") < 0.01
    assert codecs.relative_error(torch.randn(99), "float32") == 0


def test_the_fingerprint_is_that_of_what_decides_the_content() -> None:
    made = {"teacher_sha256": "a", "tokenizer_sha256": "b", "encoded_sha256": "c"}
    first = fields_of(**made, params=make_params())
    same = fields_of(**made, params=make_params(shard_mib=64, quota_gib=9.0, batch_tokens=512))
    assert fingerprint(first) == fingerprint(same)
    for changed in (
        fields_of(**{**made, "teacher_sha256": "x"}, params=make_params()),
        fields_of(**{**made, "tokenizer_sha256": "x"}, params=make_params()),
        fields_of(**{**made, "encoded_sha256": "x"}, params=make_params()),
        fields_of(**made, params=make_params(codec="float32")),
        fields_of(**made, params=make_params(streams=("logits",))),
    ):
        assert fingerprint(first) != fingerprint(changed)
        assert len(differences(first, changed)) == 1


def test_comparing_fires_on_another_teacher(written: Any, split: Split) -> None:
    from tasks.kd.errors import CacheCorruptError

    job, manifest, store = written
    cached = open_written(job, manifest, store)
    other = LiveTargets(make_teacher(seed=5), STREAMS, pad_id=0)
    with pytest.raises(CacheCorruptError, match=r"is not what the teacher says"):
        compare(cached, other, split.input_ids[0], cached_error(cached))


def test_comparing_fires_on_a_teacher_left_in_train_mode(written: Any, split: Split) -> None:
    from tasks.kd.errors import CacheCorruptError

    job, manifest, store = written
    cached = open_written(job, manifest, store)
    live = LiveTargets(make_teacher(), STREAMS, pad_id=0)
    live._teacher.train()
    with pytest.raises(CacheCorruptError):
        audit(cached, live, split.input_ids, count=4)
