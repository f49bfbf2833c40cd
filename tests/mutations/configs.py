"""Mutations of a teacher's config.json: each field removed, typed otherwise, set to what is odd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.mutations.cases import Case, Change, Expected, Mutation, either, fatal, harmless
from tests.mutations.task import LABELS

ODD: dict[str, Any] = {
    "null": None,
    "a text": "twelve",
    "an empty text": "",
    "a list": [1, 2],
    "an object": {"a": 1},
    "true": True,
    "zero": 0,
    "minus one": -1,
    "a fraction": 0.5,
    "a huge number": 10**12,
}
# What names things, or is for training alone: without it the figures are the same.
IDLE = (
    *("architectures", "dtype", "transformers_version", "initializer_range", "label2id"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "problem_type", "classifier_dropout"),
)
FIELDS = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size"),
    *("layer_norm_eps", "pad_token_id", "id2label", "bos_token_id", "eos_token_id", "use_cache"),
    *("tie_word_embeddings", "is_decoder", "add_cross_attention", "dim", "n_layers", "n_heads"),
    *("hidden_dim", "embedding_size", "position_buckets", "relative_attention", "pos_att_type"),
    *("norm_rel_ebd", "local_attention", "classifier_pooling", "global_attn_every_n_layers"),
    *("layer_types", "relative_attention_num_buckets", "share_att_key", "pooler_hidden_size"),
    *("summary_type", "activation", "hidden_activation", "norm_eps", "position_biased_input"),
    *IDLE,
)
MORE: dict[str, tuple[Any, bool]] = {  # a field and whether it changes nothing
    "_name_or_path": ("somebody/model", True),
    "finetuning_task": ("triage", True),
    "torch_dtype": ("float32", True),
    "gradient_checkpointing": (False, True),
    "output_past": (True, True),
    "my_own_note": ({"by": "me"}, True),
    "output_hidden_states": (True, False),
    "output_attentions": (True, False),
    "return_dict": (False, False),
    "use_return_dict": (False, False),
    "torchscript": (True, False),
    "auto_map": ({"AutoModelForSequenceClassification": "modeling_custom.Custom"}, False),
    "quantization_config": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, False),
    "pruned_heads": ({"0": [0]}, False),
    "position_embedding_type": ("relative_key_query", False),
    "adapters": ({"adapters": {"a": "b"}, "config_map": {}}, False),
    "attn_implementation": ("flash_attention_2", False),
    "_attn_implementation": ("flash_attention_2", False),
    "chunk_size_feed_forward": (3, False),
    "num_labels": (7, False),
    "is_encoder_decoder": (True, False),
    "rope_scaling": ({"type": "linear", "factor": 2.0}, False),
}


def mutations() -> Iterator[Mutation]:
    for field in FIELDS:
        yield Mutation("config.json: field removed", field, _removing(field))
        for what in ODD:
            title = f"{field} is {what}"
            yield Mutation("config.json: field typed otherwise", title, _setting(field, what))
    for field in MORE:
        yield Mutation("config.json: field added", field, _adding(field))
    for value in ("regression", "multi_label_classification", "ranking"):
        yield Mutation("config.json: problem type", value, _problem(value))
    for family in ("gpt2", "t5", "camembert", "bert", "BERT", "albert", "xlm-roberta", "roberta"):
        yield Mutation("config.json: another family", family, _renaming(family))
    for name, change in _SHAPES.items():
        yield Mutation("config.json: another shape", name, _reshaping(change))


def _removing(field: str) -> Change:
    def apply(case: Case) -> Expected:
        config = case.read_json("config.json")
        was_there = config.pop(field, None) is not None
        case.write_json("config.json", config)
        if field in IDLE or not was_there:
            return harmless()
        if field == "id2label":  # which no other place says as well, but for label2id
            return either("config.json", "label")
        if field == "model_type":
            return fatal(r"config\.json")
        return either("config", "train_teacher", field, weights="folder")

    return apply


def _setting(field: str, what: str) -> Change:
    def apply(case: Case) -> Expected:
        config = case.read_json("config.json")
        if config.get(field, ()) == ODD[what]:
            return harmless()
        case.change_json("config.json", **{field: ODD[what]})
        if field in IDLE:
            return either(r"config", field)
        if field == "id2label":
            return fatal("config.json", "label") if ODD[what] is not None else either("label")
        if field == "model_type":
            return fatal(r"config")
        return either("config", "train_teacher", "max_length_tokens", field, weights="folder")

    return apply


def _adding(field: str) -> Change:
    value, idle = MORE[field]

    def apply(case: Case) -> Expected:
        if field in case.read_json("config.json"):
            return harmless()
        case.change_json("config.json", **{field: value})
        return harmless() if idle else either("config", field)

    return apply


def _problem(value: str) -> Change:
    def apply(case: Case) -> Expected:
        case.change_json("config.json", problem_type=value)
        return fatal("config.json", "problem_type")

    return apply


def _renaming(family: str) -> Change:
    def apply(case: Case) -> Expected:
        case.change_json("config.json", model_type=family)
        if family == case.family:
            return harmless()
        return either("config", "weights", "teacher", weights="folder")

    return apply


_SHAPES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a layer less": lambda c: {_layers(c): c[_layers(c)] - 1},
    "a layer more": lambda c: {_layers(c): c[_layers(c)] + 1},
    "twice the heads": lambda c: {_heads(c): 2 * c[_heads(c)]},
    "three heads": lambda c: {_heads(c): 3},
    "half the positions": lambda c: {"max_position_embeddings": 20},
    "twice the positions": lambda c: {"max_position_embeddings": 80},
    "eight positions": lambda c: {"max_position_embeddings": 8},
    "a word more": lambda c: {"vocab_size": c["vocab_size"] + 1},
    "a word less": lambda c: {"vocab_size": c["vocab_size"] - 1},
    "relu": lambda c: {"hidden_act": "relu"},
    "an unknown activation": lambda c: {"hidden_act": "gelu_of_mine"},
    "a coarse epsilon": lambda c: {"layer_norm_eps": 0.1},
    "padding is the unknown token": lambda c: {"pad_token_id": 3},
    "a label more": lambda c: {"id2label": {str(i): x for i, x in enumerate([*LABELS, "x"])}},
    "a label less": lambda c: {"id2label": {str(i): x for i, x in enumerate(LABELS[:2])}},
}


def _layers(config: dict[str, Any]) -> str:
    return "n_layers" if "n_layers" in config else "num_hidden_layers"


def _heads(config: dict[str, Any]) -> str:
    return "n_heads" if "n_heads" in config else "num_attention_heads"


def _reshaping(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def apply(case: Case) -> Expected:
        case.change_json("config.json", **change(case.read_json("config.json")))
        says = ("config", "train_teacher", "weights", "label", "max_length_tokens")
        return either(*says, weights="folder")

    return apply
