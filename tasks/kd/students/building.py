"""The student's shape and its first weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.kd.encoders.files.architectures import kernel, shape_of
from tasks.kd.encoders.files.folder import read_config
from tasks.kd.encoders.files.label_names import known_label_names
from tasks.kd.encoders.loading import load_config, new_classifier
from tasks.kd.encoders.shape import depth, heads, layers_prefix, shaped
from tasks.kd.errors import ShapeError
from tasks.kd.recipe.maps import chosen
from tasks.kd.recipe.student import (
    InitialCheckpoint,
    InitialTeacherLayers,
    InitialWidthReduction,
    Student,
)
from tasks.kd.students.embeddings import (
    carry_embeddings,
    first_position,
    positions,
    require_padding,
)
from tasks.kd.students.reduction import reduce_width

_VOCABULARY_S = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
# Fields of a family's published models that its configuration class sets otherwise: DeBERTa-v3's
# attention (arXiv:2111.09543), without which positions would not count.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
}


def build_student(
    params: Student,
    teacher: torch.nn.Module,
    *,
    seed: int,
    checkpoint: Path | None = None,
    moment_DD: Tensor | None = None,
) -> torch.nn.Module:
    """A student with the teacher's vocabulary and labels, in the recipe's shape and family.

    The recipe's `initial.kind` names the source of its weights:

    - `teacher_layers`: embeddings, pooler and classifier are the teacher's, and layer i is a copy
      of the i-th chosen teacher layer (DistilBERT, arXiv:1910.01108, section 3; its code drops the
      pooler, we keep it). A copied ModernBERT layer stays global or local.
    - `width_reduction`: the same, made narrower (`reduction`). `moment_DD` is the second moment of
      the teacher's states; without it, it is estimated from the weights.
    - `checkpoint`: the encoder in the folder `checkpoint`.
    - `random`: everything is new, except embeddings that the recipe carries over (`embeddings`).

    New weights are drawn from `seed`. Raises ShapeError if the teacher's weights or the checkpoint
    do not fit the student's shape, family or vocabulary, and DataError for a folder that holds no
    whole encoder.
    """
    initial = params.initial
    if isinstance(initial, InitialCheckpoint):
        assert checkpoint is not None
        return _read_checkpoint(params, teacher, checkpoint, seed)
    config = _config(params, teacher)
    layers: list[int] = []
    if isinstance(initial, InitialTeacherLayers | InitialWidthReduction):
        layers = chosen(initial.layers, params.layers, depth(teacher))
    if isinstance(initial, InitialTeacherLayers):
        like: Any = teacher.config
        if getattr(like, "layer_types", None):
            config.layer_types = [like.layer_types[layer - 1] for layer in layers]
    student = _new(config, seed)
    if isinstance(initial, InitialTeacherLayers):
        _copy_layers(student, teacher, layers)
    elif isinstance(initial, InitialWidthReduction):
        reduce_width(student, teacher, layers, initial.method, moment_DD)
    elif initial.embeddings == "pca":
        carry_embeddings(student, teacher)
    return student.eval()


def require_positions(student: torch.nn.Module, longest: int) -> None:
    """Raise ShapeError if the student can't read texts of `longest` tokens."""
    if (limit := positions(student.config)) < longest:
        raise ShapeError(
            "texts may be longer than the student can read",
            where="prepare_data.max_length_tokens",
            expected=f"at most {limit}",
            found=longest,
        )


def _new(config: Any, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model: torch.nn.Module = AutoModelForSequenceClassification.from_config(
        config, attn_implementation=kernel(config.model_type)
    )
    return model


# --- another family -------------------------------------------------------------------------------


def _config(params: Student, teacher: torch.nn.Module) -> Any:
    like: Any = teacher.config
    if params.family is not None and params.family != like.model_type:
        like = _of_family(params.family, like, params.hidden_size)
    return shaped(
        like,
        layers=params.layers,
        hidden_size=params.hidden_size,
        attention_heads=params.attention_heads,
        intermediate_size=params.intermediate_size,
    )


def _of_family(family: str, like: Any, width: int) -> Any:
    """A family's published configuration, for the teacher's vocabulary, labels and longest text.

    It has as many positions as the teacher, after those that the family skips. It has as many token
    types, and at least one if the family has any. Embeddings are as wide as the layers.
    """
    require_padding(family, like.pad_token_id)
    fields = dict(_PUBLISHED.get(family, {}))
    fields |= {name: getattr(like, name, None) for name in _VOCABULARY_S}
    fields |= {name: getattr(like, name) for name in ("vocab_size", "id2label", "label2id")}
    config = AutoConfig.for_model(family, **fields)
    config.max_position_embeddings = positions(like) + first_position(config)
    if getattr(config, "type_vocab_size", 0):
        config.type_vocab_size = getattr(like, "type_vocab_size", 0) or 1
    if hasattr(config, "embedding_size"):
        config.embedding_size = config.hidden_size = width
    return config


# --- a checkpoint ---------------------------------------------------------------------------------


def _read_checkpoint(
    params: Student, teacher: torch.nn.Module, folder: Path, seed: int
) -> torch.nn.Module:
    """The encoder in a folder. It keeps its head if its labels are the teacher's, else gets one."""
    config, like = load_config(folder), _teacher_config(teacher)
    _require_declared(params, config, like, folder)
    torch.manual_seed(seed)  # weights that the checkpoint lacks are new: its head, BERT's pooler
    labels = [like.id2label[i] for i in sorted(like.id2label)]
    model = new_classifier(folder, labels)
    if known_label_names(read_config(folder), folder) == labels:
        return model
    student = _new(model.config, seed)
    _base(student).load_state_dict(_base(model).state_dict())
    return student.eval()


def _require_declared(params: Student, config: Any, like: Any, folder: Path) -> None:
    sizes = vars(shape_of(config.to_dict()))
    expected = {
        "family": params.family or like.model_type,
        "vocabulary": like.vocab_size,
        "padding id": like.pad_token_id,
        **{name: getattr(params, name) for name in sizes},
    }
    actual = {
        "family": config.model_type,
        "vocabulary": config.vocab_size,
        "padding id": config.pad_token_id,
        **sizes,
    }
    if wrong := [name for name, value in expected.items() if value != actual[name]]:
        raise ShapeError(
            "the checkpoint that the student starts from is not as the recipe and the teacher say",
            where=folder / "config.json",
            expected=", ".join(f"{name} {expected[name]}" for name in wrong),
            found=", ".join(f"{name} {actual[name]}" for name in wrong),
        )


def _teacher_config(teacher: torch.nn.Module) -> Any:
    return teacher.config


def _base(model: torch.nn.Module) -> torch.nn.Module:
    base = model.base_model
    assert isinstance(base, torch.nn.Module)
    return base


# --- the teacher's layers -------------------------------------------------------------------------


def _copy_layers(student: torch.nn.Module, teacher: torch.nn.Module, layers: list[int]) -> None:
    """Load the chosen layers, and all weights outside layers, from the teacher."""
    prefix, theirs = layers_prefix(teacher), teacher.state_dict()
    weights = {name: value for name, value in theirs.items() if not name.startswith(prefix)}
    for own, layer in enumerate(layers):
        source = f"{prefix}{layer - 1}."
        for name in (name for name in theirs if name.startswith(source)):
            weights[f"{prefix}{own}.{name.removeprefix(source)}"] = theirs[name]
    expected = student.state_dict()
    # ModernBERT's first layer has no norm before its attention. The norm is dropped from a layer
    # that becomes the first, and is new in a first layer that becomes a later one.
    odd = {name for name in expected.keys() ^ weights.keys() if ".attn_norm." in name}
    assert expected.keys() ^ weights.keys() == odd, odd
    weights = {name: value for name, value in weights.items() if name not in odd}
    _require_fit(student, teacher, weights)
    student.load_state_dict(weights, strict=False)


def _require_fit(
    student: torch.nn.Module, teacher: torch.nn.Module, weights: dict[str, torch.Tensor]
) -> None:
    own = student.state_dict()
    wrong = [name for name, value in weights.items() if value.shape != own[name].shape]
    if wrong:
        raise ShapeError(
            "a student that starts from its teacher's layers must have their shape",
            where=wrong[0],
            expected=list(weights[wrong[0]].shape),
            found=list(own[wrong[0]].shape),
            advice="Give it the teacher's widths, or initial weights of kind random.",
        )
    if heads(student) != heads(teacher):
        raise ShapeError(
            "a student that starts from its teacher's layers must have their attention heads",
            expected=heads(teacher),
            found=heads(student),
        )
