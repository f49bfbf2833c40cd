"""What a cache will take and cost: against figures worked out by hand, and against a real cache."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.kd.cache.format.estimate import (
    CODECS,
    Estimate,
    Teacher,
    Texts,
    break_even,
    estimate,
    recompute_share,
)
from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.recipe.streams import Recompute, plan_streams

BASE = Teacher(layers=12, width=768, heads=12, intermediate=3072)
TINYBERT = (
    *(f"hidden.{layer}" for layer in (0, 3, 6, 9, 12)),
    *(f"attention.{layer}" for layer in (3, 6, 9, 12)),
)


def of_tinybert(recompute: Recompute, texts: Texts | None = None) -> Estimate:
    return estimate(TINYBERT, recompute, "int8", BASE, longest=128, texts=texts)


def test_bytes_of_tinyberts_recipe_are_those_worked_out_by_hand() -> None:
    """arXiv:1909.10351 with 4 of 12 layers: embeddings, hidden states and attention, 128 tokens."""
    found = of_tinybert("layers")
    assert found.naive_bytes_per_token == 5 * 3072 + 4 * 6144
    # Four states of 768 bytes, a scale of two and the token id of four; 24 bytes per example.
    assert found.sizes["int8"].bytes_per_token == pytest.approx(4 * (768 + 2 + 4 + 24 / 128))
    assert found.sizes["float16"].bytes_per_token == pytest.approx(4 * (2 * 768 + 4 + 24 / 128))
    assert found.naive_bytes_per_token / found.sizes["int8"].bytes_per_token > 12
    assert [one.stream for one in found.served if one.stored] == [
        "hidden.2", "hidden.5", "hidden.8", "hidden.11",
    ]  # fmt: skip


def test_each_stream_says_what_it_is_computed_from_and_for() -> None:
    found = {one.stream: one for one in of_tinybert("projections").served}
    assert (found["hidden.0"].source, found["hidden.0"].piece) == ("the token ids", "embeddings")
    assert (found["attention.3"].source, found["attention.3"].piece) == ("hidden.2", "layer.3")
    assert (found["hidden.2"].read, found["hidden.2"].needed_for) == (False, ("attention.3",))
    assert (found["hidden.3"].read, found["hidden.3"].needed_for) == (True, ())
    assert found["attention.3"].bytes_per_token == 0
    again = {one.stream: one for one in of_tinybert("layers").served}
    assert again["hidden.2"].needed_for == ("attention.3", "hidden.3")


@pytest.mark.parametrize(
    ("streams", "recompute", "share"),
    [
        (("hidden.3", "logits", "hidden.0"), "projections", 0),
        (("relation.12",), "projections", 3 / 144),  # 3·d² of twelve layers of 12·d²
        (("relation.12", "attention.12"), "projections", 3 / 144),  # projected once
        (TINYBERT, "projections", 4 * 3 / 144),
        (TINYBERT, "layers", 4 * (3 + 12) / 144),
    ],
)
def test_recomputation_as_a_share_of_a_forward_pass(
    streams: tuple[str, ...], recompute: Recompute, share: float
) -> None:
    found = recompute_share(plan_streams(streams, recompute), BASE)
    assert found == pytest.approx(share)
    assert break_even(found) == pytest.approx(1 / (1 - share))


def test_a_narrow_feed_forward_part_makes_the_projections_a_larger_share() -> None:
    narrow = replace(BASE, intermediate=768)  # a layer is 6·d²
    assert recompute_share(plan_streams(["relation.1"], "projections"), narrow) == pytest.approx(
        3 / 72
    )


def test_a_cache_that_runs_as_much_as_the_teacher_never_pays() -> None:
    one = replace(BASE, layers=1)  # its only layer is run again, and projected apart
    found = estimate(["hidden.1", "attention.1"], "layers", "int8", one, longest=8, texts=None)
    assert found.recompute_share == pytest.approx(15 / 12)
    assert found.break_even == float("inf")


def test_totals_need_texts_and_labels() -> None:
    streams = ("logits", "hidden.1")
    before = estimate(streams, "projections", "int8", BASE, longest=64, texts=None)
    assert {size.bytes for size in before.sizes.values()} == {None}
    after = estimate(
        streams, "projections", "int8", BASE, longest=64, texts=Texts(10, 200, labels=3)
    )
    logits, hidden = 10 * (24 + 12) + 200 * 4, 10 * 24 + 200 * (4 + 770)
    assert [one.bytes for one in after.served] == [logits, hidden]
    assert after.sizes["int8"].bytes == logits + hidden
    assert after.sizes["int8"].bytes_per_token == pytest.approx((logits + hidden) / 200)
    assert after.tokens_per_example == 20


def test_the_estimate_is_what_a_real_cache_takes(written: tuple[CacheJob, Manifest, Path]) -> None:
    """To the byte: but for each shard's header, and the offset that its last record ends at."""
    job, manifest, store = written
    found = estimate(
        job.params.streams,
        job.params.recompute,
        job.params.codec,
        Teacher(layers=4, width=32, heads=4, intermediate=64),
        longest=20,
        texts=Texts(manifest.examples, manifest.tokens, labels=3),
    )
    expected = {one.stream: one.bytes for one in found.served if one.stored}
    assert set(expected) == set(manifest.streams)
    for name, stream in manifest.streams.items():
        tensors = 0
        for shard in stream.shards:
            with (store / stream.fingerprint / shard.name).open("rb") as file:
                header = int.from_bytes(file.read(8), "little")
                assert json.loads(file.read(header))
            tensors += shard.bytes - 8 - header
        assert tensors == (expected[name] or 0) + 8 * len(stream.shards), name
    assert found.sizes[job.params.codec].bytes == sum(size or 0 for size in expected.values())


def test_every_codec_is_in_the_table_and_the_larger_take_more() -> None:
    sizes = of_tinybert("layers").sizes
    assert tuple(sizes) == CODECS
    assert sizes["float32"].bytes_per_token > sizes["float16"].bytes_per_token
    assert sizes["float16"] == sizes["bfloat16"]


def test_an_estimate_loads_nothing_but_the_standard_library(root: Path) -> None:
    code = "import sys, tasks.kd.cache.format.estimate; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "pydantic", "safetensors"} & set(done.stdout.split())
