"""The sections of a recipe that are about training: the teacher, its cache, the student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.fields import (
    Fraction,
    OpenFraction,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Text,
    Weight,
)
from tasks.kd.recipe.phases import Phase
from tasks.kd.recipe.streams import STREAM
from tasks.kd.recipe.student import Student
from tasks.kd.recipe.teachers import EnsembleRule


class Optimizer(Section):
    """AdamW and its schedule; `batch_examples` holds whatever the number of processes."""

    batch_examples: Annotated[Positive, Field(description="examples per step, over all processes")]
    micro_batch_tokens: Annotated[
        Positive, Field(description="padded tokens per backward pass at most; bounds memory")
    ]
    weight_decay: Annotated[Weight, Field(description="not applied to biases and norms")]
    warmup_fraction: Annotated[Fraction, Field(description="share of a phase's steps")]
    schedule: Annotated[Literal["linear", "cosine", "constant"], Field(description="after warm-up")]
    max_grad_norm: Annotated[PositiveFloat, Field(description="gradients are clipped to this norm")]
    ema_decay: Annotated[
        OpenFraction | None,
        Field(
            description="of a moving average of the weights, begun anew in each phase, or null; "
            "with it the average is evaluated, kept as best and exported"
        ),
    ]
    stop_after_epochs: Annotated[
        Positive | None,
        Field(
            description="epochs of the last phase in a row without a better dev accuracy after "
            "which the training ends, or null for all epochs"
        ),
    ]
    max_non_finite: Annotated[
        Positive,
        Field(
            description="updates in a row refused for a loss or gradient that is not finite, "
            "after which the training stops"
        ),
    ]
    seed: Annotated[Seed, Field(description="of order, dropout and new weights")]


class TrainTeacher(Section):
    """The teacher: fine-tuned here, or given and only checked; alone or with others."""

    mode: Annotated[
        Literal["fine_tune", "given"],
        Field(description="given: fetch_sources.teacher is a tuned classifier, left as it is"),
    ]
    labels: Annotated[
        dict[Text, Text] | None,
        Field(
            description="the given teacher's label names by those of the data "
            "(`LABEL_0: negative`), or null where they are the same"
        ),
    ]
    min_lead: Annotated[
        Fraction,
        Field(
            description="a given teacher that removes a smaller share of the errors that the best "
            "constant answer makes on the dev split is refused"
        ),
    ]
    ensemble: Annotated[
        EnsembleRule | None,
        Field(description="how the teachers of fetch_sources teach together, or null for one"),
    ]
    layers: Annotated[
        Positive,
        Field(
            description="depth of the teacher whose layers are matched; checked against its "
            "config.json"
        ),
    ]
    hidden_size: Annotated[Positive, Field(description="its width; checked likewise")]
    attention_heads: Annotated[Positive, Field(description="per layer; checked likewise")]
    intermediate_size: Annotated[
        Positive, Field(description="width of its feed-forward part; checked likewise")
    ]
    epochs: Annotated[Positive, Field(description="passes over the training split (fine_tune)")]
    learning_rate: Annotated[PositiveFloat, Field(description="peak")]
    optimizer: Optimizer


class CacheTeacher(Section):
    """What of the teacher is kept on disk, and how."""

    mode: Annotated[
        Literal["cache", "live", "auto"],
        Field(
            description="cache: on disk; live: the teacher is run in each step; auto: whichever is "
            "measured to be quicker over the recipe's epochs"
        ),
    ]
    streams: Annotated[
        tuple[Annotated[str, Field(pattern=STREAM)], ...],
        Field(
            min_length=1,
            description="what the levels read: `logits`, `hidden.<layer>` (layer 0, the "
            "embeddings, included), `attention.<layer>`, `relation.<layer>`; `stillhouse cache "
            "plan` names them, what of them is stored, and what it costs",
        ),
    ]
    codec: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"],
        Field(
            description="of the stored hidden states; int8 is on standardised channels; a "
            "`mixture` of layers needs float32 or float16"
        ),
    ]
    max_relative_error: Annotated[
        PositiveFloat,
        Field(description="a layer whose measured codec error is larger is kept in float32"),
    ]
    recompute: Annotated[
        Literal["projections", "layers"],
        Field(
            description="projections: attention and relations are computed from the layer's input; "
            "layers: such a layer's output is computed as well, instead of storing it too"
        ),
    ]
    batch_tokens: Annotated[Positive, Field(description="padded tokens per forward pass")]
    shard_mib: Annotated[
        Positive, Field(description="size at which a stream's shard is closed, were it float32")
    ]
    quota_gib: Annotated[PositiveFloat, Field(description="a larger cache is refused beforehand")]
    audit_examples: Annotated[
        Positive, Field(description="records recomputed alone after writing and compared")
    ]


class TrainStudent(Section):
    """The student, its levels and its training."""

    student: Student
    optimizer: Optimizer
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _phases_are_named_apart(self) -> TrainStudent:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phases must have different names, found {', '.join(names)}")
        return self
