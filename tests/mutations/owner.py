"""What a teacher's owner sees: tokens and answers by `tokenizers` and `transformers` alone.

Nothing of the product is asked. The tokens are those of tokenizer.json, read as it stands by the
library that wrote it; its owner's version of transformers (4) reads it so as well, but for the
normalizer of BERT's classes, of which tokenizer_config.json has the last word: both are let count.
Without tokenizer.json they are what the vocabulary's own format asks for. The side on which long
texts are cut is tokenizer_config.json's, else the one in tokenizer.json, else the right one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers
from tokenizers import pre_tokenizers as cutters
from tokenizers.processors import RobertaProcessing, TemplateProcessing

Ids = list[list[int]]
_BERT_LIKE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")


def tokens_of(folder: Path, texts: Sequence[str], length: int) -> list[Ids]:
    """The token ids of each text, in every way that counts as the owner's."""
    config = _read(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        tokenizers = _views(folder / "tokenizer.json", config)
    else:
        tokenizers = [_from_vocabulary(folder, config)]
    return [_encode(one, texts, length, _side(folder, config)) for one in tokenizers]


def _encode(tokenizer: Tokenizer, texts: Sequence[str], length: int, side: str) -> Ids:
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, direction=side)
    return [one.ids for one in tokenizer.encode_batch(list(texts))]


def _views(file: Path, config: dict[str, Any]) -> list[Tokenizer]:
    """As the file says; and with what the configuration says of the same instead."""
    document = json.loads(file.read_bytes().decode("utf-8-sig"))
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    found = [Tokenizer.from_str(json.dumps(document))]
    found += [
        Tokenizer.from_str(json.dumps(document | x))
        for x in _said_otherwise(document, config, kind)
    ]
    if more := _named_special(config):
        found.append(Tokenizer.from_str(json.dumps(document)))
        found[-1].add_special_tokens(more)
    return found


def _named_special(config: dict[str, Any]) -> list[str]:
    """What the configuration calls special: version 4 adds each that the file does not have."""
    listed = config.get("additional_special_tokens", config.get("extra_special_tokens"))
    roles = [config.get(f"{role}_token") for role in ("pad", "unk", "cls", "sep", "mask")]
    named = [*(listed if isinstance(listed, list) else ()), *roles]
    return [token for token in named if isinstance(token, str) and token]


def _said_otherwise(
    document: dict[str, Any], config: dict[str, Any], kind: str
) -> Iterator[dict[str, Any]]:
    """Parts of tokenizer.json, changed as the classes of version 4 do by the configuration."""
    normalizer = document.get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer" and kind in _BERT_LIKE:
        fields = {
            "lowercase": config.get("do_lower_case", normalizer.get("lowercase")),
            "strip_accents": config.get("strip_accents", normalizer.get("strip_accents")),
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        }
        if fields != {name: normalizer.get(name) for name in fields}:
            yield {"normalizer": normalizer | fields}
    cutter = document.get("pre_tokenizer") or {}
    space = config.get("add_prefix_space", cutter.get("add_prefix_space"))
    if cutter.get("type") == "ByteLevel" and space != cutter.get("add_prefix_space"):
        yield {"pre_tokenizer": cutter | {"add_prefix_space": space}}


def _side(folder: Path, config: dict[str, Any]) -> str:
    if config.get("truncation_side") in ("left", "right"):
        return str(config["truncation_side"])
    try:
        stored = _read(folder / "tokenizer.json").get("truncation") or {}
    except (ValueError, AttributeError):
        return "right"
    return str(stored.get("direction", "Right")).lower()


def _from_vocabulary(folder: Path, config: dict[str, Any]) -> Tokenizer:
    if (folder / "vocab.txt").is_file():
        return _wordpiece(folder, config)
    if (folder / "vocab.json").is_file():
        return _byte_level(folder, config)
    raise FileNotFoundError("no vocabulary")


def _wordpiece(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """vocab.txt as BERT reads it; whether words are lower-cased is seen in them if not said."""
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    pieces = [line for line in lines if line]
    ids = {piece: i for i, piece in enumerate(pieces)}
    special = [piece for piece in pieces if piece[0] + piece[-1] in ("[]", "<>") and piece[1:]]
    cased = any(piece != piece.lower() for piece in pieces if piece not in special)
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", not cased),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = cutters.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    begin, end = ("<s>", "</s>") if "<s>" in ids else ("[CLS]", "[SEP]")
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, ids[begin]), (end, ids[end])]
    )
    return tokenizer


def _byte_level(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """vocab.json and merges.txt as RoBERTa reads them."""
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(model)
    space = bool(config.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = cutters.ByteLevel(add_prefix_space=space)
    ids = _read(folder / "vocab.json")
    special = [name for name in ("<s>", "<pad>", "</s>", "<unk>") if name in ids]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    return tokenizer


def model_of(folder: Path) -> Any:
    """The classifier of a folder, every weight of the file in its place, or an error."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    held = {name: value.float() for name, value in _weights(folder).items()}
    held = {name: value for name, value in held.items() if not name.endswith("position_ids")}
    model.load_state_dict(held, strict=False)
    missing = set(dict(model.named_parameters())) - set(held)
    unused = set(held) - set(model.state_dict())
    if missing or unused:
        raise ValueError(f"weights that do not fit: {sorted(missing | unused)[:3]}")
    return model.eval()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return load_file(single)
    shards = sorted(set(_read(index)["weight_map"].values()))
    return {name: value for shard in shards for name, value in load_file(folder / shard).items()}


def _read(path: Path) -> Any:
    """A JSON file; nothing of one that is not there or can't be read."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
