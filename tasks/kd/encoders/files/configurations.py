"""A model's config.json: refusing fields that the model would not be built from.

transformers keeps a field that a family's class does not know, and computes without it. The file
alone does not tell whether such a field matters. The rule here:

- A field that the family's class declares or reads may hold anything (`DECLARED`, which a test
  compares with transformers), except a few that ask for another kind of model (`_FIXED`).
- An unknown field is refused if its name holds a word that describes a forward pass (`_LIVE`:
  position, attention, norm, ...), unless its value is empty (null, false, zero), it is known to
  have no effect (`_INERT`), or it says what the class does anyway (`_AS_BUILT`). So real files
  pass, with their generation settings, names of data sets and fields of old versions. Files of
  another architecture don't.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.kd.encoders.files.architectures import require_family
from tasks.kd.errors import DataError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMMON = _words(
    "_name_or_path architectures bos_token_id chunk_size_feed_forward dtype eos_token_id id2label "
    "is_encoder_decoder label2id max_position_embeddings model_type output_attentions "
    "output_hidden_states pad_token_id problem_type return_dict tie_word_embeddings "
    "transformers_version vocab_size initializer_range"
)
_SIZES = _words(
    "hidden_size intermediate_size num_attention_heads num_hidden_layers "
    "attention_probs_dropout_prob hidden_act hidden_dropout_prob layer_norm_eps"
)
_BERT = (
    _COMMON
    | _SIZES
    | _words("add_cross_attention classifier_dropout is_decoder type_vocab_size use_cache")
)
# The fields that each family's configuration class declares.
DECLARED: Mapping[str, frozenset[str]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": _COMMON
    | _words(
        "activation attention_dropout dim dropout hidden_dim n_heads n_layers qa_dropout "
        "seq_classif_dropout sinusoidal_pos_embds"
    ),
    "electra": _BERT
    | _words(
        "embedding_size summary_activation summary_last_dropout summary_type summary_use_proj"
    ),
    "mpnet": _COMMON | _SIZES | {"relative_attention_num_buckets"},
    "modernbert": _COMMON
    | _words(
        "attention_bias attention_dropout classifier_activation classifier_bias "
        "classifier_dropout classifier_pooling cls_token_id decoder_bias deterministic_flash_attn "
        "embedding_dropout hidden_activation hidden_size initializer_cutoff_factor "
        "intermediate_size layer_types local_attention mlp_bias mlp_dropout norm_bias norm_eps "
        "num_attention_heads num_hidden_layers rope_parameters sep_token_id "
        "sparse_pred_ignore_index sparse_prediction"
    ),
    "deberta-v2": _COMMON
    | _SIZES
    | _words(
        "legacy max_relative_positions pooler_dropout pooler_hidden_act pooler_hidden_size "
        "pos_att_type position_biased_input relative_attention type_vocab_size"
    ),
}
# The fields that each class reads without declaring them.
_READ: Mapping[str, frozenset[str]] = {
    "distilbert": frozenset(("hidden_size", "num_attention_heads", "num_hidden_layers")),
    "modernbert": _words(
        "global_attn_every_n_layers global_rope_theta local_rope_theta rope_scaling rope_theta"
    ),
    "deberta-v2": _words(
        "attention_head_size cls_dropout conv_act conv_groups conv_kernel_size norm_rel_ebd "
        "position_buckets share_att_key"
    ),
}
# Fields that any class takes, with the only values that give an encoder of plain texts.
_FIXED: Mapping[str, tuple[object, ...]] = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "quantization_config": (None, {}),
    "auto_map": (None, {}),
}
_INERT = _words(
    "attn_implementation cross_attention_hidden_size decoder_start_token_id emb_size "
    "encoder_no_repeat_ngram_size gradient_checkpointing num_beam_groups output_past output_scores "
    "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
    "pooler_type reference_compile repad_logits_with_grad sbert_ce_default_activation_function "
    "temperature tie_encoder_decoder tie_weights_ use_bfloat16 num_labels"
)
# Values that describe what each family computes anyway.
_AS_BUILT: Mapping[tuple[str, str], tuple[object, ...]] = {
    ("distilbert", "layer_norm_eps"): (1e-12,),
    ("distilbert", "hidden_act"): ("gelu",),
    ("mpnet", "position_embedding_type"): ("absolute", "relative"),
}
_ANY_FAMILY = {"position_embedding_type": ("absolute",), "attention_type": ("original_full",)}
_LIVE = _words(
    "act activation adapter adapters alibi attention attn att bias conv cross decoder embd "
    "embedding embeddings emb expert experts ffn flash fusion gate gated glu group groups head "
    "heads hidden kernel layer layers local logit logits lora mixture mlp moe norm norms "
    "normalization normalize pool pooler pooling position positional positions proj projection "
    "prune pruned qkv quant quantization quantized rank relative residual rms rope rotary scale "
    "scaling share shared skip softmax sparse theta window width"
)
ACTIVATIONS = _words(
    "gelu gelu_10 gelu_accurate gelu_fast gelu_new gelu_python gelu_python_tanh gelu_pytorch_tanh "
    "hardswish laplace leaky_relu linear mish prelu quick_gelu relu relu2 relu6 sigmoid silu "
    "sqrtsoftplus swish tanh xielu"
)
_ACTIVATION_FIELDS = (
    *("hidden_act", "activation", "hidden_activation", "pooler_hidden_act"),
    *("classifier_activation", "conv_act"),
)


def require_plain_config(fields: Mapping[str, Any], where: Path) -> None:
    """Raise DataError for a field that the model would not use as it stands, by its name.

    A configuration of an unknown family raises DataError too.
    """
    family = fields.get("model_type")
    if not isinstance(family, str):
        raise DataError(
            "not the configuration of a model",
            where=where,
            expected="a name as model_type",
            found=f"model_type {json.dumps(family)[:80]}",
        )
    require_family(family, where=where)
    for name, allowed in _FIXED.items():
        if name in fields and fields[name] not in allowed:
            raise _not_used(name, fields[name], where)
    for name in _ACTIVATION_FIELDS:
        value = fields.get(name)
        is_read = name in DECLARED[family] | _READ.get(family, frozenset())
        if is_read and value is not None and str(value) not in ACTIVATIONS:
            raise DataError(
                f"an activation that is not known: {name}",
                where=where,
                expected=f"one of {', '.join(sorted(ACTIVATIONS))}",
                found=json.dumps(value)[:80],
            )
    for name, value in fields.items():
        if _would_be_lost(family, name, value, fields):
            raise _not_used(name, value, where)


def _would_be_lost(family: str, name: str, value: Any, fields: Mapping[str, Any]) -> bool:
    known = DECLARED[family] | _READ.get(family, frozenset()) | _INERT
    if name in known or name in _FIXED or name.startswith(("_", "summary_")) or "drop" in name:
        return False
    if not _LIVE & set(re.split(r"[_\W\d]+", name.lower())) or _is_empty(value):
        return False
    if value in (*_AS_BUILT.get((family, name), ()), *_ANY_FAMILY.get(name, ())):
        return False
    if family == "modernbert" and name == "layer_norm_eps":  # its own files say norm_eps twice
        return bool(value != fields.get("norm_eps", 1e-5))
    return not (name == "embedding_size" and value == fields.get("hidden_size"))


def _is_empty(value: Any) -> bool:
    """Whether a value is null, false, zero, "none" or a container of such values alone."""
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    if isinstance(value, list):
        return all(map(_is_empty, value))
    return not value or value == "none"


def _not_used(name: str, value: Any, where: Path) -> DataError:
    return DataError(
        f"the model would not use what its configuration says: {name}",
        where=where,
        expected=f"no {name}, or one that asks for nothing else than transformers computes",
        found=json.dumps(value)[:80],
        advice="A model that was trained with it would answer otherwise here. If it changes "
        f"nothing in what yours computes, take {name} out of config.json.",
    )
