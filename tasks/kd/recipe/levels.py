"""The fields of a recipe's levels: where a loss acts, which one, on which layers, at what weight.

Declarations alone: a model per loss, or one for several that have the same fields. What a loss
reads and counts stands in its row (`losses.py`), so that a description that is worded anew touches
nothing that computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.fields import Fraction, Positive, Section, Weight
from tasks.kd.recipe.schedules import ScheduledTemperature, ScheduledWeight, Temperature

WEIGHT = (
    "of this level in the step's loss, or a schedule over the phase; levels are means, per "
    "example, token, pair or triplet of tokens"
)
HEADS = "each: equal numbers are needed; average: over the heads of either side first"
TEMPERATURE = "softmax temperature T, or a schedule over the phase"
LAYER_MAP = (
    "uniform, last, skip (uniform without embeddings and last), upper_middle (student's last, "
    "teacher's at 7/8), random (others each epoch), or pairs [student layer, teacher layer], 0 the "
    "embeddings"
)
PLANS = (
    "; transport: every layer with every other, by the plan of least cost; nearest: each teacher "
    "layer of the uniform map with the student layer that is nearest to it"
)
Projection = Annotated[
    Literal["none", "linear", "shared", "orthogonal"],
    Field(
        description="learned, from the student's width to the teacher's; needed if widths differ: "
        "linear, one per matched layer; shared, one for all; orthogonal, one per matched layer "
        "that keeps lengths"
    ),
]
_FixedMap = (
    Literal["uniform", "last", "skip", "upper_middle", "random"]
    | Annotated[tuple[tuple[int, int], ...], Field(min_length=1)]
)
LayerMap = Annotated[_FixedMap, Field(description=LAYER_MAP)]
PlannedMap = Annotated[
    _FixedMap | Literal["transport", "nearest"], Field(description=LAYER_MAP + PLANS)
]
StateMap = Annotated[
    _FixedMap | Literal["transport", "nearest", "mixture"],
    Field(description=f"{LAYER_MAP}{PLANS}; mixture: all teacher layers, each by its likeness"),
]


class Level(Section):
    """What every level has. Each model says its own level and loss first, and its weight last."""

    level: str
    loss: str
    if TYPE_CHECKING:
        weight: ScheduledWeight


class LayerLevel(Level):
    """What every level between layers has."""

    layer_map: StateMap


class LabelsLevel(Level):
    """Prediction level: cross-entropy with the true labels."""

    level: Literal["prediction"]
    loss: Literal["labels"]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class KLLevel(Level):
    """Prediction level: KL divergence to the teacher's softened predictions, times T²."""

    level: Literal["prediction"]
    loss: Literal["kl"]
    temperature: Annotated[
        Temperature, Field(description=f"{TEMPERATURE}, or a rule that gives each example its own")
    ]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class ReverseKLLevel(Level):
    """Prediction level: KL divergence from the teacher's softened predictions, times T²."""

    level: Literal["prediction"]
    loss: Literal["reverse_kl"]
    temperature: Annotated[ScheduledTemperature, Field(description=TEMPERATURE)]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class JSDLevel(Level):
    """Prediction level: generalised Jensen-Shannon divergence, times T²."""

    level: Literal["prediction"]
    loss: Literal["jsd"]
    temperature: Annotated[ScheduledTemperature, Field(description=TEMPERATURE)]
    beta: Annotated[Fraction, Field(description="share of the teacher; 0 is kl, 1 is reverse_kl")]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class DKDLevel(Level):
    """Prediction level: KL divergence decoupled into true class and others; from 3 classes on."""

    level: Literal["prediction"]
    loss: Literal["dkd"]
    temperature: Annotated[ScheduledTemperature, Field(description=TEMPERATURE)]
    target_weight: Annotated[Weight, Field(description="of the true class against the others")]
    other_weight: Annotated[Weight, Field(description="of the others among themselves")]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]

    @model_validator(mode="after")
    def _a_part_counts(self) -> DKDLevel:
        if self.target_weight == self.other_weight == 0:
            raise ValueError("target_weight and other_weight are both 0: nothing is taught")
        return self


class DISTLevel(Level):
    """Prediction level: correlation of teacher's and student's probabilities; from 3 classes on."""

    level: Literal["prediction"]
    loss: Literal["dist"]
    temperature: Annotated[ScheduledTemperature, Field(description=TEMPERATURE)]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class LogitsMSELevel(Level):
    """Prediction level: mean squared difference of the logits."""

    level: Literal["prediction"]
    loss: Literal["logits_mse"]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class HiddenLevel(LayerLevel):
    """Hidden level: mean squared error of hidden states over the real tokens."""

    level: Literal["hidden"]
    loss: Literal["mse"]
    layer_map: StateMap
    standardise: Annotated[
        bool,
        Field(
            description="divide each channel's error by the teacher's deviation there"
            " (the median, where it hardly moves)"
        ),
    ]
    projection: Projection
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]

    @model_validator(mode="after")
    def _a_mixture_has_no_deviation(self) -> HiddenLevel:
        if self.standardise and self.layer_map == "mixture":
            raise ValueError("a mixture of layers has no deviation: set standardise to false")
        return self


class DirectionLevel(LayerLevel):
    """Hidden level: what does not mind the scale of a state."""

    level: Literal["hidden"]
    loss: Annotated[
        Literal["cosine", "layer_norm_mse"],
        Field(description="one minus the cosine, or squared error after a layer norm of both"),
    ]
    layer_map: StateMap
    projection: Projection
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class VectorLevel(LayerLevel):
    """Hidden level: mean squared error of one vector per example."""

    level: Literal["hidden"]
    loss: Annotated[
        Literal["cls_mse", "pooled_mse"],
        Field(description="the first token's state, or the mean of all real tokens'"),
    ]
    layer_map: StateMap
    normalised: Annotated[bool, Field(description="each vector divided by its length first")]
    projection: Projection
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class ContrastiveLevel(LayerLevel):
    """Hidden level: the teacher's vector of the same example told from those of others."""

    level: Literal["hidden"]
    loss: Literal["contrastive"]
    layer_map: LayerMap
    temperature: Annotated[ScheduledTemperature, Field(description="of cosines: 0.1, not 2")]
    negatives: Annotated[
        Positive, Field(description="texts of the training split whose vectors are the others")
    ]
    projection: Projection
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class GramLevel(LayerLevel):
    """Hidden level: products of a matched layer's channels with those of the next one (FSP)."""

    level: Literal["hidden"]
    loss: Literal["gram"]
    layer_map: LayerMap
    projection: Projection
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class GeometryLevel(LayerLevel):
    """Hidden level: how an example's tokens stand to one another; widths may differ."""

    level: Literal["hidden"]
    loss: Annotated[
        Literal["nst", "cka", "procrustes", "rkd_distance", "rkd_angle"],
        Field(
            description="similarity of tokens, centred kernel alignment, states up to the best "
            "rotation, distances between tokens, or angles between them"
        ),
    ]
    layer_map: LayerMap
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class AttentionMSELevel(LayerLevel):
    """Attention level: mean squared error of the scores before the softmax, over token pairs."""

    level: Literal["attention"]
    loss: Literal["mse"]
    layer_map: PlannedMap
    heads: Annotated[Literal["each", "average"], Field(description=HEADS)]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class AttentionKLLevel(LayerLevel):
    """Attention level: KL divergence of the attention distributions, per real query token."""

    level: Literal["attention"]
    loss: Literal["kl"]
    layer_map: LayerMap
    heads: Annotated[Literal["each", "average"], Field(description=HEADS)]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class RelationLevel(LayerLevel):
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
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]

    @model_validator(mode="after")
    def _each_relation_once(self) -> RelationLevel:
        if len(set(self.relations)) != len(self.relations):
            raise ValueError(f"relations names one twice: {', '.join(self.relations)}")
        return self
