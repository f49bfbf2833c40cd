"""The student's shape, and what its weights start from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.fields import Positive, Section

Layers = Annotated[
    Literal["uniform", "first", "last"] | tuple[int, ...],
    Field(description="which teacher layers, 1-based, one per student layer"),
]


class InitialTeacherLayers(Section):
    """Embeddings, head and chosen layers are copied from the teacher (same width)."""

    kind: Literal["teacher_layers"]
    layers: Layers


class InitialWidthReduction(Section):
    """Embeddings, head and chosen layers of the teacher, made narrower."""

    kind: Literal["width_reduction"]
    method: Annotated[
        Literal["slices", "pca"],
        Field(
            description="slices: the channels that weigh most are kept; pca: states are projected "
            "on their principal components; heads and feed-forward neurons are chosen by what "
            "they write, with either"
        ),
    ]
    layers: Layers
    examples: Annotated[
        Positive | None,
        Field(
            description="training texts whose hidden states say what weighs most, or null for an "
            "estimate from the weights alone"
        ),
    ]


class InitialRandom(Section):
    """New weights, from the recipe's seed."""

    kind: Literal["random"]
    embeddings: Annotated[
        Literal["new", "pca"],
        Field(
            description="new: like the rest; pca: the teacher's, of all its words, projected on "
            "their principal components (copied where the widths are equal)"
        ),
    ]


class InitialCheckpoint(Section):
    """The encoder that `fetch_sources.student` brings; its head too where the labels are equal."""

    kind: Literal["checkpoint"]


Initial = Annotated[
    InitialTeacherLayers | InitialWidthReduction | InitialRandom | InitialCheckpoint,
    Field(discriminator="kind", description="weights"),
]


class Student(Section):
    """The student's shape and family. Its vocabulary and labels are the teacher's."""

    family: Annotated[
        Literal[
            "bert",
            "roberta",
            "xlm-roberta",
            "distilbert",
            "electra",
            "mpnet",
            "modernbert",
            "deberta-v2",
        ]
        | None,
        Field(description="`model_type` of its encoder, or null for the teacher's"),
    ]
    layers: Annotated[Positive, Field(description="depth, embeddings not counted")]
    hidden_size: Annotated[Positive, Field(description="width; a multiple of attention_heads")]
    attention_heads: Annotated[Positive, Field(description="per layer")]
    intermediate_size: Annotated[Positive, Field(description="width of the feed-forward part")]
    initial: Initial

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Student:
        if self.hidden_size % self.attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of "
                f"attention_heads {self.attention_heads}"
            )
        if self.family == "modernbert" and self.hidden_size // self.attention_heads % 2:
            raise ValueError(
                f"attention heads {self.hidden_size // self.attention_heads} wide: modernbert "
                "rotates pairs of a head's channels, so that its heads need an even width"
            )
        return self

    @model_validator(mode="after")
    def _layers_are_those_of_one_family(self) -> Student:
        if not isinstance(self.initial, InitialTeacherLayers | InitialWidthReduction):
            return self
        if self.family is not None:
            raise ValueError(
                f"initial.kind {self.initial.kind} takes the teacher's layers, which are of its "
                f"own family: write `family: null` instead of {self.family}, or another initial"
            )
        named = self.initial.layers
        if isinstance(named, tuple) and len(named) != self.layers:
            raise ValueError(
                f"initial.layers names {len(named)} teacher layers, the student has {self.layers}"
            )
        return self
