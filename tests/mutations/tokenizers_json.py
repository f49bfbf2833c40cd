"""Mutations of a teacher's tokenizer.json: parts removed, exchanged, set otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

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

FILE = "tokenizer.json"
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens", "model")
ALL = (*PARTS, "truncation", "padding", "version")
IDLE = ("decoder", "truncation", "padding")
SAYS = ("tokenizer", "pad", "config.json")
_TRUNCATION = {"max_length": 6, "strategy": "LongestFirst", "stride": 0}
_PADDING = {"direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}


def mutations() -> Iterator[Mutation]:
    for part in ALL:
        yield Mutation("tokenizer.json: part removed", part, _changing(part, None, remove=True))
        for what, value in (("null", None), ("a text", "x"), ("a list", []), ("an object", {})):
            title = f"{part} is {what}"
            yield Mutation("tokenizer.json: part of another type", title, _changing(part, value))
    for part in PARTS:
        for family in FAMILIES:
            title = f"{part} of {family}"
            yield Mutation("tokenizer.json: part exchanged", title, _exchanging(part, family))
    for name, values in _SET.items():
        yield Mutation("tokenizer.json: part set", name, _setting(values))
    for side in ("Left", "Right"):
        yield Mutation("tokenizer.json: truncation", f"a length of 6, {side}", _truncating(side))
    for direction in ("Left", "Right"):
        for strategy in ("BatchLongest", {"Fixed": 64}):
            title = f"{direction} {strategy}"
            yield Mutation("tokenizer.json: padding", title, _padding(direction, strategy))


def as_the_folder(*more: str) -> Expected:
    return either(*SAYS, *more, tokens="folder")


def _changing(part: str, value: Any, *, remove: bool = False) -> Change:
    def apply(case: Case) -> Expected:
        document = case.read_json(FILE)
        before = document.pop(part, None)
        if not remove:
            document[part] = value
        case.write_json(FILE, document)
        if part == "model":
            return fatal(r"tokenizer\.json", "tokenizer")
        same = not remove and value == before
        if same or (part in IDLE and (remove or value is None)):
            return harmless()
        return as_the_folder()

    return apply


def _exchanging(part: str, family: str) -> Change:
    def apply(case: Case) -> Expected:
        document = case.read_json(FILE)
        other = json.loads((case.models / family / FILE).read_text(encoding="utf-8"))
        if document[part] == other[part]:
            return harmless()
        case.write_json(FILE, document | {part: other[part]})
        return harmless() if part == "decoder" else as_the_folder()

    return apply


_SET: dict[str, dict[str, Any]] = {
    "normalizer lower-cases": {"normalizer": {"type": "Lowercase"}},
    "normalizer strips accents": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}],
        }
    },
    "normalizer NFKC": {"normalizer": {"type": "NFKC"}},
    "normalizer of an unknown type": {"normalizer": {"type": "Mine"}},
    "normalizer replaces": {
        "normalizer": {"type": "Replace", "pattern": {"String": "re"}, "content": "x"}
    },
    "BERT's normalizer, cased": {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": False,
        }
    },
    "BERT's normalizer, uncased": {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": True,
            "lowercase": True,
        }
    },
    "pre-tokenizer at blanks": {"pre_tokenizer": {"type": "WhitespaceSplit"}},
    "pre-tokenizer at digits": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "BertPreTokenizer"},
                {"type": "Digits", "individual_digits": True},
            ],
        }
    },
    "pre-tokenizer of an unknown type": {"pre_tokenizer": {"type": "Mine"}},
    "post-processor of an unknown type": {"post_processor": {"type": "Mine"}},
    "post-processor with a first piece alone": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "first", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"first": {"id": "first", "ids": [2], "tokens": ["first"]}},
        }
    },
    "version 2.0": {"version": "2.0"},
    "a field of nobody": {"mine": 1},
}


def _setting(values: dict[str, Any]) -> Change:
    def apply(case: Case) -> Expected:
        case.write_json(FILE, case.read_json(FILE) | values)
        return as_the_folder()

    return apply


def _truncating(side: str) -> Change:
    def apply(case: Case) -> Expected:
        case.change_json(FILE, truncation={"direction": side, **_TRUNCATION})
        return as_the_folder("trunc")

    return apply


def _padding(direction: str, strategy: Any) -> Change:
    def apply(case: Case) -> Expected:
        pad = case.read_json("tokenizer_config.json")["pad_token"]
        more = {"strategy": strategy, "pad_token": pad, "direction": direction}
        case.change_json(FILE, padding=_PADDING | more)
        return harmless()

    return apply
