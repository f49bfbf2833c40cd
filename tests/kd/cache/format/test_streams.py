"""What is stored, what is computed, and what either costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tasks.kd.data.examples.prepared import Split
from tasks.kd.recipe.streams import (
    STREAM,
    in_order,
    kind_of,
    layer_of,
    naive_bytes,
    plan_streams,
    state_bytes,
    stream_bytes,
)
from tests.makers.caches import CODECS, make_job, make_params, write

LAYERS = 5
ALL = (
    "logits",
    *(f"hidden.{layer}" for layer in range(LAYERS + 1)),
    *(f"{kind}.{layer}" for kind in ("attention", "relation") for layer in range(1, LAYERS + 1)),
)
WANTED = st.sets(st.sampled_from(ALL), min_size=1)
RECOMPUTE = st.sampled_from(["projections", "layers"])


def inputs_of(stream: str) -> set[str]:
    """What a computed stream must find: stored states, or pieces."""
    layer = layer_of(stream)
    if stream == "hidden.0":
        return {"embeddings"}
    return {f"layer.{layer}", f"hidden.{layer - 1}" if layer > 1 else "embeddings"}


@given(WANTED, RECOMPUTE)
def test_everything_asked_for_is_stored_or_computed_from_what_is_there(
    wanted: set[str], recompute: Any
) -> None:
    found = plan_streams(wanted, recompute)
    assert set(found.stored).isdisjoint(found.computed)
    assert wanted <= {*found.stored, *found.computed}
    assert set(found.computed) <= wanted
    for stream in found.computed:
        assert inputs_of(stream) <= {*found.stored, *found.pieces}


@given(WANTED, RECOMPUTE)
def test_nothing_is_stored_that_is_not_read_or_could_be_computed(
    wanted: set[str], recompute: Any
) -> None:
    found = plan_streams(wanted, recompute)
    needed = set().union(*(inputs_of(stream) for stream in found.computed))
    for stream in found.stored:
        assert kind_of(stream) in ("logits", "hidden")
        assert stream != "hidden.0"
        assert stream in wanted | needed
    assert set(found.pieces) == {part for part in needed if kind_of(part) != "hidden"}


@given(WANTED)
def test_running_layers_again_never_stores_more(wanted: set[str]) -> None:
    less, more = plan_streams(wanted, "layers"), plan_streams(wanted, "projections")
    assert set(less.stored) <= set(more.stored)
    assert set(less.pieces) == set(more.pieces)
    both = {layer_of(s) for s in wanted if kind_of(s) in ("attention", "relation")}
    spared = {f"hidden.{layer}" for layer in both - {layer - 1 for layer in both}} & wanted
    assert set(more.stored) - set(less.stored) == spared


@given(WANTED, RECOMPUTE, st.randoms())
def test_a_plan_does_not_depend_on_the_order_of_the_streams(
    wanted: set[str], recompute: Any, random: Any
) -> None:
    shuffled = sorted(wanted)
    random.shuffle(shuffled)
    assert plan_streams(shuffled, recompute) == plan_streams(wanted, recompute)
    assert plan_streams([*shuffled, *shuffled], recompute) == plan_streams(wanted, recompute)


def test_attention_and_output_of_one_layer_by_hand() -> None:
    """TinyBERT's recipe: what methods.md, section 3a, says of it."""
    wanted = ("hidden.0", "attention.3", "hidden.3", "attention.6", "hidden.6", "logits")
    found = plan_streams(wanted, "layers")
    assert found.stored == ("logits", "hidden.2", "hidden.5")
    assert found.computed == ("hidden.0", "attention.3", "hidden.3", "attention.6", "hidden.6")
    assert found.pieces == ("embeddings", "layer.3", "layer.6")
    found = plan_streams(wanted, "projections")
    assert found.stored == ("logits", "hidden.2", "hidden.3", "hidden.5", "hidden.6")
    assert plan_streams(["relation.1"], "projections").stored == ()
    assert plan_streams(["relation.1"], "projections").pieces == ("embeddings", "layer.1")


@pytest.mark.parametrize("name", ["logits", "hidden.0", "hidden.12", "attention.1", "relation.999"])
def test_names_of_streams(name: str) -> None:
    assert re.fullmatch(STREAM, name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "logits.1", "pooled", "Hidden.1", "attention.0", "relation.0"),
        *("hidden", "hidden.", "hidden.01", "hidden.-1", "hidden.1000", "hidden.1 ", "hidden.1\n"),
    ],
)
def test_what_is_no_name_of_a_stream(name: str) -> None:
    assert not re.fullmatch(STREAM, name)


def test_order_is_by_layer_and_then_by_kind() -> None:
    mixed = ["relation.2", "hidden.10", "hidden.2", "logits", "attention.2"]
    assert in_order(mixed) == ("logits", "attention.2", "hidden.2", "relation.2", "hidden.10")


def test_bytes_of_a_state_are_those_of_methods_md() -> None:
    sizes = {codec: state_bytes(codec, 768) for codec in CODECS}
    assert sizes == {"float32": 3072, "float16": 1536, "bfloat16": 1536, "int8": 770}


@pytest.mark.parametrize("codec", CODECS)
def test_the_estimate_is_what_shards_hold(codec: str, split: Split, tmp_path: Path) -> None:
    job = make_job(split, make_params(codec=codec, streams=("logits", "hidden.1")))
    manifest = write(job, tmp_path)
    for name, stream in manifest.streams.items():
        paths = [tmp_path / stream.fingerprint / shard.name for shard in stream.shards]
        held = sum(value.nbytes for path in paths for value in load_file(path).values())
        held -= 8 * len(stream.shards)  # each shard's offsets have one number more than records
        assert held == stream_bytes(
            name, codec, stream.width, examples=stream.examples, tokens=stream.tokens
        )


def test_naive_bytes_by_hand() -> None:
    """hidden 4·4, attention 4·2·10, relation 3·4·4, logits counted per example elsewhere."""

    def bytes_of(*streams: str) -> int:
        return naive_bytes(streams, width=4, heads=2, tokens_per_example=10.0)

    assert bytes_of("logits") == 0
    assert bytes_of("hidden.1") == 16
    assert bytes_of("attention.1") == 80
    assert bytes_of("relation.1", "hidden.1", "attention.1") == 48 + 16 + 80
