"""The losses that a recipe can name, one row each. What else is known of a loss follows from it.

A row is a loss's half of this room, without torch; its function stands in `tasks/kd/levels/losses`
under the name that the row gives.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Tag

from tasks.kd.recipe.levels import (
    AttentionKLLevel,
    AttentionMSELevel,
    ContrastiveLevel,
    DirectionLevel,
    DISTLevel,
    DKDLevel,
    GeometryLevel,
    GramLevel,
    HiddenLevel,
    JSDLevel,
    KLLevel,
    LabelsLevel,
    Level,
    LogitsMSELevel,
    RelationLevel,
    ReverseKLLevel,
    VectorLevel,
)

# For examples of n_i real tokens: their number, the sum of n_i, of n_i squared, or of the cube of
# n_i, which is then bounded.
Counts = Literal["examples", "tokens", "pairs", "triplets"]
Kind = Literal["logits", "hidden", "attention", "relation"]
Constant = Literal["deviation", "bank"]


@dataclass(frozen=True)
class Loss:
    """What is known of a loss beside its function.

    Its `model` holds the fields that a recipe gives it, `function` is its name among the functions.
    It `reads` the teacher's streams of one kind, or none, and its sum is over what it `counts`.

    - `options`: fields that the function takes by the same name, or by the one in `renamed`
    - `takes_labels`: the function takes the labels too
    - `least_classes`: fewer say nothing to it
    - `lacking`: what layer 0, the embeddings, has none of, so that no map matches it
    - `next_layer`: it compares a matched layer with the next one
    - `repeated`: the field that lists what is compared one after another
    - `constants`: what it keeps of the teacher's layers, by the field that asks for it
    """

    model: type[Level]
    function: str
    reads: Kind | None
    counts: Counts
    options: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    takes_labels: bool = False
    least_classes: int = 1
    lacking: str = ""
    next_layer: bool = False
    repeated: str = ""
    constants: Mapping[str, Constant] = field(default_factory=dict)

    @property
    def inside_layers(self) -> bool:
        """Whether it reads what a layer computes inside, not the states between layers."""
        return self.reads in ("attention", "relation")


LOSSES: Mapping[str, Loss] = {
    # logits
    "prediction.labels": Loss(LabelsLevel, "labels", None, "examples", takes_labels=True),
    "prediction.kl": Loss(KLLevel, "kl", "logits", "examples", ("temperature",)),
    "prediction.reverse_kl": Loss(
        ReverseKLLevel, "reverse_kl", "logits", "examples", ("temperature",)
    ),
    "prediction.jsd": Loss(JSDLevel, "jsd", "logits", "examples", ("temperature", "beta")),
    "prediction.dkd": Loss(
        DKDLevel,
        "dkd",
        "logits",
        "examples",
        ("temperature", "target_weight", "other_weight"),
        takes_labels=True,
        least_classes=3,
    ),
    "prediction.dist": Loss(
        DISTLevel, "dist", "logits", "examples", ("temperature",), least_classes=3
    ),
    "prediction.logits_mse": Loss(LogitsMSELevel, "logits_mse", "logits", "examples"),
    # hidden states
    "hidden.mse": Loss(
        HiddenLevel, "mse", "hidden", "tokens", constants={"standardise": "deviation"}
    ),
    "hidden.cosine": Loss(DirectionLevel, "cosine", "hidden", "tokens"),
    "hidden.layer_norm_mse": Loss(DirectionLevel, "layer_norm_mse", "hidden", "tokens"),
    "hidden.cls_mse": Loss(
        VectorLevel,
        "cls_mse",
        "hidden",
        "examples",
        ("normalised",),
        lacking="first token that differs by text",
    ),
    "hidden.pooled_mse": Loss(VectorLevel, "pooled_mse", "hidden", "examples", ("normalised",)),
    "hidden.contrastive": Loss(
        ContrastiveLevel,
        "contrastive",
        "hidden",
        "examples",
        ("temperature",),
        constants={"negatives": "bank"},
    ),
    "hidden.gram": Loss(GramLevel, "gram", "hidden", "examples", next_layer=True),
    "hidden.nst": Loss(GeometryLevel, "nst", "hidden", "pairs"),
    "hidden.cka": Loss(GeometryLevel, "cka", "hidden", "examples"),
    "hidden.procrustes": Loss(GeometryLevel, "procrustes", "hidden", "tokens"),
    "hidden.rkd_distance": Loss(GeometryLevel, "rkd_distance", "hidden", "pairs"),
    "hidden.rkd_angle": Loss(GeometryLevel, "rkd_angle", "hidden", "triplets"),
    # inside of layers
    "attention.mse": Loss(
        AttentionMSELevel, "scores_mse", "attention", "pairs", ("heads",), lacking="attention"
    ),
    "attention.kl": Loss(
        AttentionKLLevel, "attention_kl", "attention", "tokens", ("heads",), lacking="attention"
    ),
    "relation.kl": Loss(
        RelationLevel,
        "relation_kl",
        "relation",
        "tokens",
        ("relation_heads",),
        renamed={"relation_heads": "heads"},
        lacking="relation",
        repeated="relations",
    ),
}


def _level_and_loss(level: Level) -> str:
    return f"{level.level}.{level.loss}"


def _kind_of(level: Any) -> str | None:
    """The name of the loss of a level that is still to be validated; None for what is none."""
    if isinstance(level, dict):
        return f"{level.get('level')}.{level.get('loss')}"
    return _level_and_loss(level) if isinstance(level, Level) else None


if TYPE_CHECKING:
    AnyLevel = Level
else:
    _models = (Annotated[row.model, Tag(name)] for name, row in LOSSES.items())
    # One of all models, by the level and the loss that stand in the recipe.
    AnyLevel = Annotated[functools.reduce(operator.or_, _models), Discriminator(_kind_of)]


def loss_of(level: Level) -> Loss:
    """The row of a level's loss."""
    return LOSSES[_level_and_loss(level)]


def constants_of(level: Level) -> dict[Constant, Any]:
    """What a level keeps of the teacher's layers, each with the value of the field that asks."""
    asked = {kept: getattr(level, name) for name, kept in loss_of(level).constants.items()}
    return {constant: value for constant, value in asked.items() if value}


def level_names(levels: Iterable[Level]) -> tuple[str, ...]:
    """The levels' names in metrics: `hidden.mse`; `hidden.mse uniform` where two have one loss.

    Raises ValueError for two of one name.
    """
    levels = tuple(levels)
    short = [_level_and_loss(level) for level in levels]
    names = tuple(
        name if short.count(name) == 1 else _with_map(name, level)
        for name, level in zip(short, levels, strict=True)
    )
    if len(set(names)) != len(names):
        raise ValueError(f"a phase holds each level once, found {', '.join(names)}")
    return names


def _with_map(name: str, level: Level) -> str:
    layer_map = getattr(level, "layer_map", "")
    shown = layer_map if isinstance(layer_map, str) else [list(pair) for pair in layer_map]
    return f"{name} {shown}".strip()
