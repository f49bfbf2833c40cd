"""A classifier of each supported family, small enough to build in every test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

VOCABULARY, WIDTH, HEADS = 60, 32, 4
LENGTHS = (3, 17, 9)
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 1,  # MPNet's code knows no other
    "max_position_embeddings": 40,
    "initializer_range": 0.3,  # large enough that attention is far from even
    "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}
_SIZE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
}
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "conv_kernel_size": 3,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**_COMMON, **_SIZE),
    "roberta": lambda: RobertaConfig(**_COMMON, **_SIZE),
    "xlm-roberta": lambda: XLMRobertaConfig(**_COMMON, **_SIZE),
    "distilbert": lambda: DistilBertConfig(
        **_COMMON, dim=WIDTH, n_layers=4, n_heads=HEADS, hidden_dim=48
    ),
    "electra": lambda: ElectraConfig(**_COMMON, **_SIZE, embedding_size=24),
    "mpnet": lambda: MPNetConfig(**_COMMON, **_SIZE),
    # A window of 2 tokens to either side; layers 1 and 4 are global.
    "modernbert": lambda: ModernBertConfig(
        **_COMMON,
        **_SIZE,
        local_attention=4,
        bos_token_id=2,
        cls_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
    ),
    "deberta-v2": lambda: DebertaV2Config(**_COMMON, **_SIZE, **_DEBERTA),
}


def small(family: str, **changes: Any) -> Any:
    """A classifier of random weights, norms and biases included, in eval mode."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # they start as ones and zeros, which would hide their loss
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [3, 17] of texts of 3, 17 and 9 tokens."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(5, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask_BT = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return ids_BT.masked_fill(~mask_BT, 1), mask_BT


def hidden_states(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> Any:
    """What transformers says."""
    with torch.no_grad():
        return model(
            input_ids=ids_BT, attention_mask=mask_BT.long(), output_hidden_states=True
        ).hidden_states


def texts(count: int = 12) -> list[Any]:
    """Token ids of texts of 3 tokens and more, each longer by one."""
    random = np.random.default_rng(0)
    return [random.integers(5, VOCABULARY, n).astype(np.int32) for n in range(3, 3 + count)]
