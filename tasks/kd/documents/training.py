"""Reports of the two trainings, and what a classifier's answers are worth."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tasks.kd.documents.document import (
    Count,
    Document,
    Fingerprint,
    Fraction,
    Part,
    Seconds,
    Sha256,
)

CONFIDENCE = 0.95  # of a standing's bound, one-sided


class Standing(Part):
    """A classifier's figures on a split, against the best constant answer."""

    examples: Annotated[Count, Field(description="texts that it was asked")]
    accuracy: Annotated[Fraction, Field(description="share of them that it gets right")]
    constant: Annotated[Fraction, Field(description="share that the best constant answer does")]
    constant_label: Annotated[str, Field(description="that answer")]
    chance: Annotated[Fraction, Field(description="1 / number of labels")]
    lead: Annotated[
        float | None,
        Field(
            description="share of the constant answer's errors that it removes; null where all "
            "texts have one label"
        ),
    ]
    lead_bound: Annotated[
        float | None, Field(description="the least lead, with 95 % confidence; null likewise")
    ]

    @property
    def is_above_chance(self) -> bool:
        """Whether it is significantly better than the best constant answer."""
        return self.lead_bound is not None and self.lead_bound > 0

    def __str__(self) -> str:
        said = (
            f"accuracy {self.accuracy:.2%} of {self.examples} (chance {self.chance:.2%}, "
            f"{self.constant_label!r} for all {self.constant:.2%})"
        )
        if self.lead is None:
            return f"{said}; all have one label, so that nothing is shown"
        return (
            f"{said}; lead {self.lead:.2%}, with {CONFIDENCE:.0%} confidence at least "
            f"{self.lead_bound:.2%}"
        )


class Training(Part):
    """How a training ended."""

    steps: Annotated[Count, Field(description="optimizer updates, refused ones included")]
    seconds: Annotated[Seconds, Field(description="time of the training, in seconds")]
    dev_accuracy: Annotated[Fraction, Field(description="accuracy on dev of the weights kept")]
    best_epoch: Annotated[Count, Field(description="the epoch whose weights were kept, from 1")]
    parameters: Annotated[Count, Field(description="weights of the model")]


class TeacherReport(Document, Training):
    """How the teacher was tuned, or how a given one does: then it has no steps and no epoch.

    Of several teachers the figures are those of all together.
    """

    TITLE: ClassVar[str] = "the teacher's report"
    FILE: ClassVar[str] = "report.json"

    mode: Literal["fine_tune", "given"]
    dev_standing: Annotated[Standing, Field(description="what its answers on dev are worth")]
    teacher_sha256: Annotated[
        Sha256, Field(description="digest of its weights and of what decides its answers")
    ]
    refused_updates: Annotated[
        Count, Field(description="updates left out as not finite; absent if it was given")
    ] = 0
    dev_accuracies: Annotated[
        dict[str, Fraction] | None,
        Field(description="of several teachers, each one's accuracy on dev; absent for one"),
    ] = None
    dev_standings: Annotated[
        dict[str, Standing] | None,
        Field(description="of several teachers, each one's standing; absent for one"),
    ] = None


class StudentReport(Document, Training):
    """How the student was trained."""

    TITLE: ClassVar[str] = "the student's report"
    FILE: ClassVar[str] = "report.json"

    refused_updates: Annotated[Count, Field(description="updates left out as not finite")]
    cache_fingerprint: Annotated[
        Fingerprint, Field(description="of the teacher cache that it learnt from")
    ]
    phases: Annotated[
        tuple[dict[str, Any], ...], Field(description="the recipe's phases, as they were run")
    ]
    student_sha256: Annotated[Sha256, Field(description="digest of its weights")]
