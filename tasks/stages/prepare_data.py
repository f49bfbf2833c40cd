"""From raw tables to token ids, labels, stable example ids and splits, with a data card."""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tasks.kd.data import Split, write_split
from tasks.kd.digests import read_json, sha256_folder, sha256_json, write_json
from tasks.kd.errors import DataError
from tasks.kd.params import PrepareData
from tasks.kd.random_texts import random_texts
from tasks.kd.raw_splits import RawSplits, read_splits, warn_of_classes
from tasks.kd.source_sections import FileFormat
from tasks.kd.tables import Rows, list_parts, stratified
from tasks.stages import Stage, run_stage

_RAW = ("train", "test")


def main(stage: Stage) -> None:
    """Write the splits, tokenizer/ and data_card.json.

    Random texts stand behind the others of the training split.
    """
    params: PrepareData = stage.params
    sources = stage.input("fetch_sources")
    raw = _read(sources, params)
    raw.require_enough(params.min_train_examples)
    test = raw.test
    train, dev = _divide(stage, raw.train)
    labels = _labels(train, sources / "teacher" / "config.json")
    _check_labels(labels, {"dev": dev, "test": test})
    tokenizer, pad_id = _save_tokenizer(sources / "teacher", stage.draft / "tokenizer", params)
    _check_teacher_reads(sources / "teacher" / "config.json", tokenizer, pad_id, params)
    splits = {}
    for name, rows in (("train", train), ("dev", dev), ("test", test)):
        splits[name] = _encode(rows, labels, tokenizer)
    warnings = [*raw.list_warnings(), *warn_of_classes(labels, train, test)]
    if params.random_texts:
        lengths = splits["train"].lengths.tolist() * params.random_texts
        more = random_texts(tokenizer, lengths, seed=params.seed + 2)
        splits["train"] = splits["train"].followed_by(more)
    for name, split in splits.items():
        write_split(stage.draft / f"{name}.arrow", split)
    write_json(
        stage.draft / "data_card.json",
        {
            "labels": labels,
            "pad_token_id": pad_id,
            "max_length_tokens": params.max_length_tokens,
            "splits": {name: _describe(split, labels) for name, split in splits.items()},
            **raw.card,
            "warnings": warnings,
            "tokenizer_sha256": sha256_folder(stage.draft / "tokenizer"),
            "encoded_sha256": _digest(splits["train"].input_ids),
            "test_sha256": sha256_json(
                [splits["test"].example_ids, splits["test"].labels.tolist(), labels]
            ),
        },
    )
    losses = raw.describe_losses()
    sizes = ", ".join(f"{len(split.labelled)} {name}" for name, split in splits.items())
    if params.random_texts:
        sizes += f", {len(more)} random texts"
    stage.log(f"{sizes}; {len(labels)} labels" + (f"; {losses}" if losses else ""))
    for warning in warnings:
        stage.log(f"warning: {warning}")


def _read(sources: Path, params: PrepareData) -> RawSplits:
    """Both splits as they were fetched, in the form that their source has."""
    source = read_json(sources / "sources.json")["data"]
    layout: FileFormat = TypeAdapter(FileFormat).validate_json(
        json.dumps(source.get("format", {"kind": "parquet"}))
    )
    parts = {split: list_parts(sources / "data", split, source[split]) for split in _RAW}
    return read_splits(parts, layout, params, sources / "teacher")


def _divide(stage: Stage, train: Rows) -> tuple[Rows, Rows]:
    """The training and the dev split. Raises DataError if one would be empty."""
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


def _labels(train: Rows, config: Path) -> list[str]:
    """Label names in order of id: the tuned teacher's own order where it has these labels."""
    names = sorted(set(train.labels))
    if len(names) < 2:
        raise DataError("the training split has a single label", found=names)
    known = read_json(config).get("id2label") or {}
    ordered = [known[key] for key in sorted(known, key=int)]
    return ordered if sorted(ordered) == names else names


def _check_labels(labels: list[str], splits: dict[str, Rows]) -> None:
    for name, rows in splits.items():
        unknown = Counter(label for label in rows.labels if label not in set(labels))
        if unknown:
            label, count = unknown.most_common(1)[0]
            raise DataError(
                f"the {name} split has a label that the training split lacks",
                where=f"label {label!r}, {count} examples",
                expected=f"one of {', '.join(labels)[:200]}",
            )


def _save_tokenizer(folder: Path, out: Path, params: PrepareData) -> tuple[Tokenizer, int]:
    """The teacher's tokenizer with the recipe's truncation and no padding; and its pad id."""
    try:
        loaded: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise DataError("no tokenizer with the teacher", where=folder, found=error) from error
    loaded.save_pretrained(out)
    if loaded.pad_token_id is None or not (out / "tokenizer.json").is_file():
        raise DataError("the teacher needs a fast tokenizer with a padding token", where=folder)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(params.max_length_tokens)
    tokenizer.save(str(out / "tokenizer.json"))
    return tokenizer, int(loaded.pad_token_id)


def _check_teacher_reads(
    config: Path, tokenizer: Tokenizer, pad_id: int, params: PrepareData
) -> None:
    """Raise DataError for texts longer than the teacher's positions or ids beyond its table."""
    known = read_json(config)
    # The positions of these begin after the padding id.
    offset = pad_id + 1 if known.get("model_type") in ("roberta", "xlm-roberta", "mpnet") else 0
    positions = known.get("max_position_embeddings", params.max_length_tokens + offset) - offset
    if params.max_length_tokens > positions:
        raise DataError(
            "texts may be longer than the teacher can read",
            where="prepare_data.max_length_tokens",
            expected=f"at most {positions}",
            found=params.max_length_tokens,
        )
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens > known.get("vocab_size", tokens):
        raise DataError(
            "the tokenizer has more tokens than the teacher's table",
            where=config,
            expected=f"at least {tokens} rows",
            found=known["vocab_size"],
        )


def _encode(rows: Rows, labels: list[str], tokenizer: Tokenizer) -> Split:
    encoded = tokenizer.encode_batch(rows.texts)
    number = {label: i for i, label in enumerate(labels)}
    return Split(
        _example_ids(rows.texts),
        rows.texts,
        np.asarray([number[label] for label in rows.labels], dtype=np.int64),
        [np.asarray(encoding.ids, dtype=np.int32) for encoding in encoded],
    )


def _example_ids(texts: list[str]) -> list[str]:
    """A permanent key per row: its text's digest, numbered where a text is repeated."""
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


def _describe(split: Split, labels: list[str]) -> dict[str, Any]:
    counts = np.bincount(split.labels[split.labelled], minlength=len(labels))
    return {
        "examples": len(split),
        "unlabelled": len(split) - len(split.labelled),
        "tokens": int(split.lengths.sum()),
        "longest_tokens": int(split.lengths.max()),
        "label_counts": dict(zip(labels, counts.tolist(), strict=True)),
    }


if __name__ == "__main__":
    run_stage("prepare_data", main)
