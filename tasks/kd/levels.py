"""The levels of a recipe: where a loss acts, which one, on which layers, with what weight.

One model per loss. What a level reads of the teacher are streams (`cache/streams.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tasks.kd.cache.streams import in_order
from tasks.kd.layers import Pairs, pairs
from tasks.kd.sections import Fraction, Positive, PositiveFloat, Section, Weight

WEIGHT = "of this level in the step's loss; levels are means, per example, token or pair of tokens"
HEADS = "each: equal numbers are needed; average: over the heads of either side first"
TEMPERATURE = "softmax temperature T"
Projection = Annotated[
    Literal["none", "linear"],
    Field(description="linear: learned, one per matched layer; needed if widths differ"),
]
LayerMap = Annotated[
    Literal["uniform", "last"] | Annotated[tuple[tuple[int, int], ...], Field(min_length=1)],
    Field(description="uniform, last, or pairs [student layer, teacher layer]; 0 = embeddings"),
]


class LabelsLevel(Section):
    """Prediction level: cross-entropy with the true labels."""

    level: Literal["prediction"]
    loss: Literal["labels"]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class KLLevel(Section):
    """Prediction level: KL divergence to the teacher's softened predictions, times T²."""

    level: Literal["prediction"]
    loss: Literal["kl"]
    temperature: Annotated[PositiveFloat, Field(description=TEMPERATURE)]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class ReverseKLLevel(Section):
    """Prediction level: KL divergence from the teacher's softened predictions, times T²."""

    level: Literal["prediction"]
    loss: Literal["reverse_kl"]
    temperature: Annotated[PositiveFloat, Field(description=TEMPERATURE)]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class JSDLevel(Section):
    """Prediction level: generalised Jensen-Shannon divergence, times T²."""

    level: Literal["prediction"]
    loss: Literal["jsd"]
    temperature: Annotated[PositiveFloat, Field(description=TEMPERATURE)]
    beta: Annotated[Fraction, Field(description="share of the teacher; 0 is kl, 1 is reverse_kl")]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class DKDLevel(Section):
    """Prediction level: KL divergence decoupled into true class and others; from 3 classes on."""

    level: Literal["prediction"]
    loss: Literal["dkd"]
    temperature: Annotated[PositiveFloat, Field(description=TEMPERATURE)]
    target_weight: Annotated[Weight, Field(description="of the true class against the others")]
    other_weight: Annotated[Weight, Field(description="of the others among themselves")]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class DISTLevel(Section):
    """Prediction level: correlation of teacher's and student's probabilities; from 3 classes on."""

    level: Literal["prediction"]
    loss: Literal["dist"]
    temperature: Annotated[PositiveFloat, Field(description=TEMPERATURE)]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class LogitsMSELevel(Section):
    """Prediction level: mean squared difference of the logits."""

    level: Literal["prediction"]
    loss: Literal["logits_mse"]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class HiddenLevel(Section):
    """Hidden level: mean squared error of hidden states over the real tokens."""

    level: Literal["hidden"]
    loss: Literal["mse"]
    layer_map: LayerMap
    standardise: Annotated[
        bool, Field(description="divide each channel's error by the teacher's deviation there")
    ]
    projection: Projection
    weight: Annotated[Weight, Field(description=WEIGHT)]


class DirectionLevel(Section):
    """Hidden level: what does not mind the scale of a state."""

    level: Literal["hidden"]
    loss: Annotated[
        Literal["cosine", "layer_norm_mse"],
        Field(description="one minus the cosine, or squared error after a layer norm of both"),
    ]
    layer_map: LayerMap
    projection: Projection
    weight: Annotated[Weight, Field(description=WEIGHT)]


class ClsLevel(Section):
    """Hidden level: mean squared error of the first token's state."""

    level: Literal["hidden"]
    loss: Literal["cls_mse"]
    layer_map: LayerMap
    normalised: Annotated[bool, Field(description="each state divided by its length first")]
    projection: Projection
    weight: Annotated[Weight, Field(description=WEIGHT)]


class GeometryLevel(Section):
    """Hidden level: how an example's tokens stand to one another; widths may differ."""

    level: Literal["hidden"]
    loss: Annotated[
        Literal["nst", "cka", "procrustes", "rkd_distance"],
        Field(
            description="similarity of tokens, centred kernel alignment, states up to the best "
            "rotation, or distances between tokens"
        ),
    ]
    layer_map: LayerMap
    weight: Annotated[Weight, Field(description=WEIGHT)]


class AttentionMSELevel(Section):
    """Attention level: mean squared error of the scores before the softmax, over token pairs."""

    level: Literal["attention"]
    loss: Literal["mse"]
    layer_map: LayerMap
    heads: Annotated[Literal["each", "average"], Field(description=HEADS)]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class AttentionKLLevel(Section):
    """Attention level: KL divergence of the attention distributions, per real query token."""

    level: Literal["attention"]
    loss: Literal["kl"]
    layer_map: LayerMap
    heads: Annotated[Literal["each", "average"], Field(description=HEADS)]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class RelationLevel(Section):
    """Relation level: KL divergence of scaled dot products among queries, keys or values."""

    level: Literal["relation"]
    loss: Literal["kl"]
    layer_map: LayerMap
    relations: Annotated[
        tuple[Literal["queries", "keys", "values"], ...],
        Field(min_length=1, description="averaged; MiniLM reads values, MiniLMv2 all three"),
    ]
    relation_heads: Annotated[
        Positive, Field(description="must divide both widths; the models' own heads do not matter")
    ]
    weight: Annotated[Weight, Field(description=WEIGHT)]

    @model_validator(mode="after")
    def _each_relation_once(self) -> RelationLevel:
        if len(set(self.relations)) != len(self.relations):
            raise ValueError(f"relations names one twice: {', '.join(self.relations)}")
        return self


def _level_and_loss(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('level')}.{value.get('loss')}"
    return f"{value.level}.{value.loss}"


PredictionLevel = (
    LabelsLevel | KLLevel | ReverseKLLevel | JSDLevel | DKDLevel | DISTLevel | LogitsMSELevel
)
ProjectedLevel = HiddenLevel | DirectionLevel | ClsLevel
AttentionLevel = AttentionMSELevel | AttentionKLLevel
LayerLevel = (
    HiddenLevel
    | DirectionLevel
    | ClsLevel
    | GeometryLevel
    | AttentionMSELevel
    | AttentionKLLevel
    | RelationLevel
)
Level = Annotated[
    Annotated[LabelsLevel, Tag("prediction.labels")]
    | Annotated[KLLevel, Tag("prediction.kl")]
    | Annotated[ReverseKLLevel, Tag("prediction.reverse_kl")]
    | Annotated[JSDLevel, Tag("prediction.jsd")]
    | Annotated[DKDLevel, Tag("prediction.dkd")]
    | Annotated[DISTLevel, Tag("prediction.dist")]
    | Annotated[LogitsMSELevel, Tag("prediction.logits_mse")]
    | Annotated[HiddenLevel, Tag("hidden.mse")]
    | Annotated[DirectionLevel, Tag("hidden.cosine")]
    | Annotated[DirectionLevel, Tag("hidden.layer_norm_mse")]
    | Annotated[ClsLevel, Tag("hidden.cls_mse")]
    | Annotated[GeometryLevel, Tag("hidden.nst")]
    | Annotated[GeometryLevel, Tag("hidden.cka")]
    | Annotated[GeometryLevel, Tag("hidden.procrustes")]
    | Annotated[GeometryLevel, Tag("hidden.rkd_distance")]
    | Annotated[AttentionMSELevel, Tag("attention.mse")]
    | Annotated[AttentionKLLevel, Tag("attention.kl")]
    | Annotated[RelationLevel, Tag("relation.kl")],
    Discriminator(_level_and_loss),
]


class Phase(Section):
    """A part of the training with its own levels; the optimizer starts anew in each."""

    name: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="shown in metrics and plots")
    ]
    epochs: Annotated[Positive, Field(description="passes over the training split")]
    learning_rate: Annotated[PositiveFloat, Field(description="peak")]
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _levels_are_named_apart(self) -> Phase:
        names = [f"{level.level}.{level.loss}" for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"a phase holds each level once, found {', '.join(names)}")
        return self


def matched(level: LayerLevel, student_layers: int, teacher_layers: int) -> Pairs:
    """The (student layer, teacher layer) pairs that a level compares.

    Layer 0, the embedding output, has no attention: a named map leaves it out there. Raises
    ValueError, naming the pair, for a layer that is not there.
    """
    found = pairs(level.layer_map, student_layers, teacher_layers)
    if level.level == "hidden":
        return found
    if isinstance(level.layer_map, str):
        return tuple(pair for pair in found if min(pair) > 0)
    if without := [list(pair) for pair in found if min(pair) == 0]:
        raise ValueError(
            f"layer 0, the embeddings, has no {level.level}: layer map pair {without[0]}"
        )
    return found


def streams_read(
    phases: Iterable[Phase], student_layers: int, teacher_layers: int
) -> tuple[str, ...]:
    """The teacher's streams that the levels of all phases read, in order.

    Raises ValueError for a layer that is not there.
    """
    needed: set[str] = set()
    for phase in phases:
        for level in phase.levels:
            if level.level == "prediction":
                needed.update(() if level.loss == "labels" else ("logits",))
            else:
                read = matched(level, student_layers, teacher_layers)
                needed.update(f"{level.level}.{teacher}" for _, teacher in read)
    return in_order(needed)


def layer_levels(phases: Iterable[Phase]) -> Iterator[LayerLevel]:
    """All levels that compare layers."""
    for phase in phases:
        for level in phase.levels:
            if level.level != "prediction":
                yield level
