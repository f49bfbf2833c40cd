"""The modules of layers whose width can be reduced: BERT's and similar families'."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tasks.kd.errors import ShapeError


@dataclass(frozen=True)
class Layout:
    """Paths of modules below a layer; `pooled` and `classifier` are below the whole model."""

    projections: tuple[str, str, str]  # queries, keys, values
    attended: str
    attended_norm: str
    up: str
    down: str
    norm: str
    pooled: str
    classifier: str


_BERT = Layout(
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    attended="attention.output.dense",
    attended_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
    pooled="bert.pooler.dense",
    classifier="classifier",
)
_ROBERTA = replace(_BERT, pooled="classifier.dense", classifier="classifier.out_proj")
_LAYOUTS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "electra": _ROBERTA,
    "distilbert": Layout(
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attended="attention.out_lin",
        attended_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm="output_layer_norm",
        pooled="pre_classifier",
        classifier="classifier",
    ),
}
REDUCIBLE: tuple[str, ...] = tuple(_LAYOUTS)


def layout_of(model: nn.Module) -> Layout:
    """The layout of a model's family. Raises ShapeError for a family that can't be reduced.

    ModernBERT normalises before its sub-layers and rotates queries by their place in the head,
    MPNet's heads share one positional bias across layers, and DeBERTa projects positions with the
    same matrices as states. Each would need a reduction of its own.
    """
    config: Any = model.base_model.config  # type: ignore[union-attr]
    if config.model_type not in _LAYOUTS:
        raise ShapeError(
            "encoders of this family can't be made narrower",
            where="train_student.student.initial.kind",
            expected=f"a teacher of {' or '.join(REDUCIBLE)}",
            found=config.model_type,
            advice="Use teacher_layers at the teacher's width, or random with embeddings: pca.",
        )
    return _LAYOUTS[config.model_type]


def linear(module: nn.Module, path: str) -> nn.Linear:
    """The linear module at a path."""
    linear_module = module.get_submodule(path)
    assert isinstance(linear_module, nn.Linear)
    return linear_module


def norm(module: nn.Module, path: str) -> nn.LayerNorm:
    """The norm at a path."""
    layer_norm = module.get_submodule(path)
    assert isinstance(layer_norm, nn.LayerNorm)
    return layer_norm


def embedding_norm(model: nn.Module) -> nn.LayerNorm:
    """The norm behind the embeddings."""
    base: Any = model.base_model
    return norm(base, "embeddings.LayerNorm")


def embedding_projection(model: nn.Module) -> nn.Linear | None:
    """The projection of ELECTRA's factorised embeddings; None if embeddings are not factorised."""
    base: Any = model.base_model
    return linear(base, "embeddings_project") if hasattr(base, "embeddings_project") else None
