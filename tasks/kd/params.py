"""A recipe, typed: one frozen model per section of `params/<recipe>.yaml`.

Sections are named after the stages that read them, and each stage reads its own alone, so that
DVC reruns what a change touches and nothing more. No field has a default: what a run does stands
in its file. `params/README.md` is generated from these models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from tasks.kd.layers import chosen, pairs

RECIPE_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
WEIGHT = "of this level in the step's loss; levels are means, per example or per token"
STREAM = r"^(logits|hidden\.(0|[1-9][0-9]{0,2}))$"

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
OpenFraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """What all parts of a recipe share: frozen, strictly typed, no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


# --- fetch_sources -------------------------------------------------------------------------------


class FileFormat(Section):
    """How a table on disk is read."""

    kind: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet"],
        Field(description="csv is quoted as usual; tsv is split at tabs and never quoted"),
    ]
    skip_lines: Annotated[
        int, Field(ge=0, description="lines to leave out right after the header line (csv, tsv)")
    ]

    @model_validator(mode="after")
    def _only_text_has_lines_to_skip(self) -> FileFormat:
        if self.skip_lines and self.kind in ("jsonl", "parquet"):
            raise ValueError(f"a {self.kind} file has no header line: skip_lines must be 0")
        return self


class WheelData(Section):
    """A data set inside a Python wheel: read as a zip, never installed or executed."""

    kind: Literal["wheel"]
    package: Annotated[Text, Field(description="name of the package that ships the data")]
    version: Annotated[Text, Field(description="its exact version")]
    sha256: Annotated[Sha256, Field(description="digest of the wheel file")]
    train: Annotated[Text, Field(description="path of the training split inside the wheel")]
    test: Annotated[Text, Field(description="path of the test split inside the wheel")]
    format: FileFormat


class HubData(Section):
    """A data set on the Hugging Face hub, by id and revision; code of the hub is never run."""

    kind: Literal["hub"]
    id: Annotated[Text, Field(description="for example `ag_news`")]
    subset: Annotated[str | None, Field(description="the data set's configuration, or null")]
    revision: Annotated[Text, Field(description="a commit, better than a branch")]
    train: Annotated[Text, Field(description="name of the training split")]
    test: Annotated[Text, Field(description="name of the test split")]


class PathData(Section):
    """Files of this repository, DVC-tracked (`dvc add`, `dvc import`) or not."""

    kind: Literal["path"]
    train: Annotated[Text, Field(description="path of the training file, from the root")]
    test: Annotated[Text, Field(description="path of the test file, from the root")]
    format: FileFormat


class WheelModel(Section):
    """A model folder inside a Python wheel: read as a zip, never installed or executed."""

    kind: Literal["wheel"]
    package: Annotated[Text, Field(description="name of the package that ships the model")]
    version: Annotated[Text, Field(description="its exact version")]
    sha256: Annotated[Sha256, Field(description="digest of the wheel file")]
    folder: Annotated[Text, Field(description="the model's folder inside the wheel")]


class HubModel(Section):
    """A model on the Hugging Face hub, by id and revision; safetensors only, no code of the hub."""

    kind: Literal["hub"]
    id: Annotated[Text, Field(description="for example `bert-base-uncased`")]
    revision: Annotated[Text, Field(description="a commit, better than a branch")]


class PathModel(Section):
    """A model folder of this repository (config, safetensors, tokenizer), DVC-tracked or not."""

    kind: Literal["path"]
    folder: Annotated[Text, Field(description="path of the folder, from the root")]


DataSource = Annotated[WheelData | HubData | PathData, Field(discriminator="kind")]
ModelSource = Annotated[WheelModel | HubModel | PathModel, Field(discriminator="kind")]


class FetchSources(Section):
    """Where the text and the teacher's weights come from."""

    data: Annotated[DataSource, Field(description="labelled text with its own test split")]
    teacher: Annotated[ModelSource, Field(description="the encoder that the teacher starts from")]


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
    seed: Annotated[Seed, Field(description="of the sub-sample and the dev split")]


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
    seed: Annotated[Seed, Field(description="of order, dropout and new weights")]


class TrainTeacher(Section):
    """The teacher: fine-tuned here, or given and only checked."""

    mode: Annotated[
        Literal["fine_tune", "given"],
        Field(description="given: fetch_sources.teacher is a tuned classifier, left as it is"),
    ]
    layers: Annotated[Positive, Field(description="its depth; checked against its config.json")]
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

    streams: Annotated[
        tuple[Annotated[str, Field(pattern=STREAM)], ...],
        Field(
            min_length=1,
            description="`logits` and `hidden.<layer>` (layer 0, the embeddings, included)",
        ),
    ]
    codec: Annotated[
        Literal["float32", "float16", "bfloat16"], Field(description="of the hidden streams")
    ]
    max_relative_error: Annotated[
        PositiveFloat,
        Field(description="a layer whose measured codec error is larger is kept in float32"),
    ]
    batch_tokens: Annotated[Positive, Field(description="padded tokens per forward pass")]
    shard_mib: Annotated[Positive, Field(description="size at which a shard is closed")]
    quota_gib: Annotated[PositiveFloat, Field(description="a larger cache is refused beforehand")]
    audit_examples: Annotated[
        Positive, Field(description="records recomputed alone after writing and compared")
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
    temperature: Annotated[PositiveFloat, Field(description="softmax temperature T")]
    weight: Annotated[Weight, Field(description=WEIGHT)]


class HiddenLevel(Section):
    """Hidden level: mean squared error of hidden states over the real tokens."""

    level: Literal["hidden"]
    loss: Literal["mse"]
    layer_map: Annotated[
        Literal["uniform", "last"] | Annotated[tuple[tuple[int, int], ...], Field(min_length=1)],
        Field(description="uniform, last, or pairs [student layer, teacher layer]; 0 = embeddings"),
    ]
    standardise: Annotated[
        bool, Field(description="divide each channel's error by the teacher's deviation there")
    ]
    projection: Annotated[
        Literal["none", "linear"],
        Field(description="linear: learned, one per matched layer; needed if widths differ"),
    ]
    weight: Annotated[Weight, Field(description=WEIGHT)]


def _level_and_loss(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('level')}.{value.get('loss')}"
    return f"{value.level}.{value.loss}"


Level = Annotated[
    Annotated[LabelsLevel, Tag("prediction.labels")]
    | Annotated[KLLevel, Tag("prediction.kl")]
    | Annotated[HiddenLevel, Tag("hidden.mse")],
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


class InitialTeacherLayers(Section):
    """Embeddings, head and chosen layers are copied from the teacher (same width)."""

    kind: Literal["teacher_layers"]
    layers: Annotated[
        Literal["uniform", "first", "last"] | tuple[int, ...],
        Field(description="which teacher layers, 1-based, one per student layer"),
    ]


class InitialRandom(Section):
    """New weights, from the recipe's seed."""

    kind: Literal["random"]


class Student(Section):
    """The student's shape. Its family, vocabulary and labels are the teacher's."""

    layers: Annotated[Positive, Field(description="depth, embeddings not counted")]
    hidden_size: Annotated[Positive, Field(description="width; a multiple of attention_heads")]
    attention_heads: Annotated[Positive, Field(description="per layer")]
    intermediate_size: Annotated[Positive, Field(description="width of the feed-forward part")]
    initial: Annotated[
        InitialTeacherLayers | InitialRandom, Field(discriminator="kind", description="weights")
    ]

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Student:
        if self.hidden_size % self.attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of "
                f"attention_heads {self.attention_heads}"
            )
        named = self.initial.layers if isinstance(self.initial, InitialTeacherLayers) else ""
        if isinstance(named, tuple) and len(named) != self.layers:
            raise ValueError(
                f"initial.layers names {len(named)} teacher layers, the student has {self.layers}"
            )
        return self


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

    processes: Annotated[int, Field(ge=1, le=64, description="of a training, on this machine")]
    threads: Annotated[Positive | None, Field(description="per process, or null for all cores")]
    checkpoint_every_s: Annotated[
        PositiveFloat, Field(description="seconds between checkpoints of a training")
    ]


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
        faults = [*self._stream_faults(), *self._initial_faults(), *self._projection_faults()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _stream_faults(self) -> Iterator[str]:
        """What the cache would lack, and what the teacher does."""
        layers, streams = self.train_teacher.layers, self.cache_teacher.streams
        try:
            needed = streams_needed(self.train_student, layers)
            if missing := [stream for stream in needed if stream not in streams]:
                yield f"cache_teacher.streams lacks {', '.join(missing)}, read by a level"
        except ValueError as error:
            yield f"train_student.phases: {error}"
        if len(set(streams)) != len(streams):
            yield "cache_teacher.streams names a stream twice"
        for stream in streams:
            if stream_order(stream) > layers:
                yield f"cache_teacher.streams: {stream}, but the teacher has {layers} layers"

    def _initial_faults(self) -> Iterator[str]:
        """What keeps the teacher's layers from being copied."""
        teacher, student = self.train_teacher, self.train_student.student
        if not isinstance(student.initial, InitialTeacherLayers):
            return
        for name in ("hidden_size", "attention_heads", "intermediate_size"):
            own, theirs = getattr(student, name), getattr(teacher, name)
            if own != theirs:
                yield (
                    "train_student.student.initial: layers can be copied from the teacher only at "
                    f"its {name} {theirs}, the student's is {own}"
                )
        try:
            chosen(student.initial.layers, student.layers, teacher.layers)
        except ValueError as error:
            yield f"train_student.student.initial: {error}"

    def _projection_faults(self) -> Iterator[str]:
        """Hidden levels between widths that differ."""
        own, theirs = self.train_student.student.hidden_size, self.train_teacher.hidden_size
        levels = [level for phase in self.train_student.phases for level in phase.levels]
        plain = any(isinstance(x, HiddenLevel) and x.projection == "none" for x in levels)
        if own != theirs and plain:
            yield (
                f"train_student.phases: a hidden level from width {own} to {theirs} "
                "needs `projection: linear`"
            )


def streams_needed(train_student: TrainStudent, teacher_layers: int) -> tuple[str, ...]:
    """The cache streams that the levels read, in order, for a teacher of that many layers."""
    needed: set[str] = set()
    for phase in train_student.phases:
        for level in phase.levels:
            if isinstance(level, KLLevel):
                needed.add("logits")
            elif isinstance(level, HiddenLevel):
                matched = pairs(level.layer_map, train_student.student.layers, teacher_layers)
                needed.update(f"hidden.{teacher}" for _, teacher in matched)
    return tuple(sorted(needed, key=stream_order))


def stream_order(stream: str) -> int:
    """Sorting key: logits first, then hidden layers from the embeddings up."""
    return -1 if stream == "logits" else int(stream.removeprefix("hidden."))
