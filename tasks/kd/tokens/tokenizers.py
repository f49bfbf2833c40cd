"""A model folder's tokenizer: the one its weights were trained with, to its last special piece.

tokenizer.json decides, read by the tokenizers library itself, as transformers 4 read it. Without
it, the tokenizer is built from the vocabulary files (`vocabularies.py`).
Differs from transformers 5: its classes for BERT, DistilBERT, ELECTRA, MPNet, RoBERTa, XLM-R and
DeBERTa take the vocabulary of tokenizer.json and write normaliser, pre-tokenizer and
post-processor anew, from tokenizer_config.json and their own defaults. If that file contradicts
tokenizer.json, nobody can tell which of the two the weights know, and the folder is refused
(`checks.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import AddedToken, Tokenizer

from tasks.kd.digests import write_json
from tasks.kd.errors import DataError
from tasks.kd.file_contents import read_object
from tasks.kd.tokens.checks import (
    require_no_contradiction,
    require_pieces,
    require_reachable,
)
from tasks.kd.tokens.encoding import encode, refusing
from tasks.kd.tokens.files import (
    BYTE_BPE,
    MPNET,
    PIECES,
    SETTINGS,
    TOKENIZER,
    XLM_ROBERTA,
    TokenizerFiles,
    find_tokenizer,
    name_piece,
)
from tasks.kd.tokens.vocabularies import build_tokenizer

if TYPE_CHECKING:
    from tasks.kd.data.examples.prepared import Ids

# Families whose positions begin after the padding id.
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "mpnet")


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer that neither cuts nor pads, with its folder's settings."""

    files: TokenizerFiles
    tokenizer: Tokenizer
    truncation_side: Literal["left", "right"]
    pad_token_id: int
    pieces: Mapping[str, str]  # special pieces by role: cls_token, sep_token, …

    @property
    def unknown_id(self) -> int | None:
        """The id of unknown pieces; None if the vocabulary can spell every text."""
        model = json.loads(self.tokenizer.to_str())["model"]
        if model.get("unk_id") is not None:
            return int(model["unk_id"])
        piece = model.get("unk_token")
        return None if piece is None else self.tokenizer.token_to_id(piece)

    @property
    def positions(self) -> int | None:
        """The longest text the model reads, in tokens; None if its configuration does not say."""
        positions = self.files.config.get("max_position_embeddings")
        if not isinstance(positions, int):
            return None
        after = self.files.config.get("model_type") in _POSITIONS_AFTER_PADDING
        return positions - (self.pad_token_id + 1 if after else 0)

    def cut_at(self, max_length_tokens: int) -> Tokenizer:
        """A copy that cuts longer texts on the teacher's side.

        Raises DataError if it can't be saved.
        """
        with refusing("the tokenizer can't be saved and read again", self.files.places):
            tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.enable_truncation(max_length_tokens, direction=self.truncation_side)
        return tokenizer


def load_tokenizer(folder: Path) -> ModelTokenizer:
    """The tokenizer of a model folder.

    Raises DataError if there is none, if its files are broken or contradict one another, and if it
    has ids that the model's embedding table lacks.
    """
    files = find_tokenizer(folder)
    if files.has_json:
        with refusing("not a tokenizer", folder / TOKENIZER):
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    else:
        tokenizer = build_tokenizer(files)
    side = files.settings.get("truncation_side") or (tokenizer.truncation or {}).get("direction")
    padding = (tokenizer.padding or {}).get("pad_token")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with refusing("the tokenizer can't be used", files.places):
        require_no_contradiction(files, tokenizer)
        _add_tokens(files, tokenizer)
        pieces = _name_pieces(files, tokenizer)
        _register(files, tokenizer, pieces)
        require_pieces(files, tokenizer, pieces)
        _require_rows(files, tokenizer)
        require_reachable(files, tokenizer)
    pad_token_id = _find_padding(files, tokenizer, pieces.get("pad_token") or padding)
    pieces.setdefault("pad_token", str(tokenizer.id_to_token(pad_token_id)))
    return ModelTokenizer(files, tokenizer, side or "right", pad_token_id, pieces)


def read_own(
    model: ModelTokenizer, texts: Sequence[str], max_length_tokens: int
) -> tuple[list[Ids], list[int]]:
    """The texts' ids by the folder's tokenizer.json as it stands, and the rows that they belong to.

    Rows are left out if their text holds the letters of a piece that the configuration alone makes
    a special one. Without tokenizer.json, the vocabulary files are read anew.
    """
    path, rows = model.files.folder / TOKENIZER, list(range(len(texts)))
    own = Tokenizer.from_file(str(path)) if model.files.has_json else build_tokenizer(model.files)
    own.no_padding()
    own.enable_truncation(max_length_tokens, direction=model.truncation_side)
    known = {token.content for token in own.get_added_tokens_decoder().values()}
    added = [token.content for token in model.tokenizer.get_added_tokens_decoder().values()]
    if more := [piece for piece in added if piece not in known]:
        rows = [row for row in rows if not any(piece in texts[row] for piece in more)]
    return encode(own, [texts[row] for row in rows]), rows


def write_tokenizer_folder(model: ModelTokenizer, out: Path, max_length_tokens: int) -> None:
    """Write tokenizer.json, which cuts at the maximum length, and tokenizer_config.json.

    The class that tokenizer_config.json names keeps tokenizer.json as it is, in transformers 4
    and 5.
    """
    out.mkdir(parents=True, exist_ok=True)
    model.cut_at(max_length_tokens).save(str(out / TOKENIZER))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "truncation_side": model.truncation_side,
        "padding_side": "right",
        "model_max_length": max_length_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / SETTINGS, settings | dict(model.pieces))


def compare_tokenizers(own: ModelTokenizer, other: ModelTokenizer) -> tuple[str, str] | None:
    """The first part in which two tokenizers differ, and the other's; None if they are equal.

    The pieces around a text are compared as they come out, since files can define them in several
    ways.
    """
    known, theirs = (_parts(model) for model in (own, other))
    for part, value in known.items():
        if theirs[part] != value:
            return part, _difference(part, theirs[part], value)
    return None


def _parts(model: ModelTokenizer) -> dict[str, Any]:
    written = json.loads(model.tokenizer.to_str())
    for token in written["added_tokens"]:
        # These say how a text's letters become the piece, and concern only texts that hold them.
        for manner in ("lstrip", "rstrip", "normalized", "single_word", "special"):
            token.pop(manner)
    names = ("model", "added_tokens", "normalizer", "pre_tokenizer")
    parts = {name: written[name] for name in names}
    return parts | {"pieces around a text": model.tokenizer.encode("").tokens}


def _difference(part: str, theirs: Any, expected: Any) -> str:
    """The other's part in one line; for two vocabularies, the first token that differs."""
    if part == "model":
        words, known = (value.get("vocab") for value in (theirs, expected))
        if isinstance(words, dict) and isinstance(known, dict) and words != known:
            first = min(word for word, _ in words.items() ^ known.items())
            return f"{len(words)} tokens for its {len(known)}, the first unlike one {first!r}"
    return json.dumps(theirs, sort_keys=True)[:200]


# --- what stands beside the vocabulary -----------------------------------------------------------


def _add_tokens(files: TokenizerFiles, tokenizer: Tokenizer) -> None:
    """Add the tokens that added_tokens.json and the configuration list, in order of id.

    Raises DataError if a token gets another id than its file says.
    """
    for number, token, place in _list_added(files, tokenizer):
        known = tokenizer.token_to_id(token.content)
        if known is None or tokenizer.get_added_tokens_decoder().get(known) is None:
            add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
            add([token])
            known = tokenizer.token_to_id(token.content)
        if known != number:
            raise DataError(
                "a token has one id in one file and another id in another",
                where=f"{token.content!r} in {place}",
                expected=f"{known} ({files.places})",
                found=number,
            )


def _list_added(files: TokenizerFiles, tokenizer: Tokenizer) -> list[tuple[int, AddedToken, Path]]:
    """Tokens with their ids and files. A newer list limits the older file to known tokens.

    transformers does the same: beside the newer list it adds nothing of the older file.
    """
    listed: dict[int, tuple[AddedToken, Path]] = {}
    newer, older = files.settings.get("added_tokens_decoder"), files.folder / "added_tokens.json"
    if older.is_file():
        with refusing("not a list of added tokens", older):
            for content, number in read_object(older).items():
                if not newer or tokenizer.token_to_id(str(content)) is not None:
                    listed[int(number)] = AddedToken(str(content), normalized=False), older
    path = files.folder / SETTINGS
    with refusing("not a list of added tokens", f"{path}, added_tokens_decoder"):
        for number, fields in dict(newer or {}).items():
            known = {name: value for name, value in dict(fields).items() if name != "__type"}
            listed[int(number)] = AddedToken(**known), path
    return [(number, *listed[number]) for number in sorted(listed)]


def _name_pieces(files: TokenizerFiles, tokenizer: Tokenizer) -> dict[str, str]:
    """Special pieces by role: the named ones, else those of its class that the vocabulary has."""
    pieces: dict[str, str] = {}
    for role in (*PIECES, "bos_token", "eos_token"):
        usual = files.kind.pieces.get(role)
        if (named := name_piece(files, role)) is not None:
            pieces[role] = named
        elif usual is not None and tokenizer.token_to_id(usual) is not None:
            pieces[role] = usual
    return {
        role: piece
        for role, piece in pieces.items()
        if role in PIECES or tokenizer.token_to_id(piece) is not None
    }


def _register(files: TokenizerFiles, tokenizer: Tokenizer, pieces: Mapping[str, str]) -> None:
    """Register special pieces, so that texts which hold them give their ids, as in transformers.

    They are the vocabulary's pieces, and the ones beyond it that the configuration lists.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    takes_blank = files.kind in (BYTE_BPE, MPNET, XLM_ROBERTA)
    for role, piece in pieces.items():
        if piece not in known and tokenizer.token_to_id(piece) is not None:
            lstrip = takes_blank and role == "mask_token"
            tokenizer.add_special_tokens([AddedToken(piece, lstrip=lstrip, normalized=False)])
    rows = files.config.get("vocab_size")
    for token in _list_more(files):
        is_new = tokenizer.token_to_id(token.content) is None
        is_beyond = is_new and type(rows) is int and tokenizer.get_vocab_size() >= rows
        if token.content not in {*known, ""} and not is_beyond:  # no weight exists beyond the table
            tokenizer.add_special_tokens([token])


def _list_more(files: TokenizerFiles) -> list[AddedToken]:
    """Special pieces without a role: additional ones, which version 5 calls extra ones."""
    tokens = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = files.settings.get(name) or []
        with refusing("not a list of special pieces", f"{files.folder / SETTINGS}, {name}"):
            if not isinstance(listed, Mapping | list):
                raise TypeError(f"{listed!r}")
            for one in listed.values() if isinstance(listed, Mapping) else listed:
                fields = dict(one) if isinstance(one, Mapping) else {"content": one}
                fields = {key: value for key, value in fields.items() if key != "__type"}
                tokens.append(AddedToken(**{"normalized": False, **fields, "special": True}))
    return tokens


def _find_padding(files: TokenizerFiles, tokenizer: Tokenizer, piece: str | None) -> int:
    """The padding id. Raises DataError if there is none, or if positions count from another id.

    Padding is masked, so any id works in most families. RoBERTa, XLM-R and MPNet count positions
    from config.json's padding id.
    """
    said = files.config.get("pad_token_id")
    number = said if piece is None else tokenizer.token_to_id(piece)
    if type(number) is not int or tokenizer.id_to_token(number) is None:
        raise DataError(
            "the tokenizer has no padding token",
            where=files.folder / SETTINGS,
            expected="pad_token, a piece of the vocabulary",
            found=repr(piece if piece is not None else said),
        )
    counts = files.config.get("model_type") in _POSITIONS_AFTER_PADDING
    if counts and type(said) is int and said != number:
        raise DataError(
            "the model counts positions from another id than its tokenizer's padding token",
            where=files.folder / "config.json",
            expected=f"pad_token_id {number} ({piece})",
            found=said,
        )
    return number


def _require_rows(files: TokenizerFiles, tokenizer: Tokenizer) -> None:
    """Raise DataError for ids beyond the model's embedding table, and if there are no words."""
    rows, vocabulary = files.config.get("vocab_size"), tokenizer.get_vocab()
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if not vocabulary.keys() - set(special):
        raise DataError("a tokenizer that knows no word", where=files.places, found=special)
    tokens = max(vocabulary.values()) + 1
    if type(rows) is int and tokens > rows:
        raise DataError(
            "the tokenizer has more tokens than the model's table",
            where=files.folder / "config.json",
            expected=f"vocab_size of at least {tokens}",
            found=rows,
        )
