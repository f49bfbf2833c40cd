"""Fields of config.json that a model would not be built from: refused by name, and only those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.activations import ACT2FN

from tasks.kd.encoders.files.architectures import FAMILIES
from tasks.kd.encoders.files.configurations import ACTIVATIONS, DECLARED, require_plain_config
from tasks.kd.encoders.files.folder import BASES, read_config
from tasks.kd.errors import DataError
from tests.makers.small_families import small

WHERE = Path("teacher/config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_declares_is_what_its_class_in_transformers_declares(family: str) -> None:
    assert DECLARED[family] == set(AutoConfig.for_model(family).to_dict())


def test_activations_are_those_of_transformers() -> None:
    assert set(ACT2FN) == ACTIVATIONS


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_of_weights_begin_as_in_transformers(family: str) -> None:
    assert small(family).base_model_prefix == BASES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_plain(family: str, tmp_path: Path) -> None:
    small(family).save_pretrained(tmp_path)
    assert read_config(tmp_path)["model_type"] == family


# Fields of files on the hub, as old and new versions of transformers wrote them.
HARMLESS: dict[str, dict[str, Any]] = {
    "bert": {
        "position_embedding_type": "absolute", "directionality": "bidi", "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3, "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform", "gradient_checkpointing": False,
        "output_past": True, "finetuning_task": "sst2", "_num_labels": 3, "num_labels": 3,
        "pruned_heads": {}, "torch_dtype": "float16", "temperature": 1.0, "num_beams": 1,
        "top_k": 50, "do_sample": False, "adapters": {"adapters": {}, "config_map": {}},
        "classifier_dropout": 0.1, "dataset": "mails", "quantization_config": None,
        "embedding_size": 32, "hidden_size": 32, "num_beam_groups": 1, "emb_size": 312,
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    },
    "distilbert": {"tie_weights_": True, "layer_norm_eps": 1e-12, "output_past": True},
    "modernbert": {
        "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "layer_norm_eps": 1e-5,
        "norm_eps": 1e-5, "global_attn_every_n_layers": 3, "position_embedding_type": "absolute",
        "reference_compile": False, "repad_logits_with_grad": False,
    },
    "deberta-v2": {
        "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 256,
        "attention_head_size": 64, "conv_kernel_size": 3, "conv_act": "gelu",
    },
    "xlm-roberta": {"output_past": True, "position_embedding_type": "absolute"},
}  # fmt: skip


@pytest.mark.parametrize("family", HARMLESS)
def test_real_files_pass(family: str) -> None:
    require_plain_config({"model_type": family, **HARMLESS[family]}, WHERE)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("roberta", "position_embedding_type", "relative_key_query"),
        ("electra", "position_embedding_type", "rotary"),
        ("bert", "is_decoder", True),
        ("roberta", "add_cross_attention", True),
        ("bert", "pruned_heads", {"0": [1]}),
        ("bert", "quantization_config", {"load_in_8bit": True}),
        ("bert", "auto_map", {"AutoModel": "modeling_x.Model"}),
        ("bert", "adapters", {"adapters": {"mails": "pfeiffer"}}),
        ("bert", "embedding_size", 16),
        ("bert", "attention_window", [256, 256]),
        ("bert", "norm_type", "rms"),
        ("roberta", "rope_theta", 10000.0),
        ("distilbert", "layer_norm_eps", 1e-5),
        ("modernbert", "layer_norm_eps", 1e-12),
        ("mpnet", "num_experts", 4),
    ],
)
def test_what_a_model_would_not_compute_is_refused_by_name(
    family: str, field: str, value: Any
) -> None:
    fields = {"model_type": family, "hidden_size": 32, field: value}
    with pytest.raises(DataError, match=rf"would not use .*: {field}: teacher/config.json"):
        require_plain_config(fields, WHERE)


@pytest.mark.parametrize("value", ["gelu_newest", 3, ["gelu"]])
def test_an_unknown_activation_is_refused_by_name(value: Any) -> None:
    with pytest.raises(DataError, match=r"activation .*: hidden_act: .*Expected one of gelu"):
        require_plain_config({"model_type": "bert", "hidden_act": value}, WHERE)


def test_a_byte_order_mark_is_refused_as_transformers_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps({"model_type": "bert"}))
    with pytest.raises(DataError, match=r"config\.json.*BOM"):
        read_config(tmp_path)
