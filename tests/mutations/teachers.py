"""Good teachers: tiny classifiers of each family, tuned in a moment until they answer right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.mutations import vocabularies as made
from tests.mutations.task import LABELS, MAX_LENGTH, Rows, make_rows

_SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_SHORT: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_MODERN: dict[str, Any] = {
    "local_attention": 8,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "classifier_pooling": "mean",
}
_POSITIONS = 40
_WORSE = 0.98  # a teacher that answers fewer right is no good base


@dataclass(frozen=True)
class Form:
    """How a family's good teacher is made."""

    tokenizer: Callable[[], Tokenizer]
    config: dict[str, Any]
    tokenizer_class: str


@dataclass(frozen=True)
class Words:
    """What training needs of a tokenizer: ids of texts, how many there are, that of padding."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    size: int
    pad: int


FORMS: dict[str, Form] = {
    "bert": Form(lambda: made.wordpiece(made.BERT_SPECIAL, lower=True), {**_SIZE}, "BertTokenizer"),
    "distilbert": Form(
        lambda: made.wordpiece(made.BERT_SPECIAL, lower=False), _SHORT, "DistilBertTokenizer"
    ),
    "electra": Form(
        lambda: made.wordpiece(made.BERT_SPECIAL, lower=True),
        {**_SIZE, "embedding_size": 24},
        "ElectraTokenizer",
    ),
    "mpnet": Form(
        lambda: made.wordpiece(made.MPNET_SPECIAL, lower=True), {**_SIZE}, "MPNetTokenizer"
    ),
    "roberta": Form(lambda: made.byte_level(made.ROBERTA_SPECIAL), {**_SIZE}, "RobertaTokenizer"),
    "xlm-roberta": Form(
        lambda: made.unigram(made.ROBERTA_SPECIAL, "<s>", "</s>"),
        {**_SIZE},
        "XLMRobertaTokenizer",
    ),
    "deberta-v2": Form(
        lambda: made.unigram(made.DEBERTA_SPECIAL, "[CLS]", "[SEP]"),
        {**_SIZE, **_DEBERTA},
        "DebertaV2Tokenizer",
    ),
    "modernbert": Form(
        lambda: made.byte_level(made.MODERN_SPECIAL, modern=True),
        {**_SIZE, **_MODERN},
        "PreTrainedTokenizerFast",
    ),
}


def make_teacher(
    family: str, folder: Path, *, tokenizer: Tokenizer | None = None, left: bool = False
) -> Any:
    """Tune a teacher and save it as version 4 of transformers left such a folder; the model.

    `left`: texts are cut at their beginning, and their key words are at the end.
    """
    form = FORMS[family]
    tokenizer = tokenizer or form.tokenizer()
    model = tune(family, words_of(tokenizer, left=left), left=left)
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer, form.tokenizer_class, side="left" if left else None)
    return model


def words_of(tokenizer: Tokenizer, *, left: bool = False) -> Words:
    """A tokenizer's way with texts, cut as the task is."""
    cutter = Tokenizer.from_str(tokenizer.to_str())
    cutter.enable_truncation(MAX_LENGTH, direction="left" if left else "right")
    ids = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    pad = next(number for number in ids if number is not None)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in cutter.encode_batch(list(texts))]

    return Words(encode, tokenizer.get_vocab_size(), pad)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, kind: str, *, side: str | None) -> None:
    """tokenizer.json, the vocabulary in the family's own files, and two of configuration."""
    tokenizer.save(str(folder / "tokenizer.json"))
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, special = document["model"], _special_names(document)
    if model["type"] == "WordPiece":
        pieces = sorted(model["vocab"], key=model["vocab"].get)
        (folder / "vocab.txt").write_text("".join(f"{x}\n" for x in pieces), encoding="utf-8")
    elif model["type"] == "BPE" and kind == "RobertaTokenizer":
        _write_json(folder / "vocab.json", model["vocab"])
        merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    _write_json(folder / "special_tokens_map.json", special)
    settings: dict[str, Any] = {"tokenizer_class": kind, "model_max_length": 512, **special}
    if model["type"] == "WordPiece":
        lower = document["normalizer"]["lowercase"]
        settings |= {"do_lower_case": lower, "strip_accents": None, "tokenize_chinese_chars": True}
    if kind == "RobertaTokenizer":
        settings |= {"add_prefix_space": False, "trim_offsets": True, "errors": "replace"}
    if side is not None:
        settings["truncation_side"] = side
    _write_json(folder / "tokenizer_config.json", settings)


def _special_names(document: dict[str, Any]) -> dict[str, str]:
    names = [token["content"] for token in document["added_tokens"]]
    found: dict[str, str] = {}
    for role in ("pad", "unk", "mask", "cls", "sep"):
        mine = {"cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>")}.get(
            role, (f"[{role.upper()}]", f"<{role}>")
        )
        found[f"{role}_token"] = next(name for name in mine if name in names)
    if "<s>" in names:
        found |= {"bos_token": "<s>", "eos_token": "</s>"}
    return found


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def new_model(family: str, words: Words, *, seed: int = 0) -> Any:
    """A classifier that was not tuned yet."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    form = FORMS[family]
    config = AutoConfig.for_model(
        family,
        vocab_size=words.size,
        max_position_embeddings=_POSITIONS,
        pad_token_id=words.pad,
        initializer_range=0.15,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        problem_type="single_label_classification",
        **form.config,
    )
    torch.manual_seed(seed)
    kernel = "sdpa" if family not in ("mpnet", "deberta-v2") else "eager"
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=kernel)


def tune(family: str, words: Words, *, left: bool = False, seed: int = 0) -> Any:
    """Some hundred steps on texts that no table of the task has."""
    rows = make_rows(360, seed=100 + seed, left=left)
    ids = words.encode(rows.texts)
    model = new_model(family, words, seed=seed).eval()  # no dropout: few steps must do
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    random = torch.Generator().manual_seed(seed)
    for _ in range(16):
        for batch in torch.randperm(len(ids), generator=random).split(36):
            loss = model(
                **_padded([ids[i] for i in batch], model.config.pad_token_id),
                labels=torch.tensor([LABELS.index(rows.labels[i]) for i in batch]),
            ).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if measure(model, ids, rows) == 1.0:
            return model
    if measure(model, ids, rows) < _WORSE:
        raise AssertionError(f"the tiny {family} did not learn the task")
    return model


def measure(model: Any, ids: list[list[int]], rows: Rows) -> float:
    """Share of the texts that are answered right."""
    said = logits_of(model, ids).argmax(1).tolist()
    right = [LABELS[i] == label for i, label in zip(said, rows.labels, strict=True)]
    return sum(right) / len(right)


@torch.no_grad()
def logits_of(model: Any, ids: list[list[int]]) -> torch.Tensor:
    """Logits [N, C], all texts in one batch."""
    return model(**_padded(ids, model.config.pad_token_id or 0)).logits  # type: ignore[no-any-return]


def _padded(ids: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    longest = max(map(len, ids))
    rows = [[*one, *[pad] * (longest - len(one))] for one in ids]
    mask = [[1] * len(one) + [0] * (longest - len(one)) for one in ids]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
