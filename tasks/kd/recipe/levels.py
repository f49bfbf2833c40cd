"""The levels of a recipe: where a loss acts, which one, on which layers, with what weight.

One model per loss. What a level reads of the teacher are streams (`cache/streams.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tasks.kd.recipe.fields import Fraction, Positive, PositiveFloat, Section, Weight
from tasks.kd.recipe.maps import Pairs, drawn, pairs, uniform
from tasks.kd.recipe.schedules import ScheduledTemperature, ScheduledWeight

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
_NEXT_LAYER = "hidden.gram compares a matched layer with the next one"
ChosenMap = Literal["random", "mixture", "transport", "nearest"]
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


class LabelsLevel(Section):
    """Prediction level: cross-entropy with the true labels."""

    level: Literal["prediction"]
    loss: Literal["labels"]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class FocalTemperature(Section):
    """A temperature per example: lower where the student's logits point elsewhere (FLSW)."""

    rule: Literal["flsw"]
    base: Annotated[PositiveFloat, Field(description="T of an example at the centre")]
    slope: Annotated[Weight, Field(description="how far T moves with w, (1 - cosine) to the power")]
    centre: Annotated[Weight, Field(description="the w at which T is the base")]
    power: Annotated[PositiveFloat, Field(description="of 1 - cosine of both logits")]


class ConfidenceTemperature(Section):
    """A temperature per example: lower where the student is less confident (CWSM)."""

    rule: Literal["cwsm"]
    base: Annotated[PositiveFloat, Field(description="T of an example at the centre")]
    slope: Annotated[Weight, Field(description="how far T moves with w, 1 / highest probability")]
    centre: Annotated[Weight, Field(description="the w at which T is the base; w is 1 or more")]


Temperature = (
    ScheduledTemperature
    | Annotated[FocalTemperature | ConfidenceTemperature, Field(discriminator="rule")]
)


class KLLevel(Section):
    """Prediction level: KL divergence to the teacher's softened predictions, times T²."""

    level: Literal["prediction"]
    loss: Literal["kl"]
    temperature: Annotated[
        Temperature, Field(description=f"{TEMPERATURE}, or a rule that gives each example its own")
    ]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class ReverseKLLevel(Section):
    """Prediction level: KL divergence from the teacher's softened predictions, times T²."""

    level: Literal["prediction"]
    loss: Literal["reverse_kl"]
    temperature: Annotated[ScheduledTemperature, Field(description=TEMPERATURE)]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class JSDLevel(Section):
    """Prediction level: generalised Jensen-Shannon divergence, times T²."""

    level: Literal["prediction"]
    loss: Literal["jsd"]
    temperature: Annotated[ScheduledTemperature, Field(description=TEMPERATURE)]
    beta: Annotated[Fraction, Field(description="share of the teacher; 0 is kl, 1 is reverse_kl")]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class DKDLevel(Section):
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


class DISTLevel(Section):
    """Prediction level: correlation of teacher's and student's probabilities; from 3 classes on."""

    level: Literal["prediction"]
    loss: Literal["dist"]
    temperature: Annotated[ScheduledTemperature, Field(description=TEMPERATURE)]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class LogitsMSELevel(Section):
    """Prediction level: mean squared difference of the logits."""

    level: Literal["prediction"]
    loss: Literal["logits_mse"]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class HiddenLevel(Section):
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


class DirectionLevel(Section):
    """Hidden level: what does not mind the scale of a state."""

    level: Literal["hidden"]
    loss: Annotated[
        Literal["cosine", "layer_norm_mse"],
        Field(description="one minus the cosine, or squared error after a layer norm of both"),
    ]
    layer_map: StateMap
    projection: Projection
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class VectorLevel(Section):
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


class ContrastiveLevel(Section):
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


class GramLevel(Section):
    """Hidden level: products of a matched layer's channels with those of the next one (FSP)."""

    level: Literal["hidden"]
    loss: Literal["gram"]
    layer_map: LayerMap
    projection: Projection
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class GeometryLevel(Section):
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


class AttentionMSELevel(Section):
    """Attention level: mean squared error of the scores before the softmax, over token pairs."""

    level: Literal["attention"]
    loss: Literal["mse"]
    layer_map: PlannedMap
    heads: Annotated[Literal["each", "average"], Field(description=HEADS)]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


class AttentionKLLevel(Section):
    """Attention level: KL divergence of the attention distributions, per real query token."""

    level: Literal["attention"]
    loss: Literal["kl"]
    layer_map: LayerMap
    heads: Annotated[Literal["each", "average"], Field(description=HEADS)]
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]


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
    weight: Annotated[ScheduledWeight, Field(description=WEIGHT)]

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
ProjectedLevel = HiddenLevel | DirectionLevel | VectorLevel | ContrastiveLevel | GramLevel
AttentionLevel = AttentionMSELevel | AttentionKLLevel
LayerLevel = (
    HiddenLevel
    | DirectionLevel
    | VectorLevel
    | ContrastiveLevel
    | GramLevel
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
    | Annotated[VectorLevel, Tag("hidden.cls_mse")]
    | Annotated[VectorLevel, Tag("hidden.pooled_mse")]
    | Annotated[ContrastiveLevel, Tag("hidden.contrastive")]
    | Annotated[GramLevel, Tag("hidden.gram")]
    | Annotated[GeometryLevel, Tag("hidden.nst")]
    | Annotated[GeometryLevel, Tag("hidden.cka")]
    | Annotated[GeometryLevel, Tag("hidden.procrustes")]
    | Annotated[GeometryLevel, Tag("hidden.rkd_distance")]
    | Annotated[GeometryLevel, Tag("hidden.rkd_angle")]
    | Annotated[AttentionMSELevel, Tag("attention.mse")]
    | Annotated[AttentionKLLevel, Tag("attention.kl")]
    | Annotated[RelationLevel, Tag("relation.kl")],
    Discriminator(_level_and_loss),
]


@dataclass(frozen=True)
class Matching:
    """The layers that a level reads, and what its count is multiplied by.

    `fixed` are the pairs of a map that no example and no epoch decides, else none.
    """

    layer_map: ChosenMap | None
    own: tuple[int, ...]
    theirs: tuple[int, ...]
    fixed: Pairs

    @property
    def parts(self) -> int:
        """In how many comparisons each element is counted."""
        if self.layer_map is None:
            return len(self.fixed)
        counted = {"transport": 1, "nearest": len(self.theirs)}
        return counted.get(self.layer_map, len(self.own))

    def pairs(self, *, seed: int, epoch: int) -> Pairs:
        """The pairs of an epoch, for a map of pairs or `random`."""
        if self.layer_map == "random":
            return drawn(len(self.own), len(self.theirs), seed=seed, epoch=epoch)
        return self.fixed


def match(level: LayerLevel, student_layers: int, teacher_layers: int) -> Matching:
    """The layers that a level compares.

    Layer 0, the embedding output, has no attention, and its first token is the same for all texts:
    a named map leaves it out there, and maps that choose leave it out everywhere. Raises
    ValueError, naming the pair, for a layer that is not there, and for a student deeper than its
    teacher where the map goes through all layers.
    """
    if level.loss == "gram" and level.layer_map == "random" and student_layers < 2:
        raise ValueError(f"{_NEXT_LAYER}: a student of 1 has none")
    if level.layer_map in ("random", "mixture", "transport", "nearest"):
        within = uniform(student_layers, teacher_layers)[1:]
        own = tuple(range(1, student_layers + 1))
        theirs = tuple(range(1, teacher_layers + 1))
        if level.layer_map == "nearest":
            theirs = tuple(teacher for _, teacher in within)
        return Matching(level.layer_map, own, theirs, ())
    found = pairs(level.layer_map, student_layers, teacher_layers)
    if level.level != "hidden" or level.loss == "cls_mse":
        without = [list(pair) for pair in found if min(pair) == 0]
        if without and not isinstance(level.layer_map, str):
            what = level.level if level.level != "hidden" else "first token that differs by text"
            raise ValueError(f"layer 0, the embeddings, has no {what}: layer map pair {without[0]}")
        found = tuple(pair for pair in found if min(pair) > 0)
    if level.loss == "gram" and len(found) < 2:
        raise ValueError(f"{_NEXT_LAYER}: {len(found)} is too few")
    own, theirs = (tuple(sorted(set(side))) for side in zip(*found, strict=True))
    return Matching(None, own, theirs, found)


def level_names(levels: tuple[Level, ...]) -> tuple[str, ...]:
    """Their names in metrics: `hidden.mse`; where that is not one alone, `hidden.mse uniform`.

    Raises ValueError for two of one name.
    """
    short = [f"{level.level}.{level.loss}" for level in levels]
    names = tuple(
        name if short.count(name) == 1 else _with_map(name, level)
        for name, level in zip(short, levels, strict=True)
    )
    if len(set(names)) != len(names):
        raise ValueError(f"a phase holds each level once, found {', '.join(names)}")
    return names


def _with_map(name: str, level: Level) -> str:
    found = getattr(level, "layer_map", "")
    return f"{name} {found if isinstance(found, str) else [list(pair) for pair in found]}".strip()
