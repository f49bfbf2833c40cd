"""The tokenizer of a model folder, found by file names, first bytes and small JSON files.

That is cheap enough for `stillhouse check`. A folder's tokenizer is its tokenizer.json. Without
it, the tokenizer is built from the vocabulary files that its class reads (`vocabularies.py`).
Any other folder is refused here, with advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.kd.errors import DataError
from tasks.kd.file_contents import read_object, require_content

TOKENIZER, SETTINGS, CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
SIDES = ("left", "right")
# The names of tokenizer_config.json and special_tokens_map.json.
PIECES = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
_PLAIN = "PreTrainedTokenizerFast"

# The tokenizers of transformers 5 that exist in Python alone: nothing else makes their tokens.
SLOW = frozenset(
    {
        "BartphoTokenizer", "BertGenerationTokenizer", "BertJapaneseTokenizer",
        "BertweetTokenizer", "BioGptTokenizer", "BlenderbotSmallTokenizer", "ByT5Tokenizer",
        "CTRLTokenizer", "CanineTokenizer", "ClvpTokenizer", "CpmAntTokenizer", "CpmTokenizer",
        "DiaTokenizer", "EsmTokenizer", "FSMTTokenizer", "FlaubertTokenizer",
        "GPTNeoXJapaneseTokenizer", "GPTSw3Tokenizer", "M2M100Tokenizer", "MarianTokenizer",
        "MgpstrTokenizer", "MyT5Tokenizer", "PLBartTokenizer", "PerceiverTokenizer",
        "PhobertTokenizer", "ProphetNetTokenizer", "RagTokenizer", "RoCBertTokenizer",
        "SiglipTokenizer", "Speech2TextTokenizer", "SpeechT5Tokenizer", "TapasTokenizer",
        "VitsTokenizer", "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer", "XLMTokenizer",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a tokenizer class of transformers reads if there is no tokenizer.json."""

    files: tuple[str, ...] = ()
    pieces: Mapping[str, str] = field(default_factory=dict)  # unless the configuration names others


_BERT_PIECES = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
_ROBERTA_PIECES = {
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
PLAIN = Kind()
WORDPIECE = Kind(("vocab.txt",), _BERT_PIECES)
MPNET = Kind(("vocab.txt",), _ROBERTA_PIECES | {"unk_token": "[UNK]"})
BYTE_BPE = Kind(("vocab.json", "merges.txt"), _ROBERTA_PIECES)
XLM_ROBERTA = Kind(("sentencepiece.bpe.model",), _ROBERTA_PIECES)
DEBERTA = Kind(("spm.model",), _BERT_PIECES)
_KINDS = {
    "BertTokenizer": WORDPIECE,
    "DistilBertTokenizer": WORDPIECE,
    "ElectraTokenizer": WORDPIECE,
    "MPNetTokenizer": MPNET,
    "RobertaTokenizer": BYTE_BPE,
    "XLMRobertaTokenizer": XLM_ROBERTA,
    "DebertaV2Tokenizer": DEBERTA,
}
# The class that transformers uses for a family if no file names one.
_CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
}


@dataclass(frozen=True)
class TokenizerFiles:
    """A model folder's tokenizer, as its files describe it."""

    folder: Path
    config: Mapping[str, Any]
    settings: Mapping[str, Any]  # tokenizer_config.json's, then special_tokens_map.json's
    tokenizer_class: str

    @property
    def kind(self) -> Kind:
        """The class's files and special pieces."""
        return _KINDS.get(self.tokenizer_class, PLAIN)

    @property
    def has_json(self) -> bool:
        """Whether there is a tokenizer.json, which then decides."""
        return (self.folder / TOKENIZER).is_file()

    @property
    def places(self) -> str:
        """The files that define the tokenizer, for a message."""
        names = (TOKENIZER,) if self.has_json else self.kind.files
        return ", ".join(str(self.folder / name) for name in names)


def find_tokenizer(folder: Path) -> TokenizerFiles:
    """The folder's tokenizer, as its files describe it.

    Raises DataError if there is none, if its files are cut or hold something else, and if only the
    code of its class can make its tokens.
    """
    settings = {**_read(folder, "special_tokens_map.json"), **_read(folder, SETTINGS)}
    config = _read(folder, CONFIG)
    files = TokenizerFiles(folder, config, settings, _name_class(folder, config, settings))
    _require_no_code(files)
    if files.has_json:
        _require_whole(folder / TOKENIZER)
    else:
        _require_vocabulary(files)
    side = settings.get("truncation_side")
    if side is not None and side not in SIDES:
        raise DataError(
            "a tokenizer can't cut on that side",
            where=f"{folder / SETTINGS}, truncation_side",
            expected=" or ".join(SIDES),
            found=repr(side),
        )
    return files


def name_piece(files: TokenizerFiles, role: str) -> str | None:
    """The special piece that the configuration names for a role; None if it names none."""
    value = files.settings.get(role)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise DataError(
            "a special piece is no text",
            where=f"{files.folder / SETTINGS}, {role}",
            expected="a text, or an object with its content",
            found=repr(files.settings[role])[:60],
        )
    return value


def _read(folder: Path, name: str) -> dict[str, Any]:
    """The object in a small JSON file; empty if there is no such file."""
    path = folder / name
    return read_object(path) if path.is_file() else {}


def _name_class(folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> str:
    """The tokenizer's class, as transformers picks it, without the suffix `Fast`."""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if named is None:
        return _CLASSES.get(str(config.get("model_type")), _PLAIN)
    if not isinstance(named, str):
        raise DataError(
            "the tokenizer's class is no name",
            where=f"{folder / SETTINGS}, tokenizer_class",
            found=repr(named)[:60],
        )
    return named if named == _PLAIN else named.removesuffix("Fast")


def _require_no_code(files: TokenizerFiles) -> None:
    """Raise DataError for a tokenizer that is a program rather than a file."""
    folder, settings, named = files.folder, files.settings, files.tokenizer_class
    splitter = settings.get("word_tokenizer_type")
    codes = (folder / "bpe.codes").is_file() and not files.has_json
    if settings.get("auto_map"):
        reason = "auto_map: code of its own, which is never run"
    elif splitter not in (None, "basic"):
        reason = f"word_tokenizer_type {splitter!r}: words are split by that program"
    elif named in SLOW:
        reason = f"tokenizer_class {named}, which is Python alone"
    elif codes:
        reason = "bpe.codes (as BERTweet and PhoBERT have), which Python alone reads"
    else:
        return
    raise DataError(
        "this kind of tokenizer can't be served: it is no file that the tokenizers library reads",
        where=folder,
        expected=TOKENIZER,
        found=reason,
        advice=_how_to_convert(files),
    )


def _how_to_convert(files: TokenizerFiles) -> str:
    if files.has_json:
        return (
            f"If the teacher was trained with the tokens of its {TOKENIZER}, name tokenizer_class "
            f"{_PLAIN} in {SETTINGS} and leave out auto_map and word_tokenizer_type."
        )
    if files.tokenizer_class == "BertJapaneseTokenizer" or "word_tokenizer_type" in files.settings:
        return (
            "Split the texts into words beforehand, with the same program, and save "
            "BertTokenizerFast('vocab.txt', do_lower_case=False, tokenize_chinese_chars=False) "
            "beside the weights; or take a teacher that needs no such program."
        )
    return (
        f"Convert its vocabulary to a {TOKENIZER} (tokenizers.models.BPE of its pieces and merges, "
        f"with the tweets' own spellings replaced beforehand), name tokenizer_class {_PLAIN}, and "
        "compare the ids with the old ones; or take a teacher with a fast tokenizer."
    )


def _require_vocabulary(files: TokenizerFiles) -> None:
    """Raise DataError unless its class's vocabulary files exist and can be read here."""
    folder, wanted = files.folder, files.kind.files
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing or not wanted:
        parts = ("vocab", "merges", "spiece", "spm.", "sentencepiece", "bpe", "tokenizer")
        near = sorted(p.name for p in folder.iterdir() if p.name.startswith(parts))
        beside = f" or {' and '.join(wanted)} ({files.tokenizer_class})" if wanted else ""
        raise DataError(
            "no tokenizer with the model",
            where=folder,
            expected=TOKENIZER + beside,
            found=", ".join(near) or "neither",
            advice=f"Put the {TOKENIZER} there that the model was trained with, as "
            "AutoTokenizer.from_pretrained(<what it was trained from>).save_pretrained(<folder>) "
            "writes it.",
        )
    for name in wanted:
        require_content(folder / name)
        if name.endswith(".model") and find_spec("sentencepiece") is None:
            raise DataError(
                f"the tokenizer needs sentencepiece, since there is no {TOKENIZER}",
                where=folder / name,
                mend="pip install 'stillhouse[sentencepiece]'",
            )


def _require_whole(path: Path) -> None:
    """Raise DataError unless the file's first and last bytes are those of a JSON object."""
    require_content(path)
    with path.open("rb") as file:
        first = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        file.seek(max(0, path.stat().st_size - 64))
        last = file.read().rstrip()[-1:]
    if (first, last) != (b"{", b"}"):
        raise DataError(
            "the tokenizer's file is cut, or is no JSON object",
            where=path,
            expected="{ first and } last",
            found=f"{path.stat().st_size} bytes from {first!r} to {last!r}",
        )
