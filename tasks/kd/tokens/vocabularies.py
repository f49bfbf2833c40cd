"""Tokenizers built from vocabulary files, for model folders without a tokenizer.json.

They equal those that transformers 4 builds from the same files: WordPiece from vocab.txt,
byte-level BPE from vocab.json and merges.txt, Unigram from a sentencepiece model.
Differs from transformers 5: DeBERTa's sentencepiece model keeps its own normaliser (transformers
5 leaves it out, so that `①` and `ﬁ` are unknown), and a vocabulary of cased words is not
lower-cased unless the configuration asks for it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tasks.kd.errors import DataError
from tasks.kd.file_contents import read_object
from tasks.kd.tokens.encoding import refusing
from tasks.kd.tokens.files import (
    BYTE_BPE,
    MPNET,
    SETTINGS,
    WORDPIECE,
    TokenizerFiles,
    name_piece,
)

# A vocabulary of lower-cased texts has no word with capitals (bert-base-uncased: 0 of 29 523).
_CASED = 0.01


def build_tokenizer(files: TokenizerFiles) -> Tokenizer:
    """The tokenizer of the folder's vocabulary files. Raises DataError if they can't be used."""
    with refusing("the vocabulary can't be used", files.places):
        if files.kind in (WORDPIECE, MPNET):
            return _build_wordpiece(files)
        if files.kind is BYTE_BPE:
            return _build_byte_bpe(files)
        return _build_unigram(files)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Pieces and their ids, from a vocab.txt or vocab.json. Raises DataError for other content."""
    with refusing("not a vocabulary", path):
        if path.suffix == ".json":
            words = read_object(path)
        else:
            with path.open(encoding="utf-8-sig") as file:
                lines = ((line.rstrip("\n"), number) for number, line in enumerate(file))
                words = {word: number for word, number in lines if word}  # no text gives ""
    if not words or not all(type(number) is int for number in words.values()):
        raise DataError("not a vocabulary", where=path, expected="pieces with their ids")
    return words


def read_flag(files: TokenizerFiles, name: str) -> bool | None:
    """A field of tokenizer_config.json; None if absent. Raises DataError unless it is a boolean."""
    value = files.settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise DataError(
            "neither true nor false", where=f"{files.folder / SETTINGS}, {name}", found=repr(value)
        )
    return value


def is_cased(words: list[str]) -> bool:
    """Whether over 1 % of a vocabulary's words have capitals; [CLS] and the like don't count."""
    plain = [word for word in words if not (word[:1] in "[<" and word[-1:] in "]>")]
    capitals = sum(word != word.lower() for word in plain)
    return capitals > _CASED * len(plain)


def _piece(files: TokenizerFiles, role: str) -> str:
    return name_piece(files, role) or files.kind.pieces[role]


def _ends(files: TokenizerFiles, words: dict[str, int]) -> tuple[tuple[str, int], tuple[str, int]]:
    """The pieces before and after a text, with their ids."""
    cls, sep = _piece(files, "cls_token"), _piece(files, "sep_token")
    lacking = [piece for piece in (cls, sep) if piece not in words]
    if lacking:
        raise DataError(
            "the vocabulary lacks a special piece",
            where=files.places,
            expected=", ".join(lacking),
            found=f"{len(words)} other pieces",
        )
    return (cls, words[cls]), (sep, words[sep])


def _around(cls: tuple[str, int], sep: tuple[str, int]) -> processors.TemplateProcessing:
    single = f"{cls[0]}:0 $A:0 {sep[0]}:0"
    return processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1 {sep[0]}:1", special_tokens=[cls, sep]
    )


def _build_wordpiece(files: TokenizerFiles) -> Tokenizer:
    words = read_vocabulary(files.folder / "vocab.txt")
    lowers, chinese = read_flag(files, "do_lower_case"), read_flag(files, "tokenize_chinese_chars")
    tokenizer = Tokenizer(models.WordPiece(words, unk_token=_piece(files, "unk_token")))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese is not False,
        strip_accents=read_flag(files, "strip_accents"),
        lowercase=not is_cased(list(words)) if lowers is None else lowers,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    cls, sep = _ends(files, words)
    if files.kind is MPNET:
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, False)
    else:
        tokenizer.post_processor = _around(cls, sep)
    return tokenizer


def _build_byte_bpe(files: TokenizerFiles) -> Tokenizer:
    words = read_vocabulary(files.folder / "vocab.json")
    lines = (files.folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    lines = lines[1:] if lines[0].startswith("#version") else lines
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line)]
    prefix = read_flag(files, "add_prefix_space") is True
    tokenizer = Tokenizer(models.BPE(words, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    cls, sep = _ends(files, words)
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, prefix)
    return tokenizer


# --- sentencepiece -------------------------------------------------------------------------------


def _build_unigram(files: TokenizerFiles) -> Tokenizer:
    """The tokenizer that transformers' own converter makes for the class."""
    from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS

    if read_flag(files, "split_by_punct"):
        raise DataError(
            "a sentencepiece model whose texts are split at punctuation first can't be proved here",
            where=files.folder / SETTINGS,
            found="split_by_punct: true",
            advice="Save a tokenizer.json with the transformers that the model was trained with.",
        )
    described = SimpleNamespace(
        vocab_file=str(files.folder / files.kind.files[0]),
        do_lower_case=read_flag(files, "do_lower_case") is True,
        split_by_punct=False,
        add_prefix_space=True,
    )
    convert = SLOW_TO_FAST_CONVERTERS[files.tokenizer_class](described)
    described.convert_tokens_to_ids = convert.tokenizer(convert.proto).token_to_id
    tokenizer: Tokenizer = convert.converted()
    return tokenizer


def require_same_pieces(files: TokenizerFiles, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Raise DataError unless the sentencepiece library cuts each text into the same pieces."""
    if files.has_json or not files.kind.files[0].endswith(".model"):
        return
    from sentencepiece import SentencePieceProcessor

    path = files.folder / files.kind.files[0]
    with refusing("not a sentencepiece model", path):
        own = SentencePieceProcessor(model_file=str(path))
        lowers = read_flag(files, "do_lower_case") is True
        given = [text.lower() if lowers else text for text in texts]
        theirs = [own.encode(text, out_type=str) for text in given]
    pieces = [one.tokens for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    for text, made, expected in zip(texts, pieces, theirs, strict=True):
        if made == expected or any(piece in text for piece in special):
            continue
        raise DataError(
            "sentencepiece cuts a text in other pieces than the tokenizer made of its model",
            where=path,
            expected=" ".join(expected)[:120],
            found=" ".join(made)[:120],
            advice="Save a tokenizer.json with the transformers that the model was trained with.",
        )
