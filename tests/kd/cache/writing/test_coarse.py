"""A codec that is too coarse for what is computed from a state gives way by name, as it does for
the state itself, and what recipes share stays shared."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.kd.cache.format.manifest import Manifest, Stream
from tasks.kd.cache.format.parsing import parse_document
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache, write_share
from tasks.kd.data.examples.prepared import Split
from tasks.kd.digests import canonical_json, sha256_json
from tasks.kd.errors import CacheCorruptError
from tests.makers.broken_caches import stop_after
from tests.makers.caches import (
    content_of,
    identities_in,
    live_of,
    make_job,
    make_params,
    open_written,
    spread_teacher,
    write,
)

STREAMS = ("hidden.1", "hidden.4", "attention.2", "relation.4")


def amplifying_teacher() -> Any:
    """Its second layer asks for the sum of all channels, which a norm has just made zero.

    Of decoded int8, that sum is nothing but rounding.
    """
    teacher = spread_teacher()
    attention = teacher.bert.encoder.layer[1].attention.self
    with torch.no_grad():
        for projection in (attention.query, attention.key):
            projection.weight.fill_(10.0)
            projection.bias.fill_(1.0)
    return teacher


def job_with(bound: float, split: Split, streams: tuple[str, ...] = STREAMS) -> CacheJob:
    params = make_params(codec="int8", streams=streams, max_relative_error=bound)
    return make_job(split, params, amplifying_teacher())


def worst(job: CacheJob, manifest: Manifest, store: Path, stream: str, texts: Any) -> float:
    """Relative error of a stream as it is served, over all texts alone."""
    cached, live = open_written(job, manifest, store), live_of(job)
    difference, norm = 0.0, 0.0
    for ids in texts:
        own, theirs = (one.fetch([ids])[stream].double() for one in (cached, live))
        difference += float((own - theirs).square().sum())
        norm += float(theirs.square().sum())
    return math.sqrt(difference / norm)


def test_what_is_computed_too_coarsely_makes_its_source_exact_by_name(
    split: Split, tmp_path: Path
) -> None:
    free = job_with(10.0, split)
    coarse = write(free, tmp_path / "free")
    assert coarse.coarser == {}
    assert coarse.streams["hidden.1"].relative_error < 0.02  # of itself, int8 is fine enough
    assert coarse.computed["attention.2"] > 0.05
    found = worst(free, coarse, tmp_path / "free", "attention.2", split.input_ids)
    assert found > 0.05  # the figure is that of what is served

    job, said = job_with(0.02, split), list[str]()
    manifest = write(job, tmp_path / "bound", on_coarse=said.append)
    assert manifest.coarser == {"hidden.1": "float32"}
    assert manifest.streams["hidden.1"].relative_error == 0
    assert manifest.streams["hidden.3"].codec == "int8"
    assert manifest.codec_errors["attention.2"] < 1e-4
    assert worst(job, manifest, tmp_path / "bound", "attention.2", split.input_ids) < 1e-4
    assert len(said) == 1
    assert said[0].startswith("hidden.1 is kept in float32: with int8, attention.2, which is")


def test_the_finished_cache_is_found_and_the_teacher_not_run_again(
    split: Split, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_with(0.02, split)
    manifest, before = write(job, tmp_path), content_of(tmp_path)
    monkeypatch.setattr("tasks.kd.cache.writing.calibration.run_teacher", None)
    asked.clear()
    assert write(job, tmp_path) == manifest
    assert asked == []
    assert content_of(tmp_path) == before


def test_a_recipe_that_reads_the_state_alone_keeps_its_own(split: Split, tmp_path: Path) -> None:
    """What is stored under a fingerprint doesn't depend on who asked first."""
    alone, both = job_with(0.02, split, ("hidden.1",)), job_with(0.02, split)
    first = write(alone, tmp_path)
    before = identities_in(tmp_path)
    second = write(both, tmp_path)
    assert {path: identities_in(tmp_path)[path] for path in before} == before
    assert (first.streams["hidden.1"].codec, second.streams["hidden.1"].codec) == (
        "int8",
        "float32",
    )
    assert open_written(alone, first, tmp_path).fetch(split.input_ids[:2])
    other = tmp_path / "other"
    assert write(both, other) == second
    assert write(alone, other) == first


def test_the_exact_entry_is_that_of_a_recipe_that_asks_for_float32(
    split: Split, tmp_path: Path, asked: list[Any]
) -> None:
    manifest = write(job_with(0.02, split, ("attention.2",)), tmp_path)
    asked.clear()
    params = make_params(codec="float32", streams=("hidden.1",))
    exact = write(make_job(split, params, amplifying_teacher()), tmp_path)
    assert exact.streams == manifest.streams
    assert asked == []


def test_a_killed_writer_goes_on_with_the_exact_entry(split: Split, tmp_path: Path) -> None:
    job = job_with(0.02, split)
    expected = write(job, tmp_path / "whole")
    stop_after(job, tmp_path / "killed", sum(len(ids) for ids in split.input_ids) // 2)
    kept = identities_in(tmp_path / "killed")
    assert write(job, tmp_path / "killed") == expected
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "whole")
    assert kept.items() <= identities_in(tmp_path / "killed").items()


def test_several_processes_write_the_exact_entry(split: Split, tmp_path: Path) -> None:
    job = job_with(0.02, split)
    store = Store(tmp_path / "shared")

    def spread(codecs: Any) -> None:
        for rank in range(2):  # each begins with a job of its own, as another process does
            own = job_with(0.02, split)
            write_share(own, store, codecs, on_tokens=lambda _: None, rank=rank, world_size=2)

    manifest = write_cache(job, store, on_tokens=lambda _: None, spread=spread)
    assert manifest == write(job, tmp_path / "alone")
    assert content_of(tmp_path / "shared") == content_of(tmp_path / "alone")


def test_a_cache_of_before_this_bound_is_written_again(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_with(0.02, split)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.kd.cache.writing.writer.too_coarse", lambda *_: {})
        before = write(job, tmp_path)
    assert before.coarser == {}
    assert before.computed["attention.2"] > 0.02
    assert write(job, tmp_path).coarser == {"hidden.1": "float32"}


def test_what_is_float32_already_is_as_exact_as_it_can_be(split: Split, tmp_path: Path) -> None:
    job = job_with(1e-12, split)
    manifest = write(job, tmp_path)
    assert {stream.codec for stream in manifest.streams.values()} == {"float32"}
    job = replace(job, params=make_params(codec="float32", max_relative_error=1e-12))
    assert write(job, tmp_path).coarser == {}


def test_an_entry_of_any_other_codec_is_none_of_the_caches(split: Split, tmp_path: Path) -> None:
    """Of the recipe's codec, or exact: no third."""
    manifest = write(job_with(0.02, split), tmp_path)
    params = make_params(codec="bfloat16", streams=("hidden.1",), max_relative_error=0.02)
    other = write(make_job(split, params, amplifying_teacher()), tmp_path)
    forged: dict[str, Any] = manifest.model_dump(mode="json")
    text = canonical_json({**forged, "content_sha256": sha256_json(forged)})
    assert parse_document(text.encode(), "here") == manifest
    stream: Stream = other.streams["hidden.1"]
    forged["streams"]["hidden.1"] = stream.model_dump(mode="json")
    text = canonical_json({**forged, "content_sha256": sha256_json(forged)})
    with pytest.raises(CacheCorruptError, match=r"contradicts itself.*another entry as hidden\.1"):
        parse_document(text.encode(), "here")
