"""From raw tables to token ids, labels, stable example ids and splits, with a data card."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tasks.kd.data import Split, write_split
from tasks.kd.digests import read_json, sha256_folder, sha256_json, write_json
from tasks.kd.errors import DataError
from tasks.kd.label_names import known_label_names, order_labels, read_label_names
from tasks.kd.model_folder import classifier_rows, read_config, read_headers
from tasks.kd.params import PrepareData
from tasks.kd.random_texts import random_texts
from tasks.kd.tables import Rows, drop_repeats, read_rows, stratified
from tasks.stages import Stage, run_stage


def main(stage: Stage) -> None:
    """Write the splits, tokenizer/ and data_card.json.

    Random texts stand behind the others of the training split.
    """
    params: PrepareData = stage.params
    sources = stage.input("fetch_sources")
    test = _read(sources, "test", params)
    train, dropped = drop_repeats(
        _read(sources, "train", params), test, on_overlap=params.on_overlap
    )
    train, dev = _divide(stage, train)
    labels, warnings = _labels(stage, sources / "teacher", train)
    _check_labels(labels, {"dev": dev, "test": test})
    for warning in warnings:
        stage.log(f"warning: {warning}")
    tokenizer, pad_id = _save_tokenizer(sources / "teacher", stage.draft / "tokenizer", params)
    _check_teacher_reads(sources / "teacher" / "config.json", tokenizer, pad_id, params)
    splits = {}
    for name, rows in (("train", train), ("dev", dev), ("test", test)):
        splits[name] = _encode(rows, labels, tokenizer)
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
            "dropped": dropped,
            "warnings": warnings,
            "tokenizer_sha256": sha256_folder(stage.draft / "tokenizer"),
            "encoded_sha256": _digest(splits["train"].input_ids),
            "test_sha256": sha256_json(
                [splits["test"].example_ids, splits["test"].labels.tolist(), labels]
            ),
        },
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    sizes = ", ".join(f"{len(split.labelled)} {name}" for name, split in splits.items())
    if params.random_texts:
        sizes += f", {len(more)} random texts"
    stage.log(f"{sizes}; {len(labels)} labels" + (f"; left out: {left_out}" if left_out else ""))


def _read(sources: Path, split: str, params: PrepareData) -> Rows:
    found = next(iter((sources / "data").glob(f"{split}.*")))
    skip = read_json(sources / "sources.json")["data"].get("format", {}).get("skip_lines", 0)
    return read_rows(found, text=params.text_column, label=params.label_column, skip_lines=skip)


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


def _labels(stage: Stage, teacher: Path, train: Rows) -> tuple[list[str], list[str]]:
    """Label names in order of id, and what to warn of.

    A given teacher's own, named as the recipe's map says: also those that today's training split
    lacks. Of a teacher that is yet to be tuned those of the data, in its order if it has the same.
    """
    names = sorted(set(train.labels))
    if len(names) < 2:
        raise DataError("the training split has a single label", found=names)
    fields, config = read_config(teacher), teacher / "config.json"
    if stage.reads["train_teacher.mode"] == "fine_tune":
        known = known_label_names(fields, config) or names
        return (known if sorted(known) == names else names), []
    known = read_label_names(fields, config, classifier_rows(read_headers(teacher)))
    ordered = order_labels(names, known, stage.reads["train_teacher.labels"], config)
    return ordered, [
        f"the training split has no text of label {label!r}, which the teacher knows"
        for label in ordered
        if label not in names
    ]


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
