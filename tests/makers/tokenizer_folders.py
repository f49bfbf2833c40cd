"""Tokenizer files of model folders, made with neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_PLAIN = "where is my parcel please the order was late a refund i can not log in today number"
WORDS = [*_PLAIN.split(), "##s", "##ed", "##ing", "e", "cafe", "naive", "1", "2", "3", *",.!?"]
TEXTS = ["Where is my parcel?", "the refund was not ordered", "I can not log in, please!", "Café 1"]


def wordpiece(
    words: list[str] = WORDS, *, lowercase: bool = True, strip_accents: bool | None = None
) -> Tokenizer:
    """A BERT tokenizer of these words."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def write_folder(
    folder: Path,
    tokenizer: Tokenizer | None = None,
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A model folder without weights: config.json, tokenizer.json, tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 64}
    write(folder / "config.json", {"model_type": "bert", "pad_token_id": 0, **shape, **config})
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    if settings is not None:
        write(folder / "tokenizer_config.json", settings)
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def write_vocabulary(folder: Path, words: list[str] = WORDS) -> Path:
    """A vocab.txt, in the folder of a BERT."""
    path = folder / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in [*SPECIAL, *words]))
    return path
