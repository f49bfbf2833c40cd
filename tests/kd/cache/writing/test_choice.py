"""Cache or live teacher: what is chosen on given figures, and that real ones are measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.choice import Timings, choose, measure
from tasks.kd.data.examples.prepared import Split
from tests.makers.caches import CODECS, job_of, make_job, make_params, texts_of, write
from tests.makers.small_families import small

GIB = 2**30
# A pass of 10 µs a token, storing 2, reading 1: the cache costs 12 once and saves 9 an epoch.
PAYS = Timings(10e-6, 2e-6, 1e-6, GIB)


def test_the_break_even_by_hand() -> None:
    assert PAYS.break_even == pytest.approx(12 / 9)
    assert Timings(10e-6, 0.0, 0.0, 1).break_even == pytest.approx(1.0)
    assert Timings(10e-6, 5e-6, 5e-6, 1).break_even == pytest.approx(3.0)


@pytest.mark.parametrize(("epochs", "mode"), [(1, "live"), (2, "cache"), (50, "cache")])
def test_the_cache_is_chosen_from_the_break_even_on(epochs: int, mode: str) -> None:
    found, why = choose(PAYS, epochs=epochs, quota_bytes=2 * GIB)
    assert found == mode
    assert why == (
        "a pass of the teacher takes 10 µs a token, storing it 2.0, reading it back 1.0: "
        f"the cache pays from 1.33 epochs on, there are {epochs}"
    )


@pytest.mark.parametrize("read", [10e-6, 11e-6])
def test_a_cache_that_is_read_no_quicker_is_never_chosen(read: float) -> None:
    slow = Timings(10e-6, 2e-6, read, GIB)
    assert math.isinf(slow.break_even)
    mode, why = choose(slow, epochs=10**6, quota_bytes=2 * GIB)
    assert mode == "live"
    assert why.endswith("reading is no quicker than running it")


def test_a_cache_that_passes_the_quota_is_not_chosen_and_the_sizes_are_told() -> None:
    mode, why = choose(PAYS, epochs=50, quota_bytes=GIB // 2)
    assert (mode, why) == ("live", "the cache would take 1.00 GiB, quota_gib allows 0.50")
    assert choose(PAYS, epochs=50, quota_bytes=GIB)[0] == "cache"


SECONDS = st.floats(1e-9, 1e-2)


@given(SECONDS, SECONDS, SECONDS, st.integers(1, 1000))
def test_what_is_chosen_is_what_is_quicker(
    forward: float, write: float, read: float, epochs: int
) -> None:
    timings = Timings(forward, write, read, 1)
    live, cached = epochs * forward, forward + write + epochs * read
    mode, _ = choose(timings, epochs=epochs, quota_bytes=GIB)
    if abs(live - cached) > 1e-6 * max(live, cached):
        assert mode == ("cache" if cached < live else "live")


@pytest.mark.parametrize("recompute", ["projections", "layers"])
@pytest.mark.parametrize("codec", CODECS)
def test_real_figures_are_measured_and_nothing_is_left(
    codec: str, recompute: str, split: Split, tmp_path: Path
) -> None:
    streams = ("logits", "hidden.0", "hidden.2", "attention.2", "hidden.4", "relation.4")
    params = make_params(codec=codec, recompute=recompute, streams=streams)
    job = make_job(split, params)
    timings = measure(job, Store(tmp_path / "store"))
    assert min(timings.forward, timings.write, timings.read) > 0
    assert list((tmp_path / "store").iterdir()) == []
    manifest = write(job, tmp_path / "store")
    shards = [shard for stream in manifest.streams.values() for shard in stream.shards]
    spent = sum(shard.bytes for shard in shards)
    assert 0.6 * spent < timings.bytes < spent  # headers of safetensors are in no estimate
    choose(timings, epochs=3, quota_bytes=GIB)


@pytest.mark.parametrize("streams", [("logits",), ("hidden.0",), ("attention.1",), ("hidden.2",)])
def test_any_streams_of_any_number_of_texts_are_measured(
    streams: tuple[str, ...], tmp_path: Path
) -> None:
    for count in (1, 2, 30):
        params = make_params(streams=streams, batch_tokens=16)
        timings = measure(job_of(texts_of([7] * count), params), Store(tmp_path))
        assert timings.forward > 0
        assert (timings.bytes == 0) == (streams in (("hidden.0",), ("attention.1",)))


def test_a_family_of_other_names_for_its_sizes_is_measured(tmp_path: Path) -> None:
    """DistilBERT's configuration has no hidden_size of its own."""
    teacher: Any = small("distilbert")
    job = job_of(texts_of([7, 8, 9]), make_params(codec="float32", streams=("hidden.2",)), teacher)
    assert measure(job, Store(tmp_path)).bytes == 4 * 32 * 24 + 4 * 24 + 24 * 3
