"""Turn raw tables into splits of token ids, labels and stable example ids, with a data card."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from tasks.kd.data.examples.prepared import Split, write_split
from tasks.kd.data.random_texts import random_texts
from tasks.kd.data.splits import RawSplits, read_splits, warn_of_classes
from tasks.kd.data.tables import Rows, list_parts, stratified
from tasks.kd.digests import sha256_folder, sha256_json
from tasks.kd.documents.data_card import DataCard, Replaced, SplitCard, Splits
from tasks.kd.documents.document import parse
from tasks.kd.documents.sources import Sources
from tasks.kd.encoders.files.folder import read_config
from tasks.kd.encoders.files.label_names import known_label_names, order_labels, read_label_names
from tasks.kd.encoders.files.weights import classifier_rows, read_headers
from tasks.kd.errors import DataError
from tasks.kd.recipe.sections import PrepareData
from tasks.kd.recipe.sources import DataSource, FileFormat, HubData, ParquetFormat
from tasks.kd.tokens.counts import Reading, read_texts, require_known
from tasks.kd.tokens.encoding import read_tokenizer, require_same_tokens
from tasks.kd.tokens.tokenizers import (
    ModelTokenizer,
    load_tokenizer,
    read_own,
    write_tokenizer_folder,
)
from tasks.kd.tokens.vocabularies import require_same_pieces
from tasks.stages import Stage, run_stage

_SAMPLE = 500  # texts that are compared with slower programs
_MANY_CUT = 0.01  # the share of cut texts above which there is a warning


def main(stage: Stage) -> None:
    """Write the splits, tokenizer/ and data_card.json.

    Random texts come last in the training split.
    """
    params: PrepareData = stage.params
    teacher_folder = stage.input("fetch_sources") / "teacher"
    raw = _read(stage.input("fetch_sources"), params)
    raw.require_enough(params.min_train_examples)
    train, dev = _divide(stage, raw.train)
    rows = {"train": train, "dev": dev, "test": raw.test}
    labels = _order_labels(stage, teacher_folder, train)
    _require_known_labels(labels, rows)
    teacher = load_tokenizer(teacher_folder)
    _require_positions(teacher, params)
    tokenizer = _save_tokenizer(teacher, stage.draft / "tokenizer", params)
    readings = {
        name: read_texts(tokenizer, split.texts, unknown_id=teacher.unknown_id)
        for name, split in rows.items()
    }
    require_known(readings["train"], params.max_unknown_fraction, where=teacher_folder)
    splits = {name: _as_split(rows[name], labels, readings[name]) for name in rows}
    prove_tokens(teacher, stage.draft / "tokenizer", splits["train"], params)
    if params.random_texts:
        splits["train"] = _add_random_texts(splits["train"], tokenizer, params)
    for name, split in splits.items():
        write_split(stage.draft / f"{name}.arrow", split)
    warnings = [
        *_warn_of_absent_labels(labels, train),
        *raw.list_warnings(),
        *warn_of_classes(labels, train, raw.test),
        *_warn_of_texts(readings, params),
    ]
    _write_card(stage, teacher, Prepared(raw, labels, splits, readings, warnings))
    stage.log(_say_sizes(raw, splits, labels))
    for name, reading in readings.items():
        stage.log(_say_reading(name, reading, params))
    for warning in warnings:
        stage.log(f"warning: {warning}")


def _read(sources: Path, params: PrepareData) -> RawSplits:
    """The raw splits, read in the form of their source."""
    read: TypeAdapter[DataSource] = TypeAdapter(DataSource)
    said = json.dumps(Sources.read(sources).data)
    source = parse(read.validate_json, said, Sources.TITLE, sources / Sources.FILE, "data")
    layout: FileFormat = (  # the hub's splits are written as Parquet
        ParquetFormat(kind="parquet") if isinstance(source, HubData) else source.format
    )
    names = {"train": source.train, "test": source.test}
    parts = {split: list_parts(sources / "data", split, name) for split, name in names.items()}
    return read_splits(parts, layout, params, sources / "teacher")


def _divide(stage: Stage, train: Rows) -> tuple[Rows, Rows]:
    """The training split and the dev split. Raises DataError if one would be empty."""
    params: PrepareData = stage.params
    if params.train_examples is not None and params.train_examples < len(train):
        left_out = len(train) - params.train_examples
        _, kept = stratified(train.labels, left_out, seed=params.seed)
        stage.log(f"uses {len(kept)} of {len(train)} training texts (train_examples)")
        train = train.keep(kept.tolist())
    count = round(params.dev_fraction * len(train))
    dev_rows, train_rows = stratified(train.labels, count, seed=params.seed + 1)
    if not (len(dev_rows) and len(train_rows)):
        raise DataError(
            "too few training examples for a dev split",
            where="prepare_data.dev_fraction",
            expected="at least one example in each split",
            found=f"{len(train)} examples, {len(dev_rows)} of them for dev",
        )
    return train.keep(train_rows.tolist()), train.keep(dev_rows.tolist())


def _order_labels(stage: Stage, teacher: Path, train: Rows) -> list[str]:
    """Label names in order of id.

    A given teacher's labels, renamed by the recipe's map, include those that the training split
    lacks. A teacher that is to be tuned gets the data's labels, in its own order if it has the
    same.
    """
    names = sorted(set(train.labels))
    if len(names) < 2:
        raise DataError("the training split has a single label", found=names)
    fields, config = read_config(teacher), teacher / "config.json"
    if stage.reads["train_teacher.mode"] == "fine_tune":
        known = known_label_names(fields, config) or names
        return known if sorted(known) == names else names
    known = read_label_names(fields, config, classifier_rows(read_headers(teacher)))
    return order_labels(names, known, stage.reads["train_teacher.labels"], config)


def _require_known_labels(labels: list[str], splits: dict[str, Rows]) -> None:
    for name, rows in splits.items():
        unknown = Counter(label for label in rows.labels if label not in set(labels))
        if unknown:
            label, count = unknown.most_common(1)[0]
            raise DataError(
                f"the {name} split has a label that the training split lacks",
                where=f"label {label!r}, {count} examples",
                expected=f"one of {', '.join(labels)[:200]}",
            )


def _save_tokenizer(teacher: ModelTokenizer, out: Path, params: PrepareData) -> Tokenizer:
    """Save the teacher's tokenizer with the recipe's maximum length, and read it back."""
    write_tokenizer_folder(teacher, out, params.max_length_tokens)
    return read_tokenizer(out / "tokenizer.json", params.max_length_tokens)


def prove_tokens(teacher: ModelTokenizer, saved: Path, train: Split, params: PrepareData) -> None:
    """Raise DataError unless the training texts' ids are those of the teacher's own files.

    All texts are compared with tokenizer.json or the vocabulary. A sample is compared with
    sentencepiece, and with the tokenizer that transformers reads from the saved folder.
    """
    from transformers import AutoTokenizer

    own, rows = read_own(teacher, train.texts, params.max_length_tokens)
    used = [train.input_ids[row] for row in rows]
    require_same_tokens(own, used, where=teacher.files.places)
    sample = train.take(np.arange(min(_SAMPLE, len(train))))
    require_same_pieces(teacher.files, teacher.tokenizer, sample.texts)
    loaded: Any = AutoTokenizer.from_pretrained(saved, local_files_only=True)
    ids_again = loaded(sample.texts, truncation=True)["input_ids"]
    require_same_tokens([np.asarray(ids) for ids in ids_again], sample.input_ids, where=saved)


def _require_positions(teacher: ModelTokenizer, params: PrepareData) -> None:
    """Raise DataError if the maximum length exceeds the teacher's positions."""
    if teacher.positions is not None and params.max_length_tokens > teacher.positions:
        raise DataError(
            "texts may be longer than the teacher can read",
            where="prepare_data.max_length_tokens",
            expected=f"at most {teacher.positions}",
            found=params.max_length_tokens,
        )


def _as_split(rows: Rows, labels: list[str], reading: Reading) -> Split:
    number = {label: i for i, label in enumerate(labels)}
    return Split(
        _example_ids(rows.texts),
        rows.texts,
        np.asarray([number[label] for label in rows.labels], dtype=np.int64),
        reading.input_ids,
    )


def _add_random_texts(train: Split, tokenizer: Tokenizer, params: PrepareData) -> Split:
    lengths = train.lengths.tolist() * params.random_texts
    return train.followed_by(random_texts(tokenizer, lengths, seed=params.seed + 2))


# --- the data card and the log -------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """The content of a data card: the raw rows, and the splits made of them."""

    raw: RawSplits
    labels: list[str]
    splits: dict[str, Split]
    readings: dict[str, Reading]
    warnings: list[str]


def _write_card(stage: Stage, teacher: ModelTokenizer, prepared: Prepared) -> None:
    raw, splits, labels = prepared.raw, prepared.splits, prepared.labels
    test, length = splits["test"], stage.params.max_length_tokens
    described = {
        name: _describe(split, labels, prepared.readings[name], length)
        for name, split in splits.items()
    }
    DataCard(
        splits=Splits(**described),
        dropped=raw.dropped,
        dropped_from_test=raw.tables["test"].dropped,
        replaced=Replaced(train=raw.tables["train"].replaced, test=raw.tables["test"].replaced),
        warnings=tuple(prepared.warnings),
        labels=tuple(labels),
        pad_token_id=teacher.pad_token_id,
        max_length_tokens=length,
        truncation_side=teacher.truncation_side,
        tokenizer_sha256=sha256_folder(stage.draft / "tokenizer"),
        encoded_sha256=_digest(splits["train"].input_ids),
        test_sha256=sha256_json([test.example_ids, test.labels.tolist(), labels]),
    ).write(stage.draft)


def _say_sizes(raw: RawSplits, splits: dict[str, Split], labels: list[str]) -> str:
    sizes = ", ".join(f"{len(split.labelled)} {name}" for name, split in splits.items())
    if more := len(splits["train"]) - len(splits["train"].labelled):
        sizes += f", {more} random texts"
    losses = raw.describe_losses()
    return f"{sizes}; {len(labels)} labels" + (f"; {losses}" if losses else "")


def _warn_of_absent_labels(labels: list[str], train: Rows) -> list[str]:
    learnt = set(train.labels)
    return [
        f"the training split has no text of label {label!r}, which the teacher knows"
        for label in labels
        if label not in learnt
    ]


def _say_reading(name: str, reading: Reading, params: PrepareData) -> str:
    length = params.max_length_tokens
    return (
        f"{name}: {reading.cut_fraction(length):.1%} of the texts cut at {length} tokens "
        f"({reading.tokens_for_99_percent} would keep 99 % whole), "
        f"{reading.unknown_fraction:.2%} unknown tokens"
    )


def _warn_of_texts(readings: dict[str, Reading], params: PrepareData) -> list[str]:
    """Warnings about the texts, for readers of the data card."""
    length, train, warnings = params.max_length_tokens, readings["train"], []
    if (cut := train.cut_fraction(length)) > _MANY_CUT:
        warnings.append(
            f"{cut:.1%} of the training texts are cut at {length} tokens; "
            f"{train.tokens_for_99_percent} would keep 99 % of them whole"
        )
    for name, reading in readings.items():
        if reading.unknown_fraction > params.max_unknown_fraction:
            warnings.append(
                f"{reading.unknown_fraction:.1%} of the {name} texts' tokens are unknown to the "
                f"teacher's tokenizer, {reading.common_unknown}"
            )
    return warnings


def _example_ids(texts: list[str]) -> list[str]:
    """A permanent key per row: its text's digest, with a number if the text is repeated."""
    seen: Counter[str] = Counter()
    ids = []
    for text in texts:
        key = sha256(text.encode()).hexdigest()[:16]
        seen[key] += 1
        ids.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return ids


def _digest(input_ids: list[Any]) -> str:
    digest = sha256()
    for key in sorted(ids.astype("<i4").tobytes() for ids in input_ids):
        digest.update(len(key).to_bytes(8, "little") + key)
    return digest.hexdigest()


def _describe(split: Split, labels: list[str], reading: Reading, length: int) -> SplitCard:
    counts = np.bincount(split.labels[split.labelled], minlength=len(labels))
    return SplitCard(
        examples=len(split),
        unlabelled=len(split) - len(split.labelled),
        tokens=int(split.lengths.sum()),
        longest_tokens=int(split.lengths.max()),
        label_counts=dict(zip(labels, counts.tolist(), strict=True)),
        cut_fraction=reading.cut_fraction(length),
        tokens_for_99_percent=reading.tokens_for_99_percent,
        unknown_fraction=reading.unknown_fraction,
    )


if __name__ == "__main__":
    run_stage("prepare_data", main)
