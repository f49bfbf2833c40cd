"""A teacher and a student of a few thousand weights, with tokenizer and data: whole, only small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification

from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.data.examples.prepared import Split, write_split
from tasks.kd.digests import sha256_file
from tasks.kd.documents.data_card import DataCard
from tasks.kd.export.running import predict_torch
from tasks.kd.tokens.encoding import encode, read_tokenizer
from tests.makers.documents import (
    make_data_card,
    make_history,
    make_manifest,
    make_split_card,
    make_student_report,
    make_teacher_report,
    write_history,
)

LABELS = ["grain", "money-fx", "<script>alert(1)</script>", "ship `it`"]
WORDS = [f"word{i}" for i in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MAX_LENGTH = 24


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
    _make_data_card(splits).write(prepared)
    for stage, model in (("train_teacher", teacher), ("train_student", student)):
        model.save_pretrained(artifacts / stage / "model")
        write_history(artifacts / stage, make_history(20))
    manifest = make_manifest()
    figures, tuned = _describe(teacher, artifacts / "train_teacher")
    make_teacher_report(**figures, teacher_sha256=tuned).write(artifacts / "train_teacher")
    figures, trained = _describe(student, artifacts / "train_student")
    make_student_report(
        **figures, student_sha256=trained, cache_fingerprint=manifest.fingerprint
    ).write(artifacts / "train_student")
    (artifacts / "cache_teacher").mkdir()
    manifest.write(artifacts / "cache_teacher" / MANIFEST)


def _make_data_card(splits: dict[str, Split]) -> DataCard:
    described = {
        name: make_split_card(LABELS, examples=len(split), tokens=int(split.lengths.sum()))
        for name, split in splits.items()
    }
    return make_data_card(LABELS, max_length_tokens=MAX_LENGTH, splits=described)


def _describe(model: Any, folder: Path) -> tuple[dict[str, Any], str]:
    """Figures of a training's report, and the digest of the weights."""
    parameters = sum(weight.numel() for weight in model.parameters())
    digest = sha256_file(folder / "model" / "model.safetensors")
    return {"dev_accuracy": 0.9, "parameters": parameters}, digest
