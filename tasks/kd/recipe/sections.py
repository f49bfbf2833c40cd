"""The sections of a recipe, typed: one frozen model per section of `params/<recipe>.yaml`.

Sections are named after the stages that read them, and each stage reads its own alone, so that
DVC reruns what a change touches and nothing more. No field has a default: what a run does stands
in its file. `params/README.md` is generated from these models; `recipe.py` holds the whole.
"""

from __future__ import annotations

import os.path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.fields import (
    Fraction,
    NotNegative,
    OpenFraction,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Text,
    Weight,
)
from tasks.kd.recipe.phases import Phase
from tasks.kd.recipe.sources import DataSource, ModelSource, PathModel
from tasks.kd.recipe.streams import STREAM
from tasks.kd.recipe.student import Student
from tasks.kd.recipe.teachers import MEMBER, EnsembleRule

RECIPE_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"
LONGEST_TEXT = 8192  # tokens
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


# --- fetch_sources -------------------------------------------------------------------------------


class FetchSources(Section):
    """Where the text and the teacher's weights come from."""

    data: Annotated[DataSource, Field(description="labelled text with its own test split")]
    teacher: Annotated[ModelSource, Field(description="the encoder that the teacher starts from")]
    student: Annotated[
        ModelSource | None,
        Field(
            description="the encoder that the student starts from (`initial.kind: checkpoint`), "
            "with the teacher's vocabulary; null for all other starts"
        ),
    ]
    more_teachers: Annotated[
        dict[Annotated[str, Field(pattern=MEMBER)], ModelSource],
        Field(
            description="by name, classifiers tuned to the same labels, of the teacher's "
            "vocabulary, that teach together with it (`train_teacher.ensemble`); {} for none; "
            "those of this repository lie in one folder, all that DVC sees change"
        ),
    ]

    @model_validator(mode="after")
    def _further_teachers_lie_in_one_folder(self) -> FetchSources:
        if self.more_folder == "":
            raise ValueError("more_teachers of kind path must lie in one folder of the repository")
        return self

    @property
    def more_folder(self) -> str | None:
        """The folder that holds all local further teachers; None if there are none."""
        sources = self.more_teachers.values()
        folders = [x.folder for x in sources if isinstance(x, PathModel)]
        return os.path.commonpath(folders) if folders else None


# --- prepare_data --------------------------------------------------------------------------------


class PrepareData(Section):
    """From raw tables to token ids, labels, stable example ids and splits."""

    text_column: Annotated[Text, Field(description="column with the text")]
    label_column: Annotated[Text, Field(description="column with the label")]
    max_length_tokens: Annotated[
        int, Field(ge=8, le=LONGEST_TEXT, description="longer texts are cut to this many tokens")
    ]
    dev_fraction: Annotated[
        OpenFraction, Field(description="share of the training split kept aside, stratified")
    ]
    train_examples: Annotated[
        Positive | None,
        Field(description="stratified sub-sample of the training split, or null for all of it"),
    ]
    on_overlap: Annotated[
        Literal["drop_from_train", "refuse"],
        Field(description="what to do with a training text that is also in the test split"),
    ]
    min_train_examples: Annotated[
        Positive,
        Field(
            description="fewer usable rows in the training file are refused: what arrives is not "
            "what it was"
        ),
    ]
    on_unreadable: Annotated[
        Literal["refuse", "replace", "drop"],
        Field(
            description="what to do with a text that no tokenizer can encode (half of a surrogate "
            "pair): refuse names its row, replace puts U+FFFD there, drop leaves the row out; "
            "both are counted"
        ),
    ]
    max_unknown_fraction: Annotated[
        Fraction,
        Field(
            description="largest share of unknown tokens among those of the training texts; more "
            "is refused"
        ),
    ]
    random_texts: Annotated[
        NotNegative,
        Field(
            description="for each training text so many of random tokens, as long as it: "
            "unlabelled, read by phases without a prediction level, so that layers are matched on "
            "words that the training texts lack; the cache grows by as much; 0 for none"
        ),
    ]
    seed: Annotated[
        Seed, Field(description="of the sub-sample, the dev split and the random texts")
    ]

    @model_validator(mode="after")
    def _a_label_is_no_text(self) -> PrepareData:
        if self.text_column == self.label_column:
            raise ValueError("text_column and label_column must be two columns")
        return self


# --- training, of the teacher and of the student -------------------------------------------------


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


# --- export, evaluation, registry, gate ----------------------------------------------------------


class ExportStudent(Section):
    """ONNX files: float32 and int8."""

    serve: Annotated[
        Literal["float32", "int8"], Field(description="the file that is evaluated and registered")
    ]
    max_logit_difference: Annotated[
        PositiveFloat, Field(description="float32 ONNX against torch, largest absolute")
    ]
    min_int8_agreement: Annotated[
        Fraction, Field(description="share of equal predictions, int8 against float32")
    ]
    parity_examples: Annotated[Positive, Field(description="dev examples compared")]


class EvaluateStudent(Section):
    """The test split: teacher against student."""

    bootstrap_resamples: Annotated[
        int, Field(ge=200, description="draws of the test split, teacher and student together")
    ]
    confidence: Annotated[OpenFraction, Field(description="of the intervals, for example 0.95")]
    latency_examples: Annotated[
        int, Field(ge=20, description="test texts timed one by one, tokenizer included, one thread")
    ]
    similarity_examples: Annotated[
        int, Field(ge=16, description="test texts used for the layer-by-layer similarity")
    ]
    seed: Annotated[Seed, Field(description="of resampling and of the choice of texts")]


class Register(Section):
    """Where the run and the model version go in MLflow."""

    experiment: Annotated[
        str, Field(pattern=MODEL_NAME, description="MLflow experiment of the run")
    ]
    model: Annotated[str, Field(pattern=MODEL_NAME, description="name of the registered model")]


class Gate(Section):
    """What a candidate must show before it may become champion. Each rule is checked."""

    min_accuracy: Annotated[
        Fraction,
        Field(description="lower confidence bound of the student's own accuracy, whatever else"),
    ]
    min_lead: Annotated[
        Fraction,
        Field(
            description="lower confidence bound of the share of errors that the student removes "
            "of those that the best constant answer makes: 0 is chance, 1 is perfect"
        ),
    ]
    min_retention: Annotated[
        Fraction,
        Field(description="lower confidence bound of student accuracy / teacher accuracy"),
    ]
    max_accuracy_drop: Annotated[
        Fraction,
        Field(
            description="non-inferiority margin: the lower confidence bound of candidate minus "
            "champion accuracy, on the same examples, must not be below minus this"
        ),
    ]
    confidence: Annotated[OpenFraction, Field(description="of both one-sided bounds")]
    min_examples: Annotated[Positive, Field(description="fewer test examples decide nothing")]
    max_size_mib: Annotated[PositiveFloat, Field(description="of the served ONNX file")]
    max_latency_p95_ms: Annotated[PositiveFloat, Field(description="one text, one thread")]


class Compute(Section):
    """How the machine is used. Not tracked: it changes nothing but rounding and dropout's draws."""

    processes: Annotated[int, Field(ge=1, le=64, description="of a training, on each machine")]
    threads: Annotated[Positive | None, Field(description="per process, or null for all cores")]
    machines: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="that train together; the stage is started on each of them, with the same "
            "artifacts, and the first keeps checkpoints and results",
        ),
    ]
    machine_rank: Annotated[
        int | None,
        Field(ge=0, description="which of several machines this is, 0 the first; null if alone"),
    ]
    rendezvous: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$",
            description="`host:port` of the first of several machines, free there; null if alone",
        ),
    ]
    peer_timeout_s: Annotated[
        PositiveFloat,
        Field(
            description="seconds that a process waits for the others before the training stops; "
            "longer than a step, an evaluation and a checkpoint"
        ),
    ]
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"],
        Field(description="of the student's passes; the levels stay float32; fp16 needs a GPU"),
    ]
    gradient_checkpointing: Annotated[
        bool, Field(description="layers are computed again in the backward pass: less memory")
    ]
    compile: Annotated[
        bool,
        Field(
            description="torch.compile for the trained model's layers; not with levels that read "
            "attention or relations"
        ),
    ]
    grad_norm_every: Annotated[
        Positive | None,
        Field(description="steps between measurements of each level's own gradient norm, or null"),
    ]
    profile_step: Annotated[
        Positive | None,
        Field(description="the step of which .work/profiles gets a profile, or null"),
    ]
    checkpoint_every_s: Annotated[
        PositiveFloat, Field(description="seconds between checkpoints of a training")
    ]
    live_curves_every_s: Annotated[
        PositiveFloat | None,
        Field(
            description="seconds between looks at a running training whose figures go to MLflow at "
            "once, in a run of their own; null: they go there when the stages are done"
        ),
    ]
    copies_gib: Annotated[
        PositiveFloat,
        Field(description="kept on this machine of a store elsewhere (STILLHOUSE_STORE is a URL)"),
    ]

    @model_validator(mode="after")
    def _several_machines_know_where_they_meet(self) -> Compute:
        if self.machines == 1:
            if self.machine_rank is not None or self.rendezvous is not None:
                raise ValueError("machine_rank and rendezvous must be null where machines is 1")
        elif self.machine_rank is None or self.rendezvous is None:
            raise ValueError(f"machines {self.machines} needs machine_rank and rendezvous")
        elif self.machine_rank >= self.machines:
            raise ValueError(
                f"machine_rank {self.machine_rank} is not below machines {self.machines}"
            )
        return self
