"""Opening a recipe's cache: as it is, of another teacher or data, without a stream, live."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks.kd.cache.format.fingerprint import FORMAT_VERSION, fingerprint
from tasks.kd.cache.format.manifest import Live, Manifest
from tasks.kd.cache.opening import Opened, open_targets, own_part
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.errors import CacheCorruptError, CacheIncompleteError, CacheStaleError
from tests.makers.caches import MEND, STREAMS, live_of, same_streams, spread_teacher

Written = tuple[CacheJob, Manifest, Path]


def open_it(written: Written, path: Path, *streams: str, **changes: Any) -> Opened:
    job, _, store = written
    opening = partial(open_targets, path, replace(job, **changes), streams or STREAMS)
    return opening(open_store=lambda: Store(store), part=(0, 1), mend=MEND)


def write_manifest(written: Written, folder: Path) -> Path:
    written[1].write(folder / "manifest.json")
    return folder / "manifest.json"


def write_live(job: CacheJob, folder: Path) -> Path:
    made_of = {**job.made_of, "mode": "live"}
    Live(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint(made_of),
        made_of=made_of,
        kind="live",
        why="a test says so",
        layers=4,
    ).write(folder / "manifest.json")
    return folder / "manifest.json"


def test_a_cache_is_opened_as_it_was_written(written: Written, tmp_path: Path) -> None:
    opened = open_it(written, write_manifest(written, tmp_path))
    assert opened.manifest == written[1]
    assert {*opened.targets.fetch(written[0].input_ids[:2])} == {*STREAMS}


def test_a_live_teacher_serves_what_is_asked_and_no_store_is_opened(
    written: Written, tmp_path: Path
) -> None:
    path = write_live(written[0], tmp_path)
    opened = open_targets(
        path, written[0], STREAMS, open_store=lambda: pytest.fail("opened"), part=(0, 1), mend=MEND
    )
    texts = written[0].input_ids[:2]
    assert same_streams(opened.targets.fetch(texts), live_of(written[0]).fetch(texts))


@pytest.mark.parametrize("live", [False, True])
def test_another_teacher_is_refused(written: Written, live: bool, tmp_path: Path) -> None:
    write = partial(write_live, written[0]) if live else partial(write_manifest, written)
    base = {**written[0].base, "teacher_sha256": "o" * 64}
    with pytest.raises(CacheStaleError, match=f"teacher_sha256.*Run: {MEND}"):
        open_it(written, write(tmp_path), base=base)


def test_a_record_that_is_not_the_teacher_s_is_refused(written: Written, tmp_path: Path) -> None:
    with pytest.raises(CacheCorruptError, match="is not what the teacher says"):
        open_it(written, write_manifest(written, tmp_path), teacher=spread_teacher())


def test_a_stream_that_is_not_served_is_refused(written: Written, tmp_path: Path) -> None:
    with pytest.raises(CacheIncompleteError, match=r"no hidden\.3"):
        open_it(written, write_manifest(written, tmp_path), "logits", "hidden.3")


def test_the_manifest_of_a_stream_is_refused(written: Written, tmp_path: Path) -> None:
    written[1].streams["logits"].write(tmp_path / "manifest.json")
    with pytest.raises(CacheCorruptError, match="not the manifest of a recipe's cache"):
        open_it(written, tmp_path / "manifest.json")


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "RANK": "5"}, (1, 4)),
        ({}, (0, 1)),
        ({"LOCAL_RANK": "1"}, (0, 1)),  # how many there are is not said: each compares all
        ({"LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"}, (0, 1)),
        ({"LOCAL_RANK": "-1", "LOCAL_WORLD_SIZE": "4"}, (0, 1)),
    ],
)
def test_the_part_is_that_of_the_machine_s_processes(
    environment: dict[str, str], part: tuple[int, int]
) -> None:
    assert own_part(environment) == part
