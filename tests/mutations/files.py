"""Mutations of a teacher's files as wholes: removed, emptied, cut, replaced, exchanged, encoded."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from collections.abc import Callable, Iterator

from tests.mutations.cases import (
    FAMILIES,
    Case,
    Change,
    Expected,
    Mutation,
    either,
    fatal,
    harmless,
)

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 438\n"
)
HTML = b"<!DOCTYPE html>\n<html><head><title>Access denied</title></head></html>\n"
REPLACED = {
    "a Git LFS pointer": POINTER,
    "a page of HTML": HTML,
    "a pickle": pickle.dumps({"a": 1}),
    "a gzip": gzip.compress(b'{"a": 1}', mtime=0),
    "an empty list": b"[]",
    "an empty object": b"{}",
    "null": b"null",
    "a number": b"7",
    "zeros": bytes(200),
}
NEEDED = ("config.json", "model.safetensors")
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt")
JSON_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)
HAS = {
    "vocab.txt": ("bert", "distilbert", "electra", "mpnet"),
    "vocab.json": ("roberta",),
    "merges.txt": ("roberta",),
}
ALL = (*NEEDED, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", *VOCABULARIES)


def mutations() -> Iterator[Mutation]:
    for name in ALL:
        needs = HAS.get(name, ())
        yield Mutation("file removed", name, _removing(name)).of(*needs)
        yield Mutation("file emptied", name, _writing(name, b"")).of(*needs)
        for share in (0.02, 0.3, 0.7, 0.99):
            yield Mutation("file cut", f"{name} at {share:.0%}", _cutting(name, share)).of(*needs)
        for what, content in REPLACED.items():
            change = _writing(name, content)
            yield Mutation("file replaced", f"{name} by {what}", change).of(*needs)
        for family in FAMILIES:
            if family in needs or not needs:
                title = f"{name} of {family}"
                yield Mutation("file exchanged", title, _exchanging(name, family)).of(*needs)
    for name in (*JSON_FILES, *VOCABULARIES):
        for way in _ENCODINGS:
            change = _encoding(name, way)
            yield Mutation("file encoded", f"{name} {way}", change).of(*HAS.get(name, ()))
    for name in _BESIDE:
        yield Mutation("file beside", name, _beside(name))


def _expected(case: Case, name: str) -> Expected:
    """Of a file that is no longer what it was: the owner's view is what the folder still says."""
    said = (name.replace(".", r"\."), "tokenizer", "models/given", "fetch_sources/teacher")
    if name in NEEDED:
        return fatal(*said[:1])
    if name in ("tokenizer_config.json", "special_tokens_map.json"):
        return either(*said, tokens="folder" if name == "tokenizer_config.json" else "good")
    if name == "tokenizer.json":
        return either(*said, tokens="good")
    return either(*said, tokens="good")  # tokenizer.json says it all


def _removing(name: str) -> Change:
    def apply(case: Case) -> Expected:
        (case.teacher / name).unlink()
        if name in ("special_tokens_map.json", *VOCABULARIES):
            return harmless()
        if name == "tokenizer.json" and _vocabulary_is_left(case):
            return either("tokenizer", tokens="folder")
        if name == "tokenizer.json":
            return fatal("tokenizer")
        if name == "config.json":
            return fatal("config.json")
        if name == "model.safetensors":
            return fatal("safetensors")
        return either("tokenizer", tokens="folder")

    return apply


def _vocabulary_is_left(case: Case) -> bool:
    return any((case.teacher / name).is_file() for name in ("vocab.txt", "vocab.json"))


def _writing(name: str, content: bytes) -> Change:
    def apply(case: Case) -> Expected:
        (case.teacher / name).write_bytes(content)
        return _expected(case, name)

    return apply


def _cutting(name: str, share: float) -> Change:
    def apply(case: Case) -> Expected:
        path = case.teacher / name
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return _expected(case, name)

    return apply


def _exchanging(name: str, family: str) -> Change:
    def apply(case: Case) -> Expected:
        if family == case.family:
            return harmless()
        shutil.copyfile(case.models / family / name, case.teacher / name)
        if name in NEEDED:
            return fatal("config", "safetensors", "weights", "train_teacher", "teacher")
        if name == "tokenizer.json":
            return either("tokenizer", "config.json", "pad", tokens="folder")
        if name == "tokenizer_config.json":
            return either("tokenizer", "pad", tokens="folder")
        return either("tokenizer", name.replace(".", r"\."), "vocab")

    return apply


_ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "with a byte-order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "in UTF-16": lambda text: text.encode("utf-16"),
    "with CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "without a last newline": lambda text: text.rstrip("\n").encode(),
    "in Latin-1": lambda text: text.encode("latin-1", errors="replace"),
    "with blanks at the end": lambda text: text.encode() + b"\n\n  \n",
    "twice in one file": lambda text: text.encode() * 2,
    "with escapes": lambda text: _escaped(text),  # noqa: PLW0108 - defined below
}


def _escaped(text: str) -> bytes:
    try:
        return json.dumps(json.loads(text), ensure_ascii=True).encode()
    except ValueError:
        return text.encode()


def _encoding(name: str, way: str) -> Change:
    def apply(case: Case) -> Expected:
        path = case.teacher / name
        path.write_bytes(_ENCODINGS[way](path.read_text(encoding="utf-8")))
        same = way in ("without a last newline", "with escapes")
        if name in JSON_FILES and (same or way in ("with CRLF", "with blanks at the end")):
            return harmless()
        if name in JSON_FILES and way == "in Latin-1" and name != "tokenizer.json":
            return harmless()  # all letters of these are ASCII
        if name == "config.json" and way != "with a byte-order mark":
            return fatal(r"config\.json")
        return harmless() if same else either(name.replace(".", r"\."), "tokenizer")

    return apply


_BESIDE = {
    "README.md": b"# A model\n",
    "training_args.bin": pickle.dumps({"a": 1}),
    "pytorch_model.bin": pickle.dumps({"a": 1}),
    "optimizer.pt": b"\x80\x02}.",
    "trainer_state.json": b'{"epoch": 3}',
    "generation_config.json": b"{}",
    "merges.json": b"[]",
    "added_tokens.json": b"{}",
    "notes.txt": b"to do\n",
    "modeling_custom.py": b"raise SystemExit('executed')\n",
    "chat_template.jinja": b"{{ messages }}",
    ".gitattributes": b"*.bin filter=lfs\n",
    "onnx/model.onnx": b"\x08\x07",
    "checkpoint-10/config.json": b"{}",
}


def _beside(name: str) -> Change:
    def apply(case: Case) -> Expected:
        path = case.teacher / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_BESIDE[name])
        return harmless()

    return apply
