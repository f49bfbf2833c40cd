"""A store of version 1 that is kept in this repository is read for ever, by us and by others.

The second half reads it with numpy, json and hashlib by what FORMAT.md says, without our code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from tasks.kd.cache.format.codec import Statistics, encode, statistics_of
from tasks.kd.cache.format.fingerprint import example_key
from tasks.kd.cache.format.manifest import MANIFEST, Manifest
from tasks.kd.cache.format.parsing import read_document
from tasks.kd.cache.reading.reader import CachedTargets, open_cache
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import distinct
from tasks.kd.cache.writing.shards import commit_tensors, shard_tensors
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.digests import read_json, sha256_file
from tests.golden.make_cache import EXPECTED, RECIPES, STORE, TEXTS
from tests.makers.caches import job_of, make_params, texts_of, write

Array = np.ndarray[Any, Any]
# What is served bit for bit; the rest is computed, in whatever order a library adds.
STORED = ("logits", "hidden.2")


@pytest.fixture(scope="module")
def expected() -> Any:
    return read_json(EXPECTED)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy: readers leave a mark in the store."""
    shutil.copytree(STORE, tmp_path / "store")
    return tmp_path / "store"


def manifest_of(store: Path, fingerprint: str) -> Any:
    return read_document(store / fingerprint / MANIFEST)


def open_golden(store: Path, expected: Any, recipe: str) -> CachedTargets:
    manifest = manifest_of(store, expected["served"][recipe]["fingerprint"])
    assert isinstance(manifest, Manifest)
    return open_cache(manifest, Store(store), expected=manifest.made_of, pad_id=0, mend="nothing")


def test_the_store_is_what_it_was(expected: Any) -> None:
    found = {
        path.relative_to(STORE).as_posix(): sha256_file(path)
        for path in sorted(STORE.rglob("*"))
        if path.is_file()
    }
    assert found == expected["files"]
    assert len(found) == 37


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_present_reader_serves_what_was_served(recipe: str, store: Path, expected: Any) -> None:
    cached = open_golden(store, expected, recipe)
    assert set(cached.streams) == set(RECIPES[recipe][1])
    for ids in TEXTS:
        found = cached.fetch([np.asarray(ids, dtype=np.int32)])
        right = expected["served"][recipe]["streams"][str(ids)]
        assert found.keys() == right.keys()
        for name, value in found.items():
            numbers = np.asarray(right[name], dtype=np.float32)
            if name in STORED:
                np.testing.assert_array_equal(value.numpy().ravel(), numbers)
            else:
                np.testing.assert_allclose(value.numpy().ravel(), numbers, atol=2e-6, rtol=1e-5)


# So that not all that is expected can be made anew without anybody's noticing: where the caches
# are, and hidden layer 2 of the text [2]. In int8 it is stored as the four numbers beside it.
FINGERPRINTS = {
    "int8": "811d12aa7298a5793d179b49a875daeb",
    "float16": "4dab9e68b96ab28e0f9deb65e1d236bb",
    "bfloat16": "c23f8f6ccec7275c7d01482474cc51b0",
    "float32": "4052371091874b79c875032bc2c4741d",
}
SPELLED_OUT = {
    "int8": [-1.375576138496399, 0.9112125635147095, -1.0433274507522583, -0.15661722421646118],
    "float16": [-1.375, 0.9111328125, -1.04296875, -0.1568603515625],
    "bfloat16": [-1.375, 0.91015625, -1.0390625, -0.1572265625],
    "float32": [-1.3754725456237793, 0.9112193584442139, -1.0428764820098877, -0.15688902139663696],
}
INT8, SCALE = [-14, 127, -13, -30], 0.0036640167236328125
MEAN = [-1.3655364513397217, 0.8830978274345398, -1.0274593830108643, -0.13074661791324615]
DEVIATION = [0.19572018086910248, 0.06041892617940903, 0.33313846588134766, 0.23535744845867157]
KEY = "26b25d457597a7b0463f9620f666dd10"  # SHA-256 of 02 00 00 00


def test_some_of_it_is_spelled_out_here(store: Path, expected: Any) -> None:
    ids = np.asarray([2], dtype=np.int32)
    for recipe, fingerprint in FINGERPRINTS.items():
        assert expected["served"][recipe]["fingerprint"] == fingerprint
        served = open_golden(store, expected, recipe).fetch([ids])["hidden.2"]
        assert served[0, 0].tolist() == SPELLED_OUT[recipe]
    stream = manifest_of(store, FINGERPRINTS["int8"]).streams["hidden.2"]
    shard = load_file(store / stream.fingerprint / "shard-00000.safetensors")
    assert shard["offsets"].tolist() == [0, 1, 4, 7]
    assert shard["input_ids"].tolist() == [2, 2, 8, 3, 2, 7, 3]
    assert shard["keys"][0].tobytes().hex() == KEY
    assert (shard["values"][0].tolist(), float(shard["scale"][0, 0])) == (INT8, SCALE)
    by_hand = [v * SCALE * d + m for v, d, m in zip(INT8, DEVIATION, MEAN, strict=True)]
    assert SPELLED_OUT["int8"] == pytest.approx(by_hand, rel=1e-6)
    assert SPELLED_OUT["int8"] == pytest.approx(SPELLED_OUT["float32"], abs=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_present_manifests_are_written_as_they_were(
    recipe: str, store: Path, expected: Any, tmp_path: Path
) -> None:
    cache = manifest_of(store, expected["served"][recipe]["fingerprint"])
    for document in (cache, *cache.entries):
        document.write(tmp_path / MANIFEST)
        committed = store / document.fingerprint / MANIFEST
        assert (tmp_path / MANIFEST).read_bytes() == committed.read_bytes()


def states_of(expected: Any, stream: str) -> list[Array]:
    """The teacher's own, in the order of the records: what the float32 recipe kept."""
    exact = Another(STORE, expected["served"]["float32"]["fingerprint"])
    return [exact.read(stream, ids.tolist()) for ids in records()]


def records() -> list[Ids]:
    return distinct([np.asarray(ids, dtype=np.int32) for ids in TEXTS])[1]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_present_writer_writes_the_same_shards(
    recipe: str, store: Path, expected: Any, tmp_path: Path
) -> None:
    """Of the very states; no model is run."""
    cache = manifest_of(store, expected["served"][recipe]["fingerprint"])
    texts = records()
    raw = [example_key(ids.tobytes()) for ids in texts]
    for name, stream in cache.streams.items():
        states = [np.atleast_2d(value) for value in states_of(expected, name)]
        statistics = Statistics(torch.zeros(stream.width), torch.ones(stream.width))
        if stream.statistics is not None:
            kept = load_torch(store / stream.fingerprint / stream.statistics.name)
            statistics = Statistics(kept["mean"], kept["deviation"])
        first = 0
        for shard in stream.shards:
            rows = slice(first, first + shard.examples)
            values = torch.from_numpy(np.concatenate(states[rows]))
            encoded = encode(values, stream.codec, statistics)
            tensors = shard_tensors(b"".join(raw[rows]), texts[rows], encoded)
            assert commit_tensors(tensors, tmp_path / shard.name) == shard
            committed = store / stream.fingerprint / shard.name
            assert (tmp_path / shard.name).read_bytes() == committed.read_bytes()
            first += shard.examples
        assert first == len(texts)


def test_the_present_statistics_are_those_of_every_second_text(store: Path, expected: Any) -> None:
    cache = manifest_of(store, expected["served"]["int8"]["fingerprint"])
    states = np.concatenate(states_of(expected, "hidden.2")[::2])
    found = statistics_of(torch.from_numpy(states))
    kept = load_torch(store / cache.streams["hidden.2"].fingerprint / "statistics.safetensors")
    torch.testing.assert_close(found.mean_D, kept["mean"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.deviation_D, kept["deviation"], rtol=1e-6, atol=1e-6)


def test_files_may_be_read_by_whoever_may_read_the_folder(tmp_path: Path) -> None:
    """A store is shared. safetensors by itself writes for its owner alone."""
    before = os.umask(0o022)
    try:
        write(job_of(texts_of([3, 4]), make_params()), tmp_path)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o644}


# --- another program, by FORMAT.md alone ---------------------------------------------------------


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Another:
    """A reader of version 1 that shares nothing with ours."""

    def __init__(self, store: Path, fingerprint: str) -> None:
        self.store = store
        self.cache = self.manifest(fingerprint, "cache")
        for name, entry in {**self.cache["streams"], **self.cache["pieces"]}.items():
            kind = "stream" if name in self.cache["streams"] else "piece"
            assert self.manifest(entry["fingerprint"], kind) == entry
            files = [entry["weights"]] if kind == "piece" else entry["shards"]
            files = [*files, *filter(None, [entry.get("statistics")])]
            for file in files:
                raw = (store / entry["fingerprint"] / file["name"]).read_bytes()
                assert (len(raw), sha256(raw)) == (file["bytes"], file["sha256"])

    def manifest(self, fingerprint: str, kind: str) -> Any:
        document = json.loads((self.store / fingerprint / "manifest.json").read_bytes())
        assert document.pop("content_sha256") == sha256(canonical(document))
        assert (document["format_version"], document["kind"]) == (1, kind)
        assert document["fingerprint"] == fingerprint
        assert sha256(canonical(document["made_of"]))[:32] == fingerprint
        return document

    def read(self, stream: str, ids: list[int]) -> Array:
        """A stored stream of one text: logits [C], hidden states [T, D]."""
        entry = self.cache["streams"][stream]
        raw = np.asarray(ids, dtype="<i4").tobytes()
        key = hashlib.sha256(raw).digest()[:16]
        for shard in entry["shards"]:
            tensors = self.tensors(entry, shard["name"])
            assert len(tensors["keys"]) == shard["examples"]
            assert tensors["offsets"][0] == 0
            assert tensors["offsets"][-1] == shard["tokens"] == len(tensors["input_ids"])
            for row in range(shard["examples"]):
                if tensors["keys"][row].tobytes() == key:
                    start, end = tensors["offsets"][row : row + 2]
                    assert tensors["input_ids"][start:end].tolist() == ids
                    if stream == "logits":
                        return np.asarray(tensors["values"][row])
                    return self.decoded(entry, tensors, slice(start, end))
        raise KeyError(ids)

    def decoded(self, entry: Any, tensors: dict[str, Array], rows: slice) -> Array:
        values = tensors["values"][rows]
        if entry["codec"] != "int8":
            return values.astype(np.float32)
        statistics = self.tensors(entry, entry["statistics"]["name"])
        scale = tensors["scale"][rows].astype(np.float32)
        states: Array = values.astype(np.float32) * scale * statistics["deviation"]
        return states + statistics["mean"]

    def tensors(self, entry: Any, name: str) -> dict[str, Array]:
        path = self.store / entry["fingerprint"] / name
        if entry.get("codec") != "bfloat16" or "shard" not in name:
            return load_file(path)
        # numpy has no bfloat16: it is the upper half of a float32
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        kinds: dict[str, Any] = {"U8": np.uint8, "I64": "<i8", "I32": "<i4", "BF16": "<u2"}
        found: dict[str, Array] = {}
        for tensor, told in header.items():
            start, end = (8 + length + place for place in told["data_offsets"])
            flat: Array = np.frombuffer(raw[start:end], dtype=kinds[told["dtype"]])
            if told["dtype"] == "BF16":
                flat = (flat.astype(np.uint32) << 16).view(np.float32)
            found[tensor] = flat.reshape(told["shape"])
        return found

    # --- what is computed, by BERT's own equations

    def piece(self, name: str) -> tuple[dict[str, Array], Any]:
        entry = self.cache["pieces"][name]
        path = self.store / entry["fingerprint"] / entry["weights"]["name"]
        with safe_open(path, framework="np") as file:
            config = json.loads(file.metadata()["config"])
        return load_file(path), config

    def embeddings(self, ids: list[int]) -> Array:
        """hidden.0: word, position and type 0, then a layer norm."""
        weights, config = self.piece("embeddings")
        state = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][: len(ids)]
            + weights["embeddings.token_type_embeddings.weight"][0]
        ).astype(np.float64)
        mean, variance = state.mean(-1, keepdims=True), state.var(-1, keepdims=True)
        normed: Array = (state - mean) / np.sqrt(variance + config["layer_norm_eps"])
        norm = "embeddings.LayerNorm"
        return normed * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]

    def projected(self, layer: int, state: Array) -> tuple[Array, Any]:
        """Queries, keys and values [T, 3, D]."""
        weights, config = self.piece(f"layer.{layer}")
        inner = f"encoder.layer.{layer - 1}.attention.self"
        parts = [
            state @ weights[f"{inner}.{part}.weight"].T + weights[f"{inner}.{part}.bias"]
            for part in ("query", "key", "value")
        ]
        return np.stack(parts, 1), config

    def relation(self, layer: int, state: Array) -> Array:
        return self.projected(layer, state)[0]

    def attention(self, layer: int, state: Array) -> Array:
        """Scores before the softmax [H, T, T]."""
        found, config = self.projected(layer, state)
        heads = config["num_attention_heads"]
        queries, keys = (
            found[:, part].reshape(len(state), heads, -1).swapaxes(0, 1) for part in (0, 1)
        )
        scores: Array = queries @ keys.swapaxes(1, 2) / queries.shape[-1] ** 0.5
        return scores


@pytest.mark.parametrize("recipe", RECIPES)
def test_another_program_reads_the_same_by_the_format_alone(recipe: str, expected: Any) -> None:
    other = Another(STORE, expected["served"][recipe]["fingerprint"])
    for ids in TEXTS:
        right = {
            name: np.asarray(numbers, dtype=np.float32)
            for name, numbers in expected["served"][recipe]["streams"][str(ids)].items()
        }
        for name in set(right) & set(STORED):
            np.testing.assert_array_equal(other.read(name, ids).ravel(), right[name])
        if recipe != "int8":
            continue
        computed = {
            "hidden.0": other.embeddings(ids),
            "relation.1": other.relation(1, other.embeddings(ids)),
            "attention.2": other.attention(2, other.read("hidden.1", ids)),
        }
        assert computed.keys() == other.cache["computed"].keys()
        for name, value in computed.items():
            np.testing.assert_allclose(value.ravel(), right[name], atol=2e-6, rtol=1e-5)


def test_another_program_finds_records_sorted_by_length_and_key(expected: Any) -> None:
    other = Another(STORE, expected["served"]["int8"]["fingerprint"])
    orders = []
    for entry in other.cache["streams"].values():
        held = [other.tensors(entry, shard["name"]) for shard in entry["shards"]]
        lengths = np.concatenate([np.diff(shard["offsets"]) for shard in held]).tolist()
        keys = [key.tobytes() for shard in held for key in shard["keys"]]
        orders.append(list(zip(lengths, keys, strict=True)))
        assert orders[-1] == sorted(orders[-1])
        assert len(held) == 2
        assert len(keys) == len(set(keys)) == entry["examples"] == 4
    assert orders[0] == orders[1] == orders[2]


def test_another_program_refuses_what_was_changed(store: Path, expected: Any) -> None:
    fingerprint = expected["served"]["int8"]["fingerprint"]
    entry = Another(store, fingerprint).cache["streams"]["hidden.2"]
    path = store / entry["fingerprint"] / "shard-00000.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(AssertionError):
        Another(store, fingerprint)
