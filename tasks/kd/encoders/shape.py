"""What a model is: its size and family, and where its layers and other pieces are.

Layers are counted from 1; hidden layer 0 is the embedding output. A model may be a skeleton
(`pieces.skeleton`), in which an `Absent` module stands where there are no weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from tasks.kd.encoders.files.architectures import (
    BY_NAME,
    EMBEDDINGS,
    Family,
    Shape,
    require_attention,
    require_family,
    reshaped,
)
from tasks.kd.errors import DataError, ShapeError

LAYER = "layer."


def depth(model: torch.nn.Module) -> int:
    """Number of layers, embeddings not counted."""
    return len(layers_of(model))


def heads(model: torch.nn.Module) -> int:
    """Attention heads per layer."""
    return int(base_of(model).config.num_attention_heads)


def width(model: torch.nn.Module) -> int:
    """Width D of the hidden states."""
    return int(base_of(model).config.hidden_size)


def count_parameters(model: torch.nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules of the layers, first to last."""
    base = base_of(model)
    return list(base.get_submodule(family_of(base).layers))


def layers_prefix(model: torch.nn.Module) -> str:
    """What the names of all the layers' weights begin with in the model's state dict."""
    base = base_of(model)
    inside = "" if base is model else f"{base.base_model_prefix}."
    return f"{inside}{family_of(base).layers}."


def shaped(
    config: Any, *, layers: int, hidden_size: int, attention_heads: int, intermediate_size: int
) -> Any:
    """The configuration of a like encoder in another shape: `architectures.reshaped`."""
    shape = Shape(layers, hidden_size, attention_heads, intermediate_size)
    return AutoConfig.for_model(**reshaped(config.to_dict(), shape))


# --- where its pieces are -----------------------------------------------------------------------


def base_of(model: torch.nn.Module) -> Any:
    """The encoder without its head."""
    return model.base_model


def family_of(base: Any) -> Family:
    """Where the encoder's family keeps its modules. Raises DataError if it is not supported."""
    require_family(base.config.model_type)
    return BY_NAME[base.config.model_type]


def attention_family_of(model: torch.nn.Module) -> Family:
    """The model's family. Raises DataError unless it has attention and relation levels."""
    base = base_of(model)
    require_attention(base.config.model_type)
    return family_of(base)


def layer_of(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    """A layer's module. Raises ShapeError for one that the model does not have, or DataError."""
    modules = layers_of(model)
    if not 1 <= layer <= len(modules):
        raise ShapeError(
            "the model has no such layer", expected=f"layers 1 to {len(modules)}", found=layer
        )
    require_present(modules[layer - 1])
    return modules[layer - 1]


def after_last(base: Any) -> torch.nn.Module | None:
    """What makes the last hidden state of the last layer's output, if anything does."""
    paths = family_of(base).last_layer
    return as_module(base.get_submodule(paths[0])) if paths else None


def paths_of(base: Any, piece: str) -> list[str]:
    """Paths of the modules that a piece is made of, where this model has them."""
    family = family_of(base)
    if piece == EMBEDDINGS:
        paths = family.embeddings
    else:
        layer = int(piece.removeprefix(LAYER))
        paths = (f"{family.layers}.{layer - 1}", *family.each_layer)
        paths += family.first_layer if layer == 1 else ()
        paths += family.last_layer if layer == depth(base) else ()
    return [path for path in paths if has_module(base, path)]


def has_module(base: Any, path: str) -> bool:
    """Whether there is a module at that path; an attribute may also be None, or not there."""
    try:
        base.get_submodule(path)
    except AttributeError:
        return False
    return True


class Absent(torch.nn.Module):
    """What stands where a skeleton has no weights."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, *_args: Any, **_named: Any) -> None:
        """Raise DataError: there is nothing here to run."""
        require_present(self)


def require_present(module: Any) -> None:
    """Raise DataError for a piece that the skeleton was built without."""
    if isinstance(module, Absent):
        raise DataError("not among the pieces that this model was built from", where=module.path)


def first_tensor(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    value = output[0] if isinstance(output, tuple) else output
    assert isinstance(value, Tensor)
    return value


def as_module(value: Any) -> torch.nn.Module:
    """The value, which must be a module; for type checkers."""
    assert isinstance(value, torch.nn.Module)
    return value
