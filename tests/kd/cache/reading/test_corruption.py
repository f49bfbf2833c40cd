"""Random damage to any file of a cache: found, or without effect. Nothing wrong is ever served."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.errors import CacheError
from tests.makers.broken_caches import artifact, forge, open_artifact
from tests.makers.caches import (
    job_of,
    make_params,
    open_written,
    same_streams,
    spread_teacher,
    texts_of,
    write,
)

CASES = 1100
STREAMS = ("logits", "hidden.0", "hidden.2", "hidden.3", "attention.3", "relation.1")


class Subject:
    """A cache, all of its bytes, and what it serves while it is whole."""

    def __init__(self, folder: Path) -> None:
        texts = texts_of([3, 5, 5, 5, 6, 8, 8, 8, 8, 11, 12])
        job = job_of(texts, make_params(codec="int8", streams=STREAMS), spread_teacher())
        self.texts: list[Ids] = texts
        self.copied = (job, write(job, folder / "store"), folder / "store")
        self.artifact = artifact(self.copied, folder)
        self.right = self.fetch()
        store = self.copied[2]
        self.files = [self.artifact, *sorted(path for path in store.rglob("*") if path.is_file())]
        self._bytes = {path: path.read_bytes() for path in self.files}

    def fetch(self) -> dict[str, torch.Tensor]:
        return open_artifact(self.copied, self.artifact).fetch(self.texts)

    @property
    def manifests(self) -> list[Path]:
        return [self.artifact, *(path for path in self.files if path.name == MANIFEST)]

    @property
    def content(self) -> list[Path]:
        return [path for path in self.files if path.suffix == ".safetensors"]

    def restore(self) -> None:
        for path, content in self._bytes.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", 2**12)
        return Subject(tmp_path_factory.mktemp("corruption"))


# --- what is done to it --------------------------------------------------------------------------


def flip_a_bit(subject: Subject, chance: random.Random) -> None:
    path = chance.choice([path for path in subject.files if path.stat().st_size])
    broken = bytearray(path.read_bytes())
    broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(broken))


def flip_a_bit_of_a_manifest(subject: Subject, chance: random.Random) -> None:
    path = chance.choice(subject.manifests)
    broken = bytearray(path.read_bytes())
    broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(broken))


def cut(subject: Subject, chance: random.Random) -> None:
    path = chance.choice([path for path in subject.files if path.stat().st_size])
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def lengthen(subject: Subject, chance: random.Random) -> None:
    path = chance.choice(subject.files)
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randrange(1, 9)))


def blank_a_block(subject: Subject, chance: random.Random) -> None:
    path = chance.choice(subject.content)
    broken = bytearray(path.read_bytes())
    start = chance.randrange(len(broken))
    broken[start : start + 64] = bytes(len(broken[start : start + 64]))
    path.write_bytes(bytes(broken))


def remove(subject: Subject, chance: random.Random) -> None:
    chance.choice(subject.files).unlink()


def swap_two(subject: Subject, chance: random.Random) -> None:
    """Within a stream, between streams, or anything with anything."""
    kind = chance.choice([".json", ".safetensors"])
    first, second = chance.sample([path for path in subject.files if path.suffix == kind], 2)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def put_one_in_place_of_another(subject: Subject, chance: random.Random) -> None:
    first, second = chance.sample(subject.content, 2)
    second.write_bytes(first.read_bytes())


def edit_a_manifest(subject: Subject, chance: random.Random) -> None:
    """One value, or two of one type exchanged; the digest is computed again."""
    forge(chance.choice(subject.manifests), lambda document: edit(document, chance))


def edit_a_stream_in_store_and_artifact(subject: Subject, chance: random.Random) -> None:
    """The same in both, so that they agree with one another."""
    _, manifest, store = subject.copied
    name = chance.choice(sorted(manifest.streams))
    seed = chance.random()
    path = store / manifest.streams[name].fingerprint / MANIFEST
    forge(path, lambda document: edit(document, random.Random(seed)))
    forge(subject.artifact, lambda document: edit(document["streams"][name], random.Random(seed)))


def edit(document: dict[str, Any], chance: random.Random) -> None:
    places = list(leaves(document))
    part, key = chance.choice(places)
    value = part[key]
    alike = [place for place in places if type(place[0][place[1]]) is type(value)]
    if chance.random() < 0.5:
        other, its_key = chance.choice(alike)
        part[key], other[its_key] = other[its_key], value
    elif isinstance(value, str):
        part[key] = "".join(chance.sample(value, len(value)))
    elif isinstance(value, int | float):
        part[key] = value + chance.choice([-1, 1, 8, -value, value])
    else:
        part[key] = chance.choice([0, "", {}])


def leaves(part: Any) -> Any:
    """Where each value stands: its container and its key there."""
    keys = sorted(part) if isinstance(part, dict) else range(len(part))
    for key in keys:
        if isinstance(part[key], dict | list):
            yield from leaves(part[key])
        else:
            yield part, key


ACTS: list[Callable[[Subject, random.Random], None]] = [
    flip_a_bit,
    flip_a_bit,
    flip_a_bit_of_a_manifest,
    cut,
    lengthen,
    blank_a_block,
    remove,
    swap_two,
    put_one_in_place_of_another,
    edit_a_manifest,
    edit_a_stream_in_store_and_artifact,
]


def test_random_damage_is_found_or_has_no_effect(subject: Subject) -> None:
    chance = random.Random(2026)
    found: Counter[str] = Counter()
    for number in range(CASES):
        act = ACTS[number % len(ACTS)]
        act(subject, chance)
        try:
            served = subject.fetch()
        except CacheError:
            found[act.__name__] += 1
        else:
            assert same_streams(served, subject.right), f"case {number}: {act.__name__}"
            found["without effect"] += 1
        subject.restore()
    assert same_streams(subject.fetch(), subject.right)
    assert sum(found.values()) == CASES
    # What has no effect: locks, notes of writers, the cache's own manifest in the store, blanks,
    # measured errors; and an exchange of equals.
    assert found["without effect"] < CASES / 3
    for act in ACTS:
        assert found[act.__name__] > 0.3 * CASES / len(ACTS), act.__name__


def test_every_flipped_bit_of_what_is_read_is_found(subject: Subject) -> None:
    """All that readers read, the pieces' weights and their configuration included."""
    _, manifest, store = subject.copied
    chance = random.Random(7)
    for entry in manifest.entries:
        for file in entry.files:
            path = store / entry.fingerprint / file.name
            for _ in range(12):
                broken = bytearray(path.read_bytes())
                broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
                path.write_bytes(bytes(broken))
                with pytest.raises(CacheError):
                    subject.fetch()
                subject.restore()


def test_without_verifying_a_flip_in_keys_offsets_or_tokens_serves_nothing_wrong(
    subject: Subject,
) -> None:
    """The record that is served is the example's own, by its token ids, in every stream."""
    job, manifest, store = subject.copied
    chance = random.Random(11)
    refused = 0
    for _ in range(200):
        stream = manifest.streams[chance.choice(sorted(manifest.streams))]
        path = store / stream.fingerprint / chance.choice(stream.shards).name
        start, end = place_of(path, chance.choice(["keys", "offsets", "input_ids"]))
        broken = bytearray(path.read_bytes())
        broken[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(broken))
        try:
            served = open_written(job, manifest, store, verify=False).fetch(subject.texts)
            assert same_streams(served, subject.right)  # only the first stream's keys are read
        except CacheError:
            refused += 1
        subject.restore()
    assert refused > 100


def place_of(path: Path, tensor: str) -> tuple[int, int]:
    """First and last byte of a tensor in a safetensors file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    with safe_open(path, framework="pt") as file:
        assert tensor in file.keys()  # noqa: SIM118 (not a dictionary)
    start, end = json.loads(raw[8 : 8 + length])[tensor]["data_offsets"]
    return 8 + length + start, 8 + length + end
