"""Damaged, swapped, missing and forged files: refused by name before a value is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tasks.kd.cache.format.fingerprint import fingerprint
from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.cache.format.parsing import parse_document, read_document
from tasks.kd.cache.reading.audit import audit
from tasks.kd.data.examples.prepared import Split
from tasks.kd.digests import sha256_file
from tasks.kd.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    NonFiniteLossError,
)
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
    content_of,
    live_of,
    make_job,
    make_params,
    open_written,
    same_streams,
    write,
)

# --- what else can be wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("streams", [("hidden.2", "hidden.2"), ("hidden.2", "hidden.4")])
def test_swapped_shards_are_found(streams: tuple[str, str], copied: Any) -> None:
    """Within a stream, and between two of the same codec and width."""
    first, second = shards_of(copied, streams[0])[0], shards_of(copied, streams[1])[1]
    if streams[0] != streams[1]:
        second = shards_of(copied, streams[1])[0]
        assert first.stat().st_size == second.stat().st_size
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(CacheCorruptError, match=r"shard-0000"):
        reopen(copied)


@pytest.mark.parametrize("verify", [True, False])
def test_swapped_statistics_are_found_even_without_verifying(
    verify: bool, split: Split, tmp_path: Path
) -> None:
    """They are of one size for all layers, and every int8 value is decoded with them."""
    job = make_job(split, make_params(codec="int8"))
    manifest = write(job, tmp_path)
    one, two = (
        tmp_path / manifest.streams[s].fingerprint / "statistics.safetensors"
        for s in ("hidden.2", "hidden.4")
    )
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(CacheCorruptError, match=r"is damaged: .*statistics"):
        open_written(job, manifest, tmp_path, verify=verify)


def test_a_missing_shard_is_named_with_the_command_that_mends_it(copied: Any) -> None:
    shards_of(copied, "hidden.4")[1].unlink()
    with pytest.raises(CacheIncompleteError, match=r"missing: .*shard-00001.*Run: dvc repro"):
        reopen(copied)


def test_a_shard_in_place_of_another_is_found(copied: Any) -> None:
    first, second, *_ = shards_of(copied, "hidden.2")
    second.write_bytes(first.read_bytes())
    with pytest.raises(CacheCorruptError, match=r"shard-00001"):
        reopen(copied)


def test_shards_that_no_manifest_names_are_ignored(copied: Any, split: Split) -> None:
    whole = reopen(copied).fetch(split.input_ids)
    first = shards_of(copied, "hidden.2")[0]
    (first.parent / "shard-00099.safetensors").write_bytes(first.read_bytes())
    assert same_streams(reopen(copied).fetch(split.input_ids), whole)


def test_a_store_without_the_shards_is_named(copied: Any, tmp_path: Path) -> None:
    job, manifest, _ = copied
    with pytest.raises(CacheIncompleteError, match=r"this machine's store lacks.*Run: dvc repro"):
        open_written(job, manifest, tmp_path / "empty")


def test_an_entry_that_was_not_finished_is_refused(copied: Any) -> None:
    _, manifest, store = copied
    for entry in manifest.entries:
        path = store / entry.fingerprint / MANIFEST
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(CacheIncompleteError, match="no finished entry"):
            reopen(copied)
        path.write_bytes(whole)
    reopen(copied)


def test_another_format_version_is_refused(copied: Any, tmp_path: Path) -> None:
    path = artifact(copied, tmp_path)
    forge(path, lambda document: document.update(format_version=2))
    with pytest.raises(CacheFormatError, match=r"Expected format_version 1, found 2"):
        read_document(path)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (b"{", CacheCorruptError, "not JSON"),
        (b"\xff\xfe", CacheCorruptError, "not JSON"),
        (b'{"format_version": 1, "layers": NaN}', CacheCorruptError, "not JSON"),
        (b'{"format_version": 1, "layers": 1e999}', CacheCorruptError, "not JSON"),
        (b"[]", CacheFormatError, "no object"),
        (b"{}", CacheFormatError, "Expected format_version 1"),
        (b'{"format_version": 1}', CacheCorruptError, "edited or damaged"),
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        parse_document(text, "somewhere")


def test_an_edited_manifest_is_found(copied: Any, tmp_path: Path) -> None:
    path = artifact(copied, tmp_path)
    path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1', 1))
    with pytest.raises(CacheCorruptError, match="edited or damaged"):
        read_document(path)


def swap(document: dict[str, Any], group: str, one: str, two: str) -> None:
    parts = document[group]
    parts[one], parts[two] = parts[two], parts[one]


def reprint(document: dict[str, Any], *, without: str = "", **fields: Any) -> None:
    document["made_of"].update(fields)
    document["made_of"].pop(without, None)
    document["fingerprint"] = fingerprint(document["made_of"])


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a field it was made of": lambda d: d["made_of"].update(codec="float32"),
    "another kind": lambda d: d.update(kind="piece"),
    "no known kind": lambda d: d.update(kind="cake"),
    "a field too many": lambda d: d.update(more=1),
    "a field too few": lambda d: d.pop("layers"),
    "streams under one another's names": lambda d: swap(d, "streams", "hidden.2", "hidden.4"),
    "pieces under one another's names": lambda d: swap(d, "pieces", "layer.2", "layer.4"),
    "a stream too few": lambda d: d["streams"].pop("hidden.2"),
    "a computed stream too few": lambda d: d["computed"].pop("hidden.0"),
    "a piece too few": lambda d: d["pieces"].pop("layer.2"),
    "a stream of other data": lambda d: reprint(d["streams"]["hidden.2"], encoded_sha256="x"),
    "a stream of another fingerprint": lambda d: d["streams"]["hidden.2"].update(
        fingerprint="0" * 32
    ),
    "a stream of fewer examples": lambda d: d["streams"]["hidden.2"].update(examples=1),
    "another codec": lambda d: d["streams"]["hidden.2"].update(codec="bfloat16"),
    "no known codec": lambda d: d["streams"]["hidden.2"].update(codec="float8"),
    "no streams": lambda d: reprint(d, streams=7),
    "a stream that there is not": lambda d: reprint(d, streams=["hidden.x"]),
    "no word on recomputing": lambda d: reprint(d, without="recompute"),
}


@pytest.mark.parametrize("name", sorted(FORGERIES))
def test_a_forged_manifest_with_its_digest_recomputed_is_refused(
    name: str, copied: Any, tmp_path: Path
) -> None:
    path = artifact(copied, tmp_path)
    forge(path, FORGERIES[name])
    with pytest.raises((CacheCorruptError, CacheFormatError)):
        open_artifact(copied, path)


CONSISTENT: dict[str, Callable[[dict[str, Any]], object]] = {
    "another codec": lambda stream: stream.update(codec="bfloat16"),
    "int8": lambda stream: stream.update(codec="int8"),
    "another width": lambda stream: stream.update(width=31),
    "shards in another order": lambda stream: stream["shards"].reverse(),
    "fewer records in a shard": lambda stream: stream["shards"][0].update(examples=1),
    "fewer tokens in a shard": lambda stream: stream["shards"][0].update(tokens=1),
    "a shard too few": lambda stream: stream["shards"].pop(),
    "a shard twice": lambda stream: stream["shards"].append(stream["shards"][0]),
    "no statistics": lambda stream: stream.update(statistics=stream["shards"][0]),
}


@pytest.mark.parametrize("name", sorted(CONSISTENT))
def test_a_stream_forged_alike_in_the_store_and_in_the_artifact_is_never_served_wrong(
    name: str, copied: Any, split: Split, tmp_path: Path
) -> None:
    """All digests fit. What the manifest says must still be what the shards hold."""
    _, manifest, store = copied
    path = artifact(copied, tmp_path)
    forge(store / manifest.streams["hidden.2"].fingerprint / MANIFEST, CONSISTENT[name])
    forge(path, lambda document: CONSISTENT[name](document["streams"]["hidden.2"]))
    with pytest.raises((CacheCorruptError, CacheIncompleteError)):
        open_artifact(copied, path).fetch(split.input_ids)


def test_a_stream_whose_values_were_forged_with_all_digests_is_found_by_the_audit(
    copied: Any, split: Split, tmp_path: Path
) -> None:
    job = copied[0]
    path, shard = artifact(copied, tmp_path), shards_of(copied, "hidden.2")[0]
    change(shard, lambda tensors: tensors["values"].mul_(-1))
    digest = sha256_file(shard)

    def sign(stream: dict[str, Any]) -> None:
        stream["shards"][0]["sha256"] = digest

    forge(shard.parent / MANIFEST, sign)
    forge(path, lambda document: sign(document["streams"]["hidden.2"]))
    cached = open_artifact(copied, path)
    with pytest.raises(CacheCorruptError, match=r"hidden\.2 is not what the teacher says"):
        audit(cached, live_of(job), split.input_ids, count=len(split))


@pytest.mark.parametrize("kept", ["statistics.safetensors", "shard-00000.safetensors"])
@pytest.mark.parametrize("content", ["noise", "no tensors", "other tensors"])
def test_a_file_of_the_right_size_that_is_something_else_is_named_without_verifying(
    kept: str, content: str, copied: Any, split: Split
) -> None:
    _, manifest, store = copied
    path = store / manifest.streams["hidden.2"].fingerprint / kept
    size = path.stat().st_size
    tensors: dict[str, torch.Tensor] = {}
    if content == "other tensors":
        tensors = {"values": torch.zeros(size - 100, dtype=torch.uint8)}
    if content == "noise":
        path.write_bytes(bytes(size))
    else:
        save_file(tensors, path)
        spare = size - path.stat().st_size  # the header may be padded with blanks
        header = int.from_bytes(path.read_bytes()[:8], "little")
        raw = path.read_bytes()
        if content == "no tensors":
            padded = raw[8:] + b" " * spare
            path.write_bytes((header + spare).to_bytes(8, "little") + padded)
        else:
            body = raw[8 : 8 + header] + b" " * spare + raw[8 + header :]
            path.write_bytes((header + spare).to_bytes(8, "little") + body)
    assert path.stat().st_size == size
    with pytest.raises(CacheCorruptError):
        reopen(copied, verify=False).fetch(split.input_ids)


# --- writers that find damage --------------------------------------------------------------------


def test_a_damaged_cache_is_mended_by_its_writer(copied: Any) -> None:
    """What every message advises: run the stage again. Whatever file it was."""
    job, manifest, store = copied
    before = content_of(store)
    stream, piece = (
        entry.fingerprint for entry in (manifest.streams["hidden.2"], manifest.pieces["layer.2"])
    )
    manifests = [f"{entry}/{MANIFEST}" for entry in (manifest.fingerprint, stream, piece)]
    files = [file.name for file in manifest.streams["hidden.2"].files]
    notes = ["calibration.json", "shard-00001.json"]
    others = [f"{stream}/{name}" for name in (*files, *notes)]
    for name in (*manifests, *others, f"{piece}/weights.safetensors"):
        path = store / name
        whole = path.read_bytes()
        for broken in (b"", whole[:-1], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], None):
            if broken is None:
                path.unlink()
            else:
                path.write_bytes(broken)
            assert write(job, store) == manifest, name
            reopen(copied)
        if path.suffix == ".json" and path.name != MANIFEST:
            path.write_bytes(whole)  # a note of a finished entry is nobody's concern
        assert content_of(store) == before, name


def test_a_damaged_note_of_an_unfinished_entry_changes_nothing(copied: Any, split: Split) -> None:
    """By its notes a killed writer resumes: each of their characters may be wrong."""
    job, manifest, store = copied
    before = content_of(store)
    folder = store / manifest.streams["hidden.2"].fingerprint
    for note in ("calibration.json", "shard-00001.json"):
        whole = (folder / note).read_bytes()
        for place in range(0, len(whole), 13):
            broken = bytearray(whole)
            broken[place] ^= 1 << (place % 7)
            (folder / note).write_bytes(bytes(broken))
            (folder / MANIFEST).unlink()
            assert write(job, store) == manifest, (note, place)
            (folder / note).write_bytes(whole)
        assert content_of(store) == before


def test_a_writer_that_goes_on_with_another_shard_size_loses_and_repeats_nothing(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first, second in ((2**13, 2**15), (2**15, 2**13)):
        store, job = tmp_path / str(first), make_job(split, make_params())
        monkeypatch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", first)
        stop_after(job, store, 300)
        monkeypatch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", second)
        manifest = write(job, store)
        for stream in manifest.streams.values():
            names = {path.name for path in (store / stream.fingerprint).glob("*.safetensors")}
            expected = {file.name for file in stream.files}
            assert names == expected
            assert stream.examples == sum(shard.examples for shard in stream.shards)
        cached = open_written(job, manifest, store)
        assert audit(cached, live_of(job), split.input_ids, count=100) == len(split)


def test_a_teacher_that_gives_nan_is_refused_by_name(tmp_path: Path) -> None:
    """See test_faults.py for the rest."""
    teacher = make_teacher()
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"teacher's .* holds NaN"):
        write(make_job(make_split(8), make_params(), teacher), tmp_path)
    assert not list(tmp_path.rglob("shard*"))
