"""A teacher and a student of a few thousand weights, with tokenizer and data: whole, only small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification

from tasks.kd.data.examples.prepared import Split, write_split
from tasks.kd.digests import sha256_file, write_json
from tasks.kd.export.running import predict_torch
from tasks.kd.tokens.encoding import encode, read_tokenizer

LABELS = ["grain", "money-fx", "<script>alert(1)</script>", "ship `it`"]
WORDS = [f"word{i}" for i in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MAX_LENGTH = 24
LEVEL = {"raw": 1.0, "weighted": 2.0}


def tiny_tokenizer(path: Path) -> Path:
    """Write a tokenizer.json of whole words, with [CLS] and [SEP] around."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def tiny_model(layers: int, *, seed: int = 0, width: int = 16) -> Any:
    """A BERT classifier with weights large enough that its answers differ."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        initializer_range=0.4,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    return BertForSequenceClassification(config).eval()


def tiny_texts(count: int, *, seed: int = 0) -> list[str]:
    """Texts of 1 to 30 words; the longest are cut by the tokenizer."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 31))) for _ in range(count)]


def tiny_split(tokenizer: Path, teacher: Any, count: int, *, seed: int = 0) -> Split:
    """A split whose labels are the teacher's answers, but for every tenth."""
    texts = tiny_texts(count, seed=seed)
    ids = encode(read_tokenizer(tokenizer, MAX_LENGTH), texts)
    labels = predict_torch(teacher, ids, pad_token_id=0).argmax(axis=1).astype(np.int64)
    labels[::10] = (labels[::10] + 1) % len(LABELS)
    return Split([f"{seed}-{row}" for row in range(count)], texts, labels, ids)


def tiny_artifacts(artifacts: Path) -> None:
    """Everything that `export_student` and `evaluate_student` read, in a recipe's folder."""
    prepared = artifacts / "prepare_data"
    tokenizer = tiny_tokenizer(prepared / "tokenizer" / "tokenizer.json")
    teacher, student = tiny_model(4), tiny_model(2)
    student.bert.embeddings.load_state_dict(teacher.bert.embeddings.state_dict())
    student.classifier.load_state_dict(teacher.classifier.state_dict())
    splits = {
        name: tiny_split(tokenizer, teacher, count, seed=seed)
        for seed, (name, count) in enumerate({"train": 20, "dev": 30, "test": 60}.items())
    }
    for name, split in splits.items():
        write_split(prepared / f"{name}.arrow", split)
    write_json(prepared / "data_card.json", _data_card(splits))
    _write_training(artifacts / "train_teacher", teacher, {"mode": "fine_tune"})
    _write_training(artifacts / "train_student", student, {"cache_fingerprint": "9" * 64})
    (artifacts / "cache_teacher").mkdir()
    write_json(artifacts / "cache_teacher" / "manifest.json", {"fingerprint": "9" * 64})


def _data_card(splits: dict[str, Split]) -> dict[str, Any]:
    return {
        "labels": LABELS,
        "pad_token_id": 0,
        "max_length_tokens": MAX_LENGTH,
        "splits": {
            name: {
                "examples": len(split),
                "tokens": int(split.lengths.sum()),
                "cut_fraction": 0.25,
                "tokens_for_99_percent": 32,
                "unknown_fraction": 0.0,
            }
            for name, split in splits.items()
        },
        "dropped": {"repeated": 2, "contradictory": 0},
        "warnings": [],
        "tokenizer_sha256": "a" * 64,
        "encoded_sha256": "b" * 64,
        "test_sha256": "c" * 64,
    }


def _write_training(folder: Path, model: Any, report: dict[str, Any]) -> None:
    model.save_pretrained(folder / "model")
    digest = sha256_file(folder / "model" / "model.safetensors")
    parameters = sum(weight.numel() for weight in model.parameters())
    report = report | {"dev_accuracy": 0.9, "parameters": parameters}
    write_json(folder / "report.json", report | {f"{folder.name[6:]}_sha256": digest})
    step = {"phase": "learn", "loss": 2.0, "levels": {"prediction.kl": LEVEL}}
    lines = [
        {"step": 1, "epoch": 0.5, "split": "train", **step},
        {"step": 2, "epoch": 1.0, "split": "train", **step},
        {"step": 2, "epoch": 1.0, "split": "dev", "phase": "learn", "accuracy": 0.9, "loss": 1.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
