"""Mutations of the files that hold a teacher's weights: shards, and headers of safetensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.mutations.cases import Case, Change, Expected, Mutation, either, fatal, harmless

FILE = "model.safetensors"
SAYS = ("weight", "safetensors")


def mutations() -> Iterator[Mutation]:
    for shards in (2, 3):
        yield Mutation("shards", f"{shards}", _sharding(shards))
        for what in ("without the last", "without the index", "with a wrong index", "with both"):
            yield Mutation("shards", f"{shards} {what}", _broken_shards(shards, what))
    for name in _HEADERS:
        yield Mutation("safetensors header", name, _heading(name))


def _shard(case: Case, count: int) -> list[Path]:
    tensors = load_file(case.teacher / FILE)
    names = sorted(tensors)
    paths: list[Path] = []
    places: dict[str, str] = {}
    for i in range(count):
        path = case.teacher / f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::count]}, path, {"format": "pt"})
        places |= dict.fromkeys(names[i::count], path.name)
        paths.append(path)
    size = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    case.write_json(f"{FILE}.index.json", index)
    return paths


def _sharding(count: int) -> Change:
    def apply(case: Case) -> Expected:
        _shard(case, count)
        (case.teacher / FILE).unlink()
        return harmless()

    return apply


def _broken_shards(count: int, what: str) -> Change:
    def apply(case: Case) -> Expected:
        paths, index = _shard(case, count), f"{FILE}.index.json"
        if what == "with both":
            return either(*SAYS)
        (case.teacher / FILE).unlink()
        if what == "without the last":
            paths[-1].unlink()
        elif what == "without the index":
            (case.teacher / index).unlink()
        else:
            places = case.read_json(index)["weight_map"]
            case.change_json(index, weight_map=dict.fromkeys(places, "model-9.safetensors"))
        return fatal(*SAYS)

    return apply


def _header(content: bytes) -> tuple[dict[str, object], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _without_format(content: bytes) -> bytes:
    header, data = _header(content)
    header.pop("__metadata__", None)
    return _joined(header, data)


def _swapped_offsets(content: bytes) -> bytes:
    header, data = _header(content)
    names = [name for name in sorted(header) if name != "__metadata__"]
    first, second = (header[names[i]] for i in (0, 1))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    first["data_offsets"] = second["data_offsets"]
    return _joined(header, data)


def _wrong_type(content: bytes) -> bytes:
    header, data = _header(content)
    name = next(name for name in sorted(header) if name != "__metadata__")
    entry = header[name]
    assert isinstance(entry, dict)
    entry["dtype"] = "F7"
    return _joined(header, data)


def _list_header(content: bytes) -> bytes:
    return _joined([1], _header(content)[1])


_HEADERS: dict[str, tuple[Callable[[bytes], bytes], bool]] = {  # and whether it is still right
    "a huge length": (lambda content: struct.pack("<Q", 2**62) + content[8:], False),
    "a length of zero": (lambda content: bytes(8) + content[8:], False),
    "no JSON": (lambda content: content[:8] + b"x" + content[9:], False),
    "a list": (_list_header, False),
    "offsets that overlap": (_swapped_offsets, False),
    "an unknown type": (_wrong_type, False),
    "no format in the metadata": (_without_format, True),
    "bytes behind": (lambda content: content + b"more", False),
    "a byte less": (lambda content: content[:-1], False),
    "eight bytes": (lambda content: content[:8], False),
    "seven bytes": (lambda content: content[:7], False),
}


def _heading(name: str) -> Change:
    change, right = _HEADERS[name]

    def apply(case: Case) -> Expected:
        path = case.teacher / FILE
        path.write_bytes(change(path.read_bytes()))
        return either(*SAYS) if right else fatal(r"model\.safetensors")

    return apply
