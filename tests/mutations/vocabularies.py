"""Tokenizers of the made-up task, one per kind that encoders have, built from its words alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as cutters
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from tests.mutations.task import FILLERS, KEYS

WORDS = (*FILLERS, *(word for words in KEYS.values() for word in words))
_MARKS = ".!?'-,"
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MPNET_SPECIAL = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
DEBERTA_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
MODERN_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")


def wordpiece(special: Sequence[str], *, lower: bool) -> Tokenizer:
    """BERT's: normalised, cut at blanks and marks, longest pieces first."""
    normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer = Tokenizer(
        models.WordPiece(
            {piece: i for i, piece in enumerate([*special, *_pieces(normalizer)])},
            unk_token="[UNK]",
        )
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = cutters.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    _add_special(tokenizer, special)
    begin, end = ("<s>", "</s>") if special is MPNET_SPECIAL else ("[CLS]", "[SEP]")
    tokenizer.post_processor = _around(tokenizer, begin, end)
    return tokenizer


def byte_level(special: Sequence[str], *, modern: bool = False) -> Tokenizer:
    """RoBERTa's, or ModernBERT's: merges of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cutters.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(special),
        initial_alphabet=cutters.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{word} {word}" for word in WORDS for _ in range(3)], trainer)
    _add_special(tokenizer, special)
    if modern:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.post_processor = _around(tokenizer, "[CLS]", "[SEP]")
    else:
        ids = tokenizer.get_vocab()
        tokenizer.post_processor = RobertaProcessing(
            ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
        )
    return tokenizer


def unigram(special: Sequence[str], begin: str, end: str) -> Tokenizer:
    """XLM-R's and DeBERTa's: pieces with scores, blanks as a mark of their own."""
    words = sorted({*WORDS})
    pieces = {f"▁{word}": -6.0 - 0.01 * i for i, word in enumerate(words)}
    pieces |= {word: -9.0 - 0.01 * i for i, word in enumerate(words) if len(word) > 3}
    letters = sorted(
        {letter for word in (*words, _MARKS, "abcdefghijklmnopqrstuvwxyz") for letter in word}
    )
    pieces |= {letter: -12.0 - 0.01 * i for i, letter in enumerate(["▁", *letters])}
    vocabulary = [*((name, 0.0) for name in special), *pieces.items()]
    unknown = [name for name, _ in vocabulary].index("<unk>" if "<unk>" in special else "[UNK]")
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = cutters.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    _add_special(tokenizer, special)
    tokenizer.post_processor = _around(tokenizer, begin, end)
    return tokenizer


def _pieces(normalizer: Any) -> list[str]:
    """Letters, then each word: every second one whole, the others as two pieces."""
    words = list(dict.fromkeys(normalizer.normalize_str(word) for word in WORDS))
    words = list(dict.fromkeys(part for word in words for part in _split(word)))
    letters = sorted({letter for word in words for letter in word})
    halves: list[str] = []
    for i, word in enumerate(words):
        half = len(word) // 2
        halves += [word] if i % 2 or half < 2 else [word[:half], f"##{word[half:]}"]
    parts = [*_MARKS, *letters, *(f"##{letter}" for letter in letters), *halves]
    return list(dict.fromkeys(parts))


def _split(word: str) -> list[str]:
    for mark in _MARKS:
        word = word.replace(mark, " ")
    return word.split()


def _add_special(tokenizer: Tokenizer, special: Sequence[str]) -> None:
    tokenizer.add_special_tokens(
        [AddedToken(name, lstrip=name == "<mask>", special=True) for name in special]
    )


def _around(tokenizer: Tokenizer, begin: str, end: str) -> TemplateProcessing:
    tokens = [(name, tokenizer.token_to_id(name)) for name in (begin, end)]
    return TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {end} $B:1 {end}:1", special_tokens=tokens
    )
