"""Teacher against student on the test split, as evaluate_student measured them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tasks.kd.documents.document import Count, Document, Fraction, Part, Sha256, Text

Matrix = tuple[tuple[Count, ...], ...]


class Figure(Part):
    """A measured value with its bootstrap interval."""

    value: float
    n: Annotated[Count, Field(description="examples that it was measured on")]
    low: Annotated[float, Field(description="lower end of the interval")]
    high: Annotated[float, Field(description="upper end of the interval")]


class Latency(Part):
    """Time of one text alone, in milliseconds."""

    p50: Annotated[float, Field(ge=0, description="median, in ms")]
    p95: Annotated[float, Field(ge=0, description="95th percentile, in ms")]
    mean: Annotated[float, Field(ge=0, description="mean, in ms")]


class Quality(Part):
    """How good a model's answers are."""

    accuracy: Annotated[Figure, Field(description="share of right answers")]
    macro_f1: Annotated[Figure, Field(description="mean F1 of the labels")]
    ece: Annotated[Figure, Field(description="calibration error, in 15 bins")]
    lead: Annotated[
        Figure | None,
        Field(
            description="share of the best constant answer's errors that it removes; absent where "
            "all examples have one label"
        ),
    ] = None


class Cost(Part):
    """What a model costs."""

    latency_ms: Annotated[Latency, Field(description="time of one text alone, in ms")]
    size_bytes: Annotated[Count, Field(description="bytes of its ONNX file")]
    parameters: Annotated[Count, Field(description="weights")]
    layers: Annotated[Count, Field(description="encoder layers")]


class ModelMetrics(Quality, Cost):
    """All figures of one model."""


class TorchMetrics(Part):
    """The student before its export."""

    accuracy: Annotated[Fraction, Field(description="share of right answers")]


class Right(Part):
    """Examples that both models get right, one of them alone, or neither."""

    both: Count
    teacher_only: Count
    student_only: Count
    neither: Count


class ClassMetrics(Part):
    """Both models on the examples of one label."""

    label: str
    support: Annotated[Count, Field(description="examples that have it")]
    teacher_precision: Fraction
    teacher_recall: Fraction
    teacher_f1: Fraction
    student_precision: Fraction
    student_recall: Fraction
    student_f1: Fraction


class Confusion(Part):
    """Examples by true label (rows) and answer (columns), in the labels' order."""

    teacher: Matrix
    student: Matrix


class Similarity(Part):
    """Linear CKA of the student's layers (rows) with the teacher's; 0 is the embeddings."""

    layers_student: tuple[Count, ...]
    layers_teacher: tuple[Count, ...]
    cka: tuple[tuple[float, ...], ...]


class Metrics(Document):
    """All figures of an evaluation. The student is measured as it is served."""

    TITLE: ClassVar[str] = "the evaluation"
    FILE: ClassVar[str] = "metrics.json"

    recipe: Text
    evaluation_fingerprint: Annotated[
        Sha256, Field(description="digest of the test split: the data card's test_sha256")
    ]
    labels: Annotated[tuple[str, ...], Field(description="names of the labels, in order of id")]
    examples: Annotated[Count, Field(description="texts of the test split")]
    served_file: Annotated[Text, Field(description="name of the ONNX file that was measured")]
    teacher: ModelMetrics
    student: ModelMetrics
    student_torch: Annotated[TorchMetrics, Field(description="the student before its export")]
    retention: Annotated[Figure, Field(description="student's accuracy / teacher's")]
    agreement: Annotated[Figure, Field(description="share of examples with the same answer")]
    right: Right
    per_class: Annotated[tuple[ClassMetrics, ...], Field(description="in the labels' order")]
    confusion: Confusion
    similarity: Similarity
