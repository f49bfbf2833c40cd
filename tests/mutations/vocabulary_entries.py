"""Mutations of the model, the vocabulary and the added tokens in a teacher's tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer

from tests.mutations.cases import Case, Change, Expected, Mutation, either, harmless
from tests.mutations.tokenizers_json import FILE, SAYS, as_the_folder


def mutations() -> Iterator[Mutation]:
    for name, model in _MODELS.items():
        yield Mutation("tokenizer.json: model", name, _on_model(model))
    for name, entry in _VOCABULARIES.items():
        for which in ("a key word", "a filler", "a special piece", "the last"):
            title = f"{which} {name}"
            yield Mutation("tokenizer.json: vocabulary", title, _on_entry(entry, which))
    for name, added in _ADDED.items():
        yield Mutation("tokenizer.json: added tokens", name, _on_added(added))


_MODELS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "without its type": lambda m: {k: v for k, v in m.items() if k != "type"},
    "of an unknown type": lambda m: m | {"type": "Mine"},
    "WordLevel": lambda m: m | {"type": "WordLevel"},
    "without unk": lambda m: {k: v for k, v in m.items() if k not in ("unk_token", "unk_id")},
    "unk that is not there": lambda m: m | {"unk_token": "[NONE]", "unk_id": 10**6},
    "another prefix": lambda m: m | {"continuing_subword_prefix": "@@"},
    "short words": lambda m: m | {"max_input_chars_per_word": 4},
    "dropout": lambda m: m | {"dropout": 0.5},
    "byte fallback": lambda m: m | {"byte_fallback": True},
    "merges as text": lambda m: (
        m | ({"merges": [" ".join(x) for x in m["merges"]]} if "merges" in m else {})
    ),
    "merges empty": lambda m: m | ({"merges": []} if "merges" in m else {}),
    "merges turned": lambda m: m | ({"merges": m["merges"][::-1]} if "merges" in m else {}),
    "merges of pieces that are not there": lambda m: (
        m | ({"merges": [*m["merges"], ["zzz", "yyy"]]} if "merges" in m else {})
    ),
    "vocabulary empty": lambda m: m | {"vocab": type(m["vocab"])()},
    "vocabulary null": lambda m: m | {"vocab": None},
    "vocabulary of the other form": lambda m: m | {"vocab": _other_form(m["vocab"])},
    "numbers as text": lambda m: m | {"vocab": _numbers_as_text(m["vocab"])},
    "ids turned": lambda m: m | {"vocab": _turned(m["vocab"])},
    "ids doubled": lambda m: m | {"vocab": _doubled(m["vocab"])},
    "ids from one": lambda m: m | {"vocab": _moved(m["vocab"])},
    "half of it": lambda m: m | {"vocab": _half(m["vocab"])},
    "in capitals": lambda m: m | {"vocab": _capitals(m["vocab"])},
}


def _other_form(vocab: Any) -> Any:
    if isinstance(vocab, dict):
        return [[word, -1.0] for word in vocab]
    return {word: i for i, (word, _) in enumerate(vocab)}


def _numbers_as_text(vocab: Any) -> Any:
    if isinstance(vocab, dict):
        return {word: str(i) for word, i in vocab.items()}
    return [[word, str(score)] for word, score in vocab]


def _turned(vocab: Any) -> Any:
    if isinstance(vocab, dict):
        return {word: len(vocab) - 1 - i for word, i in vocab.items()}
    return vocab[::-1]


def _doubled(vocab: Any) -> Any:
    return {word: i // 2 for word, i in vocab.items()} if isinstance(vocab, dict) else vocab * 2


def _moved(vocab: Any) -> Any:
    if isinstance(vocab, dict):
        return {word: i + 1 for word, i in vocab.items()}
    return [["<new>", 0.0], *vocab]


def _half(vocab: Any) -> Any:
    if isinstance(vocab, dict):
        return {word: i for word, i in vocab.items() if i < len(vocab) // 2}
    return vocab[: len(vocab) // 2]


def _capitals(vocab: Any) -> Any:
    if isinstance(vocab, dict):
        return {word.upper(): i for word, i in vocab.items()}
    return [[word.upper(), score] for word, score in vocab]


def _on_model(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def apply(case: Case) -> Expected:
        document = case.read_json(FILE)
        changed = change(document["model"])
        if changed == document["model"]:
            return harmless()
        case.write_json(FILE, document | {"model": changed})
        if changed.get("dropout"):
            return either(*SAYS, tokens="good")  # chance has no say in what a text is
        return as_the_folder()

    return apply


Entry = Callable[[Any, int], Any]
_VOCABULARIES: dict[str, Entry] = {
    "removed": lambda vocab, at: _edited(vocab, at, None),
    "renamed": lambda vocab, at: _edited(vocab, at, lambda word: f"{word}x"),
    "empty": lambda vocab, at: _edited(vocab, at, lambda word: ""),
    "with a blank": lambda vocab, at: _edited(vocab, at, lambda word: f"{word} "),
    "with a NUL": lambda vocab, at: _edited(vocab, at, lambda word: f"{word}\0"),
    "beyond the table": lambda vocab, at: _numbered(vocab, at, 100_000),
    "below zero": lambda vocab, at: _numbered(vocab, at, -1),
    "as a fraction": lambda vocab, at: _numbered(vocab, at, 0.5),
    "on another's row": lambda vocab, at: _numbered(vocab, at, 4),
}


def _edited(vocab: Any, at: int, rename: Callable[[str], str] | None) -> Any:
    """The vocabulary without its entry of that row, or with another spelling of it."""
    if isinstance(vocab, dict):
        kept = ((word, i) for word, i in vocab.items() if i != at or rename is not None)
        return {rename(w) if i == at and rename is not None else w: i for w, i in kept}
    entries = [list(entry) for entry in vocab]
    if rename is None:
        return entries[:at] + entries[at + 1 :]
    entries[at][0] = rename(entries[at][0])
    return entries


def _numbered(vocab: Any, at: int, number: Any) -> Any:
    if isinstance(vocab, dict):
        return {word: number if i == at else i for word, i in vocab.items()}
    return [[word, number if i == at else score] for i, (word, score) in enumerate(vocab)]


_WHICH = {"a key word": "parcel", "a filler": "window"}


def _on_entry(change: Entry, which: str) -> Change:
    def apply(case: Case) -> Expected:
        document = case.read_json(FILE)
        vocab = document["model"]["vocab"]
        words = vocab if isinstance(vocab, dict) else {word: i for i, (word, _) in enumerate(vocab)}
        if which == "a special piece":
            at = case.one_of([token["id"] for token in document["added_tokens"]])
        elif which == "the last":
            at = max(words.values())
        else:
            good = Tokenizer.from_file(str(case.models / case.family / FILE))
            at = good.encode(f"the {_WHICH[which]}", add_special_tokens=False).ids[-1]
        document["model"]["vocab"] = change(vocab, at)
        case.write_json(FILE, document)
        return as_the_folder()

    return apply


def _on_added(change: Callable[[list[dict[str, Any]], int], Any]) -> Change:
    def apply(case: Case) -> Expected:
        document = case.read_json(FILE)
        size = case.read_json("config.json")["vocab_size"]
        document["added_tokens"] = change(document["added_tokens"], size)
        case.write_json(FILE, document)
        return as_the_folder("vocab")

    return apply


def _token(content: str, number: Any, **more: Any) -> dict[str, Any]:
    manners = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": content, **manners, **more}


_ADDED: dict[str, Callable[[list[dict[str, Any]], int], Any]] = {
    "one beyond the table": lambda tokens, n: [*tokens, _token("<url>", n)],
    "a word beyond the table": lambda tokens, n: [*tokens, _token("Hello", n)],
    "a word on a used row": lambda tokens, n: [*tokens, _token("Hello", 7)],
    "a word within a word": lambda tokens, n: [*tokens, _token("and", n - 1)],
    "one far beyond": lambda tokens, n: [*tokens, _token("<url>", n + 5000)],
    "one empty": lambda tokens, n: [*tokens, _token("", n)],
    "one twice": lambda tokens, n: [*tokens, tokens[0]],
    "one without its id": lambda tokens, n: [
        {k: v for k, v in x.items() if k != "id"} for x in tokens
    ],
    "ids as text": lambda tokens, n: [x | {"id": str(x["id"])} for x in tokens],
    "ids moved by one": lambda tokens, n: [x | {"id": x["id"] + 1} for x in tokens],
    "the first left out": lambda tokens, n: tokens[1:],
    "the last left out": lambda tokens, n: tokens[:-1],
    "none special": lambda tokens, n: [x | {"special": False} for x in tokens],
    "all strip": lambda tokens, n: [x | {"lstrip": True, "rstrip": True} for x in tokens],
    "all normalized": lambda tokens, n: [x | {"normalized": True} for x in tokens],
    "in capitals": lambda tokens, n: [x | {"content": x["content"].upper()} for x in tokens],
}
