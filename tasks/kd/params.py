"""A recipe, typed: one frozen model per section of `params/<recipe>.yaml`.

Sections are named after the stages that read them, and each stage reads its own alone, so that
DVC reruns what a change touches and nothing more. No field has a default: what a run does stands
in its file. `params/README.md` is generated from these models.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.architectures import ATTENTION_FAMILIES
from tasks.kd.cache.streams import STREAM, layer_of
from tasks.kd.ensemble_sections import MAIN, MEMBER, EnsembleRule, WeightedLogits
from tasks.kd.layers import chosen
from tasks.kd.levels import RelationLevel
from tasks.kd.phases import Phase, layer_levels, streams_read
from tasks.kd.sections import (
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
from tasks.kd.source_sections import DataSource, ModelSource, PathModel
from tasks.kd.student_sections import (
    InitialCheckpoint,
    InitialRandom,
    InitialTeacherLayers,
    InitialWidthReduction,
    Student,
)

RECIPE_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"
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
        int, Field(ge=8, le=8192, description="longer texts are cut to this many tokens")
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


class Recipe(Section):
    """One student, from source text to the gate."""

    description: Annotated[Text, Field(description="one line, shown by `stillhouse status`")]
    fetch_sources: FetchSources
    prepare_data: PrepareData
    train_teacher: TrainTeacher
    cache_teacher: CacheTeacher
    train_student: TrainStudent
    export_student: ExportStudent
    evaluate_student: EvaluateStudent
    register_: Annotated[Register, Field(alias="register")]
    gate: Gate
    compute: Compute

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        faults = [
            *self._text_faults(),
            *self._ensemble_faults(),
            *self._stream_faults(),
            *self._codec_faults(),
            *self._initial_faults(),
            *self._width_faults(),
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _text_faults(self) -> Iterator[str]:
        """Texts that would be made and kept for nobody."""
        if self.prepare_data.random_texts and not any(
            phase.reads_unlabelled for phase in self.train_student.phases
        ):
            yield (
                "prepare_data.random_texts: only a phase without a prediction level reads them, "
                "and train_student.phases has none; write 0, or add such a phase"
            )

    def _ensemble_faults(self) -> Iterator[str]:
        """Teachers that nobody listens to, and rules about teachers that are not there."""
        if MAIN in self.fetch_sources.more_teachers:
            yield f"fetch_sources.more_teachers: {MAIN} is the name of fetch_sources.teacher"
        names, rule = {MAIN, *self.fetch_sources.more_teachers}, self.train_teacher.ensemble
        if rule is None:
            if len(names) > 1:
                yield "fetch_sources.more_teachers needs a rule in train_teacher.ensemble"
            return
        known = f"the teachers are {', '.join(sorted(names))}"
        if len(names) == 1:
            yield "train_teacher.ensemble needs fetch_sources.more_teachers"
        elif rule.layers not in names:
            yield f"train_teacher.ensemble.layers: no {rule.layers}; {known}"
        elif isinstance(rule, WeightedLogits) and set(rule.weights) != names:
            yield f"train_teacher.ensemble.weights: {', '.join(sorted(rule.weights))}; {known}"

    def _stream_faults(self) -> Iterator[str]:
        """What the cache would lack, and what the teacher does."""
        layers, streams = self.train_teacher.layers, self.cache_teacher.streams
        try:
            if missing := [stream for stream in self.streams_read if stream not in streams]:
                yield (
                    f"cache_teacher.streams lacks {', '.join(missing)}, read by a level; "
                    f"the levels read [{', '.join(self.streams_read)}]"
                )
        except ValueError as error:
            yield f"train_student.phases: {error}"
        if len(set(streams)) != len(streams):
            yield "cache_teacher.streams names a stream twice"
        for stream in streams:
            if layer_of(stream) > layers:
                yield f"cache_teacher.streams: {stream}, but the teacher has {layers} layers"

    def _codec_faults(self) -> Iterator[str]:
        """A codec that is too coarse for a level."""
        if self.cache_teacher.mode == "live" or self.cache_teacher.codec in ("float32", "float16"):
            return
        levels = layer_levels(self.train_student.phases)
        if any(level.layer_map == "mixture" for level in levels):
            yield (
                "cache_teacher.codec: the states themselves weigh a mixture of layers, and int8 "
                "moved its gradients by 9 %; write float32, or float16 (1.7 %)"
            )

    def _initial_faults(self) -> Iterator[str]:
        """What keeps the student's weights from starting as the recipe says."""
        student, given = self.train_student.student, self.fetch_sources.student
        place = "train_student.student.initial"
        if isinstance(student.initial, InitialCheckpoint) and given is None:
            yield f"{place}: a checkpoint needs its source in fetch_sources.student, found null"
        if not isinstance(student.initial, InitialCheckpoint) and given is not None:
            yield (
                f"fetch_sources.student: a model that kind {student.initial.kind} makes no use of; "
                f"write null here, or `kind: checkpoint` in {place}"
            )
        yield from (f"{place}: {fault}" for fault in self._size_faults())
        levels = {level.level for level in layer_levels(self.train_student.phases)}
        if student.family not in (None, *ATTENTION_FAMILIES) and (levels - {"hidden"}):
            yield (
                f"train_student.student.family: {student.family} has no attention that the levels "
                "attention and relation could read; use prediction and hidden"
            )

    def _size_faults(self) -> Iterator[str]:
        """Where the teacher's weights don't fit the student that starts from them."""
        teacher, student = self.train_teacher, self.train_student.student
        initial = student.initial
        if isinstance(initial, InitialRandom):
            if initial.embeddings == "pca" and student.hidden_size > teacher.hidden_size:
                yield (
                    f"embeddings of width {teacher.hidden_size} have no {student.hidden_size} "
                    "principal components; use `embeddings: new` or a hidden_size up to theirs"
                )
            return
        if isinstance(initial, InitialCheckpoint):
            return
        for name in ("hidden_size", "attention_heads", "intermediate_size"):
            own, theirs = getattr(student, name), getattr(teacher, name)
            if isinstance(initial, InitialTeacherLayers) and own != theirs:
                yield (
                    f"layers can be copied from the teacher only at its {name} {theirs}, "
                    f"the student's is {own}"
                )
            elif own > theirs:
                yield f"{name} {own} can't be reduced from the teacher's {theirs}"
        own, theirs = (m.hidden_size // m.attention_heads for m in (student, teacher))
        if isinstance(initial, InitialWidthReduction) and own > theirs:
            yield (
                f"attention heads {own} wide can't be reduced from the teacher's, {theirs} wide; "
                "use more heads or a smaller hidden_size"
            )
        try:
            chosen(initial.layers, student.layers, teacher.layers)
        except ValueError as error:
            yield str(error)

    def _width_faults(self) -> Iterator[str]:
        """Levels between widths and heads that do not fit."""
        teacher, student = self.train_teacher, self.train_student.student
        own, theirs = student.hidden_size, teacher.hidden_size
        for level in dict.fromkeys(layer_levels(self.train_student.phases)):
            name = f"train_student.phases: {level.level}.{level.loss}"
            if level.level == "hidden":
                if own != theirs and getattr(level, "projection", "") == "none":
                    yield f"{name} from width {own} to {theirs} needs `projection: linear`"
            elif isinstance(level, RelationLevel):
                for whose, width in (("student", own), ("teacher", theirs)):
                    if width % level.relation_heads:
                        yield (
                            f"{name}: relation_heads {level.relation_heads} does not divide "
                            f"the {whose}'s width {width}"
                        )
            elif level.heads == "each" and student.attention_heads != teacher.attention_heads:
                yield (
                    f"{name}: heads: each needs equal attention_heads, the student has "
                    f"{student.attention_heads} and the teacher {teacher.attention_heads}; "
                    "set `heads: average` or use the relation level"
                )

    @property
    def epochs_read(self) -> float:
        """Passes over all texts of the cache, in phases whose levels read the teacher."""
        more = self.prepare_data.random_texts
        passes = sum(
            phase.passes(more)
            for phase in self.train_student.phases
            if any(level.loss != "labels" for level in phase.levels)
        )
        return passes / (1 + more)

    @property
    def streams_read(self) -> tuple[str, ...]:
        """The teacher's streams that the levels read. Raises ValueError as `streams_read` does."""
        student = self.train_student
        return streams_read(student.phases, student.student.layers, self.train_teacher.layers)
