"""The families of encoders: their modules' paths, their field names, the levels they support.

This is plain data: a recipe is checked against it without loading torch or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.kd.errors import DataError

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Family:
    """Paths of a family's modules, below the base model or, within a layer, below that layer."""

    layers: str
    projections: tuple[str, ...]  # query, key, value; one path if fused; empty if unsupported
    norm: str | None = None  # applied by a layer before its projections
    embeddings: tuple[str, ...] = (EMBEDDINGS,)  # the last one that exists gives hidden layer 0
    each_layer: tuple[str, ...] = ()  # shared by all layers
    first_layer: tuple[str, ...] = ()
    last_layer: tuple[str, ...] = ()
    sdpa: bool = True
    fields: Mapping[str, str] = field(default_factory=dict)  # names in its configuration


@dataclass(frozen=True)
class Shape:
    """An encoder's size; the fields of a recipe's student."""

    layers: int
    hidden_size: int
    attention_heads: int
    intermediate_size: int


# Names of these sizes in most families' configurations.
_SIZES = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
_BERT = Family(
    layers="encoder.layer",
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
)
BY_NAME = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Family(
        layers="transformer.layer",
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        fields={
            "num_hidden_layers": "n_layers",
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
        },
    ),
    "electra": Family(
        layers="encoder.layer",
        projections=_BERT.projections,
        embeddings=(EMBEDDINGS, "embeddings_project"),
    ),
    "mpnet": Family(
        layers="encoder.layer",
        projections=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        each_layer=("encoder.relative_attention_bias",),
        sdpa=False,
    ),
    "modernbert": Family(
        layers="layers",
        projections=("attn.Wqkv",),
        norm="attn_norm",
        last_layer=("final_norm",),
    ),
    "deberta-v2": Family(
        layers="encoder.layer",
        projections=(),
        each_layer=("encoder.rel_embeddings", "encoder.LayerNorm"),
        first_layer=("encoder.conv",),
        sdpa=False,
    ),
}
FAMILIES: tuple[str, ...] = tuple(BY_NAME)
ATTENTION_FAMILIES: tuple[str, ...] = tuple(
    name for name, family in BY_NAME.items() if family.projections
)


def require_family(family: str, *, where: object = None) -> None:
    """Raise DataError unless the `model_type` is supported."""
    if family not in BY_NAME:
        raise DataError(
            "this family of encoders is not supported",
            where=where,
            expected=f"model_type {' or '.join(FAMILIES)}",
            found=family,
        )


def require_attention(family: str, *, where: object = None) -> None:
    """Raise DataError unless the `model_type` supports the attention and relation levels.

    DeBERTa does not. Its scores are sums of content and position terms (disentangled attention,
    arXiv:2006.03654, section 3.1), so no single pair of queries and keys gives them.
    """
    require_family(family, where=where)
    if family not in ATTENTION_FAMILIES:
        raise DataError(
            f"{family} has disentangled attention, which the attention and relation levels can't "
            "be taken from",
            where=where,
            expected=f"a model of {' or '.join(ATTENTION_FAMILIES)}",
            found=family,
            advice="Use the levels prediction and hidden.",
        )


def kernel(family: str) -> str:
    """The attention implementation to load a family with: `sdpa` if transformers has it.

    Raises DataError for a family that is not supported.
    """
    require_family(family)
    return "sdpa" if BY_NAME[family].sdpa else "eager"


def reshaped(fields: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """A configuration's fields, all of them, for the same encoder in another shape.

    Parts as wide as the encoder stay as wide as it: ELECTRA's and DeBERTa's embeddings unless
    factorised, and DeBERTa's pooler. ModernBERT's pattern of global and local layers is continued
    or cut to the new depth. Raises DataError for a family that is not supported.

    >>> like = {"model_type": "distilbert", "n_layers": 6, "dim": 768, "n_heads": 12}
    >>> reshaped(like, Shape(layers=3, hidden_size=384, attention_heads=6, intermediate_size=1536))
    {'model_type': 'distilbert', 'n_layers': 3, 'dim': 384, 'n_heads': 6, 'hidden_dim': 1536}
    """
    require_family(fields["model_type"])
    names = BY_NAME[fields["model_type"]].fields
    new = dict(fields)
    before = fields[names.get("hidden_size", "hidden_size")]
    for follower in ("embedding_size", "pooler_hidden_size"):
        if fields.get(follower) == before:
            new[follower] = shape.hidden_size
    if "attention_head_size" in fields:
        new["attention_head_size"] = shape.hidden_size // shape.attention_heads
    if fields.get("layer_types"):
        new["layer_types"] = _continued(fields["layer_types"], shape.layers)
        new.pop("global_attn_every_n_layers", None)  # redundant: ignored beside layer_types
    return new | {names.get(_SIZES[size], _SIZES[size]): n for size, n in vars(shape).items()}


def shape_of(fields: Mapping[str, Any]) -> Shape:
    """An encoder's size, from its configuration's fields. Raises DataError as `reshaped` does."""
    require_family(fields["model_type"])
    names = BY_NAME[fields["model_type"]].fields
    return Shape(**{size: fields[names.get(name, name)] for size, name in _SIZES.items()})


def _continued(types: Sequence[str], layers: int) -> list[str]:
    """The shortest repeating pattern in `types`, over `layers` layers."""
    period = next(
        n
        for n in range(1, len(types) + 1)
        if all(kind == types[i % n] for i, kind in enumerate(types))
    )
    return [types[i % period] for i in range(layers)]
