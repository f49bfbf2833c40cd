"""Mutations of tokenizer_config.json and special_tokens_map.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.mutations.cases import Case, Change, Expected, Mutation, either, harmless
from tests.mutations.configs import ODD

FILE, MAP = "tokenizer_config.json", "special_tokens_map.json"
SAYS = ("tokenizer", "pad", "trunc")
FIELDS = (
    *("tokenizer_class", "do_lower_case", "model_max_length", "strip_accents", "pad_token"),
    *("unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token"),
    *("tokenize_chinese_chars", "add_prefix_space", "trim_offsets", "truncation_side"),
    *("padding_side", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"),
)
CLASSES = (
    *("BertTokenizer", "BertTokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast"),
    *("DistilBertTokenizerFast", "ElectraTokenizerFast", "MPNetTokenizerFast", "AlbertTokenizer"),
    *("XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "DebertaV2Tokenizer", "DebertaTokenizer"),
    *("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer", "CamembertTokenizer"),
    *("BertJapaneseTokenizer", "BertweetTokenizer", "T5Tokenizer", "GPT2Tokenizer", "MyTokenizer"),
)
# What does not decide a text's tokens, so that the figures are the good ones.
IDLE_FIELDS = (
    *("model_max_length", "padding_side", "trim_offsets", "mask_token", "bos_token"),
    *("cls_token", "sep_token", "eos_token", "unk_token"),
)
IDLE: dict[str, Any] = {
    "name_or_path": "somebody/model",
    "special_tokens_map_file": None,
    "use_fast": True,
    "tokenizer_file": None,
    "clean_up_tokenization_spaces": True,
    "chat_template": "{{ messages }}",
    "max_len": 512,
    "full_tokenizer_file": None,
    "do_basic_tokenize": True,
    "never_split": None,
    "is_local": True,
    "backend": "tokenizers",
    "split_special_tokens": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "padding_side": "left",
    "stride": 0,
    "max_length": 8,
    "truncation_strategy": "longest_first",
    "pad_to_multiple_of": 8,
    "processor_class": "Mine",
}
SET: dict[str, Any] = {
    "truncation_side": "left",
    "truncation_side ": "up",  # the blank sets it apart from the other
    "padding_side": "up",
    "do_lower_case": True,
    "do_lower_case ": False,
    "strip_accents": True,
    "strip_accents ": False,
    "tokenize_chinese_chars": False,
    "add_prefix_space": True,
    "model_max_length": 8,
    "model_max_length ": 10**30,
    "use_fast": False,
    "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]},
    "split_special_tokens": True,
    "do_basic_tokenize": False,
    "add_bos_token": False,
    "add_eos_token": False,
    "keep_accents": False,
    "remove_space": False,
    "vocab_type": "bpe",
    "legacy": True,
    "sp_model_kwargs": {"enable_sampling": True},
    "word_tokenizer_type": "mecab",
    "from_slow": True,
    "extra_special_tokens": ["<url>"],
    "extra_special_tokens ": {"url_token": "<url>"},
    "additional_special_tokens": ["<url>", "<user>"],
    "additional_special_tokens ": ["Hello"],
}


def mutations() -> Iterator[Mutation]:
    for field in FIELDS:
        yield Mutation("tokenizer_config.json: field removed", field, _removing(field))
        for what in ODD:
            title = f"{field} is {what}"
            yield Mutation("tokenizer_config.json: field typed otherwise", title, _odd(field, what))
    for field in IDLE:
        yield Mutation("tokenizer_config.json: idle field", field, _idle(field))
    for field, value in SET.items():
        title = f"{field.strip()} is {value}"
        yield Mutation("tokenizer_config.json: field set", title, _setting(field.strip(), value))
    for name in CLASSES:
        yield Mutation("tokenizer_config.json: class", name, _setting("tokenizer_class", name))
    for role in ("pad", "unk", "cls", "sep", "mask"):
        for what in _SPECIAL:
            for file in (FILE, MAP):
                title = f"{role}_token {what} in {file}"
                yield Mutation("special tokens", title, _special(file, role, what))


def _removing(field: str) -> Change:
    def apply(case: Case) -> Expected:
        settings = case.read_json(FILE)
        was_there = settings.pop(field, None) is not None
        case.write_json(FILE, settings)
        if not was_there or field in IDLE_FIELDS:
            return harmless()
        return either(*SAYS, tokens="folder")

    return apply


def _odd(field: str, what: str) -> Change:
    def apply(case: Case) -> Expected:
        case.change_json(FILE, **{field: ODD[what]})
        return either(*SAYS, field)

    return apply


def _idle(field: str) -> Change:
    def apply(case: Case) -> Expected:
        case.change_json(FILE, **{field: IDLE[field]})
        return harmless()

    return apply


def _setting(field: str, value: Any) -> Change:
    def apply(case: Case) -> Expected:
        before = case.read_json(FILE).get(field)
        case.change_json(FILE, **{field: value})
        if before == value:
            return harmless()
        return either(*SAYS, "class", field, tokens="folder")

    return apply


_SPECIAL: dict[str, Callable[[str], Any]] = {
    "as an object": lambda name: {
        "content": name,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    },
    "as an object of its content": lambda name: {"content": name},
    "as an AddedToken of version 4": lambda name: {"__type": "AddedToken", "content": name},
    "that is not in the vocabulary": lambda name: "<none>",
    "that is a word": lambda name: "Hello",
    "empty": lambda name: "",
    "null": lambda name: None,
    "a number": lambda name: 0,
    "a list": lambda name: [name],
}


def _special(file: str, role: str, what: str) -> Change:
    def apply(case: Case) -> Expected:
        field = f"{role}_token"
        name = case.read_json(FILE)[field]
        case.change_json(file, **{field: _SPECIAL[what](name)})
        return either(*SAYS, file.replace(".", r"\."), field)

    return apply
