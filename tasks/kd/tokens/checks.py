"""Checks of a model folder's tokenizer: files that contradict one another, words no text gives.

transformers 4 lets tokenizer_config.json win over tokenizer.json, and version 5 rebuilds from it.
Other programs (the tokenizers library, servers in Rust) read tokenizer.json alone. Where the two
files differ in a field, nobody knows which of them the weights have seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from tasks.kd.errors import DataError
from tasks.kd.tokens.files import (
    BYTE_BPE,
    DEBERTA,
    MPNET,
    PIECES,
    PLAIN,
    SETTINGS,
    WORDPIECE,
    XLM_ROBERTA,
    TokenizerFiles,
    name_piece,
)
from tasks.kd.tokens.vocabularies import read_flag, read_vocabulary

# The largest allowed share of vocabulary words that the tokenizer can't make.
MAX_UNREACHABLE = 0.05
_MARKS = ("##", "@@", "▁", "Ġ")
_ADVICE = (
    "Keep what the teacher was trained with: mend the file that is wrong, or leave the field out."
)


def require_no_contradiction(files: TokenizerFiles, tokenizer: Tokenizer) -> None:
    """Raise DataError if the folder's files contradict one another about the tokenizer."""
    if not files.has_json:
        return
    written = json.loads(tokenizer.to_str())
    for name, says in _read_fields(files, tokenizer, written):
        expected = read_flag(files, name)
        if name == "strip_accents" and expected is None and name in files.settings:
            expected = read_flag(files, "do_lower_case")  # null means the same as this
        if expected is not None and expected != says:
            raise DataError(
                f"{SETTINGS} and tokenizer.json contradict one another in {name}",
                where=files.folder,
                expected=f"{json.dumps(says)}, as tokenizer.json does it",
                found=f"{json.dumps(expected)} in {SETTINGS}",
                advice=_ADVICE,
            )
    if read_flag(files, "split_special_tokens"):
        raise DataError(
            "special pieces that are split in texts can't be said in tokenizer.json",
            where=files.folder / SETTINGS,
            expected="split_special_tokens: false",
            found="true",
        )
    _require_same_ids(files, tokenizer, written["model"])
    if files.kind is not PLAIN and written["post_processor"] is None:
        raise DataError(
            f"tokenizer.json puts nothing around a text, and {files.tokenizer_class} does",
            where=f"{files.folder / 'tokenizer.json'}, post_processor",
            expected="the pieces around a text",
            found="null",
            advice=f"transformers 5 adds them, version 4 does not: write them there, or name "
            f"tokenizer_class PreTrainedTokenizerFast in {SETTINGS} if there are none.",
        )


def _read_fields(
    files: TokenizerFiles, tokenizer: Tokenizer, written: Mapping[str, Any]
) -> Iterator[tuple[str, bool]]:
    """The configuration fields that the class reads, with tokenizer.json's values."""
    kind = str(written["model"].get("type"))
    if files.kind in (WORDPIECE, MPNET) and kind not in ("WordPiece", "None"):
        return  # no version reads these fields for another model than the class's own
    normalizer = tokenizer.normalizer
    lowers = normalizer is not None and normalizer.normalize_str("Ab").strip(" ▁") == "ab"
    if files.kind in (WORDPIECE, MPNET, DEBERTA):
        yield "do_lower_case", lowers
    if (written["normalizer"] or {}).get("type") == "BertNormalizer":
        strips = written["normalizer"]["strip_accents"]
        if files.kind in (WORDPIECE, MPNET):
            yield "strip_accents", lowers if strips is None else strips
            yield "tokenize_chinese_chars", written["normalizer"]["handle_chinese_chars"]
    for part in _walk(written["pre_tokenizer"]):
        if part.get("type") == "ByteLevel" and files.kind is BYTE_BPE:
            yield "add_prefix_space", part["add_prefix_space"]
        if part.get("type") == "Metaspace" and files.kind in (DEBERTA, XLM_ROBERTA):
            yield "add_prefix_space", part["prepend_scheme"] != "never"


def _walk(part: Any) -> Iterator[Mapping[str, Any]]:
    """A part of a tokenizer, and the parts of a sequence within it."""
    if isinstance(part, Mapping):
        yield part
        for inner in part.get("pretokenizers", []):
            yield from _walk(inner)


def _require_same_ids(
    files: TokenizerFiles, tokenizer: Tokenizer, model: Mapping[str, Any]
) -> None:
    """Raise DataError if vocab.txt or vocab.json gives a piece another id than tokenizer.json."""
    name = {"WordPiece": "vocab.txt", "BPE": "vocab.json"}.get(str(model.get("type")))
    path = files.folder / str(name)
    if name not in files.kind.files or not path.is_file():
        return
    for word, number in read_vocabulary(path).items():
        if (known := tokenizer.token_to_id(word)) != number:
            raise DataError(
                f"{name} and tokenizer.json give a piece different ids",
                where=f"{path}, {word!r}",
                expected=f"{known}, as tokenizer.json does",
                found=number,
                advice=_ADVICE,
            )


def require_pieces(files: TokenizerFiles, tokenizer: Tokenizer, pieces: Mapping[str, str]) -> None:
    """Raise DataError if a named special piece is missing, or has two ids, or another is used.

    `pieces` are the configuration's, by role.
    """
    lacking = [role for role in PIECES if role in pieces]
    lacking = [role for role in lacking if tokenizer.token_to_id(pieces[role]) is None]
    if lacking:
        raise DataError(
            "the vocabulary lacks special pieces that the configuration names",
            where=files.places,
            expected=", ".join(f"{role} {pieces[role]!r}" for role in lacking),
            found=f"{tokenizer.get_vocab_size()} other pieces",
        )
    around = tokenizer.encode("")
    for piece, number in zip(around.tokens, around.ids, strict=True):
        if (known := tokenizer.token_to_id(piece)) != number:
            raise DataError(
                "the post-processor writes a piece with another id than the vocabulary has",
                where=f"{files.places}, {piece!r}",
                expected=known,
                found=number,
            )
    if files.kind is not PLAIN:
        _require_same_pieces(files, tokenizer, around.tokens)


def _require_same_pieces(files: TokenizerFiles, tokenizer: Tokenizer, around: list[str]) -> None:
    """Raise DataError if tokenizer.json has another piece in a named piece's role."""
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:
        unknown = tokenizer.id_to_token(model["unk_id"])
    has = {
        "cls_token": ("first", " ".join(around[:1])),
        "sep_token": ("last", " ".join(around[-1:])),
        "unk_token": ("unknown", unknown),
    }
    for role, (what, piece) in has.items():
        named = name_piece(files, role)
        if named is not None and piece is not None and named != piece:
            raise DataError(
                f"{SETTINGS} names another {what} piece than tokenizer.json writes",
                where=files.folder,
                expected=f"{role} {piece or 'none'!r}",
                found=repr(named),
                advice=_ADVICE,
            )


# --- words that no text has ----------------------------------------------------------------------


def require_reachable(files: TokenizerFiles, tokenizer: Tokenizer) -> None:
    """Raise DataError if the tokenizer can't make more than 5 % of its own vocabulary's words.

    The normaliser changes such a word (capitals where it lower-cases, accents that it strips), or
    the word carries another mark of a beginning or continuation (`##`, `@@`, `▁`, `Ġ`) than the
    tokenizer writes. Measured without special and bracketed pieces (`[unused7]`): none of the
    29 523 words of bert-base-uncased, 54 of the 249 953 pieces of XLM-R under NFKC.
    """
    words, dead = _find_unreachable(tokenizer)
    if len(dead) > MAX_UNREACHABLE * words:
        shown = ", ".join(map(repr, dead[:: max(1, len(dead) // 5)][:5]))
        raise DataError(
            "the tokenizer can't make the words of its own vocabulary",
            where=files.places,
            expected=f"at most {MAX_UNREACHABLE:.0%} of {words} that no text gives",
            found=f"{len(dead) / words:.1%}, among them {shown}",
            advice="Its normaliser or its marks are another vocabulary's: see do_lower_case and "
            f"strip_accents in {SETTINGS}.",
        )


def _find_unreachable(tokenizer: Tokenizer) -> tuple[int, list[str]]:
    """The number of plain words, and the words that no text gives, in order of id."""
    written = json.loads(tokenizer.to_str())
    marks = _own_marks(written)
    foreign = tuple(mark for mark in _MARKS if mark not in marks)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    ids = tokenizer.get_vocab(with_added_tokens=False)
    words = [
        word
        for word in sorted(ids, key=lambda word: ids[word])
        if word not in special and not (word[:1] in "[<" and word[-1:] in "]>")
    ]
    in_bytes = "Ġ" in marks
    dead = []
    for word in words:
        plain = word
        for mark in marks:
            plain = plain.removeprefix(mark)
        is_text = plain.isascii() or not in_bytes  # other bytes are parts of letters
        changed = is_text and _is_changed(tokenizer, plain.replace("▁", " ").strip())
        if changed or (len(word) > 1 and word.startswith(foreign)):
            dead.append(word)
    return len(words), dead


def _is_changed(tokenizer: Tokenizer, word: str) -> bool:
    normalizer = tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str(word).strip(" ▁") != word


def _own_marks(written: Mapping[str, Any]) -> set[str]:
    """The marks that this tokenizer writes before a piece."""
    text = json.dumps([written["normalizer"], written["pre_tokenizer"]], ensure_ascii=False)
    prefix = written["model"].get("continuing_subword_prefix")
    marks = {prefix} if prefix else set[str]()
    if '"ByteLevel"' in text:
        marks.add("Ġ")
    if '"Metaspace"' in text or "▁" in text:
        marks.add("▁")
    return marks
