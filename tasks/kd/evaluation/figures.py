"""Teacher and student compared on the same examples: figures with bootstrap intervals.

NumPy only. N examples, C classes, R resamples; logits are float [N, C], labels int [N].

Every figure here (accuracy, macro-F1, calibration, agreement, retention) is a function of sums
over examples. A resample is therefore a row of counts, how often each example was drawn. One matrix
product gives all figures of all resamples, and teacher and student share the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.kd.documents.evaluation import ClassMetrics, Confusion, Figure, Quality, Right
from tasks.kd.errors import DataError, ShapeError

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]

BINS = 15
_DRAWS = 2**22  # resampled counts in memory at once


@dataclass(frozen=True)
class Bin:
    """A confidence bin of a reliability diagram; both means are 0 in an empty bin."""

    low: float
    high: float
    examples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ModelAnswers:
    """A model's answers: classes int64 [N] and confidences (highest softmax scores) float64 [N]."""

    classes: Classes
    confidence: Floats


@dataclass(frozen=True)
class Answers:
    """True classes [N], and both models' answers to the same examples.

    Raises ShapeError if the parts differ in length or are empty.
    """

    labels: Classes
    teacher: ModelAnswers
    student: ModelAnswers

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.labels, self.teacher.classes, self.student.classes)]
        if len(set(lengths)) != 1 or lengths[0] == 0:
            raise ShapeError(
                "labels, teacher and student must have the same examples",
                expected="equal numbers, at least one",
                found=lengths,
            )


def read_answers(logits: npt.NDArray[Any], classes: int) -> ModelAnswers:
    """Classes and confidences from logits [N, C].

    Raises ShapeError unless C is `classes`, DataError on NaN or infinity.
    """
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise ShapeError(
            "a model has another number of labels than the data",
            expected=f"logits of {classes} classes",
            found=f"shape {logits.shape}",
        )
    if not np.isfinite(logits).all():
        raise DataError(
            "a model answers with NaN or infinite logits",
            expected="finite logits",
            found=f"{int((~np.isfinite(logits)).any(axis=1).sum())} examples without",
        )
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    scores = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    return ModelAnswers(scores.argmax(axis=1).astype(np.int64), scores.max(axis=1))


# --- figures of one sample -----------------------------------------------------------------------


def count_confusion(labels: Classes, classes: Classes, count: int) -> Classes:
    """Confusion matrix int64 [C, C]: rows are true classes, columns are answers."""
    cells = np.bincount(labels * count + classes, minlength=count * count)
    return cells.reshape(count, count).astype(np.int64)


def score_classes(confusion: Classes) -> dict[str, Floats]:
    """Precision, recall and F1 per class, each [C]; 0 for a class never answered or never true.

    >>> scores = score_classes(np.array([[1, 1], [0, 2]]))
    >>> {name: values.round(2).tolist() for name, values in scores.items()}
    {'precision': [1.0, 0.67], 'recall': [0.5, 1.0], 'f1': [0.67, 0.8]}
    """
    right = np.diag(confusion).astype(np.float64)
    answered, support = confusion.sum(axis=0), confusion.sum(axis=1)
    return {
        "precision": _divide(right, answered),
        "recall": _divide(right, support),
        "f1": _divide(2 * right, answered + support),
    }


def compare_classes(answers: Answers, names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    """One row per class, in the labels' order: support, and each model's precision, recall, F1."""
    scores = {
        who: score_classes(count_confusion(answers.labels, outcome.classes, len(names)))
        for who, outcome in (("teacher", answers.teacher), ("student", answers.student))
    }
    support = np.bincount(answers.labels, minlength=len(names))
    return tuple(
        ClassMetrics(
            label=name,
            support=int(support[row]),
            **{
                f"{who}_{figure}": float(values[row])
                for who, figures in scores.items()
                for figure, values in figures.items()
            },
        )
        for row, name in enumerate(names)
    )


def count_confusions(answers: Answers, count: int) -> Confusion:
    """Both models' confusion matrices over `count` classes."""
    labels = answers.labels
    teacher, student = (
        tuple(map(tuple, count_confusion(labels, outcome.classes, count).tolist()))
        for outcome in (answers.teacher, answers.student)
    )
    return Confusion(teacher=teacher, student=student)


def count_right(answers: Answers) -> Right:
    """Counts of examples that both models, only one of them, or neither get right."""
    teacher = answers.teacher.classes == answers.labels
    student = answers.student.classes == answers.labels
    return Right(
        both=int((teacher & student).sum()),
        teacher_only=int((teacher & ~student).sum()),
        student_only=int((~teacher & student).sum()),
        neither=int((~teacher & ~student).sum()),
    )


def bin_confidence(labels: Classes, outcome: ModelAnswers) -> list[Bin]:
    """Accuracy by confidence, in 15 bins of equal width over (0, 1]."""
    chosen = _bin_of(outcome.confidence)
    examples = np.bincount(chosen, minlength=BINS)
    confidence = _divide(np.bincount(chosen, outcome.confidence, BINS), examples)
    accuracy = _divide(np.bincount(chosen, labels == outcome.classes, BINS), examples)
    return [
        Bin(b / BINS, (b + 1) / BINS, int(examples[b]), float(confidence[b]), float(accuracy[b]))
        for b in range(BINS)
    ]


# --- figures with intervals ----------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Each model's figures, and the figures of the pair."""

    teacher: Quality
    student: Quality
    retention: Figure
    agreement: Figure


def compare_answers(
    answers: Answers, *, resamples: int, confidence: float, seed: int
) -> Comparison:
    """All paired figures with percentile bootstrap intervals (Efron 1979).

    Lead is the share of the best constant answer's errors that a model removes; it is left out if
    all examples have one label. Macro-F1 is the mean over the classes that are true or answered in
    the sample, like scikit-learn's `f1_score(average="macro")`. ECE is Guo et al. 2017, eq. 3, with
    15 bins of equal width. Raises DataError if the teacher gets nothing right, since nothing can
    be retained then.
    """
    examples = len(answers.labels)
    if not (answers.labels == answers.teacher.classes).any():
        raise DataError("the teacher gets no test example right", found="accuracy 0")
    features = _features(answers)
    measured = _figures(features.sum(axis=0, keepdims=True), examples)
    drawn = _figures(_resample(features, resamples, seed), examples)
    tails = 50 * (1 - confidence), 50 * (1 + confidence)
    figures: dict[str, dict[str, Figure]] = {"teacher": {}, "student": {}, "": {}}
    for name, values in drawn.items():
        if np.isnan(measured[name][0]):
            continue
        low, high = map(float, np.nanpercentile(values, tails))
        who, _, own = name.rpartition(".")
        value = float(measured[name][0])
        figures[who][own] = Figure(value=value, n=examples, low=low, high=high)
    teacher, student = Quality(**figures["teacher"]), Quality(**figures["student"])
    return Comparison(teacher, student, **figures[""])


def _features(answers: Answers) -> Floats:
    """The features [N, 1 + 5C + 2 * BINS] summed over examples, in the order `_figures` reads."""
    labels, pair = answers.labels, (answers.teacher, answers.student)
    count = 1 + int(max(labels.max(), *(outcome.classes.max() for outcome in pair)))
    agree = answers.teacher.classes == answers.student.classes
    columns = [agree[:, None].astype(np.float64), _one_hot(labels, count)]
    for outcome in pair:
        right = (labels == outcome.classes).astype(np.float64)
        answered = _one_hot(outcome.classes, count)
        gap = outcome.confidence - right
        columns += [answered, answered * right[:, None]]
        columns += [_one_hot(_bin_of(outcome.confidence), BINS) * gap[:, None]]
    return np.concatenate(columns, axis=1)


def _figures(sums: Floats, examples: int) -> dict[str, Floats]:
    """Every figure [R], computed from sums of features [R, F]."""
    count = (sums.shape[1] - 1 - 2 * BINS) // 5
    widths = [1, count, count, count, BINS, count, count]  # the rest is BINS wide
    agree, support, *rest = np.split(sums, np.cumsum(widths), axis=1)
    figures = {"agreement": agree[:, 0] / examples}
    constant = support.max(axis=1) / examples
    for who, (answered, right, gaps) in {"teacher": rest[:3], "student": rest[3:]}.items():
        present = (answered + support) > 0
        f1 = _divide(2 * right, answered + support)
        figures[f"{who}.accuracy"] = right.sum(axis=1) / examples
        figures[f"{who}.macro_f1"] = f1.sum(axis=1) / present.sum(axis=1)
        right_share = figures[f"{who}.accuracy"]
        figures[f"{who}.lead"] = np.where(
            constant < 1, _divide(right_share - constant, 1 - constant), np.nan
        )
        figures[f"{who}.ece"] = np.abs(gaps).sum(axis=1) / examples
    teacher, student = figures["teacher.accuracy"], figures["student.accuracy"]
    figures["retention"] = np.where(teacher > 0, _divide(student, teacher), np.nan)
    return figures


def _resample(features: Floats, resamples: int, seed: int) -> Floats:
    """Sums [R, F] of features over N draws with replacement, some resamples at a time."""
    random = np.random.default_rng(seed)
    examples = len(features)
    at_once = max(1, _DRAWS // examples)
    sums = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = random.integers(0, examples, size=(rows, examples))
        drawn += np.arange(rows)[:, None] * examples
        counts = np.bincount(drawn.ravel(), minlength=rows * examples)
        sums.append(counts.reshape(rows, examples).astype(np.float64) @ features)
    return np.concatenate(sums)


def _bin_of(confidence: Floats) -> Classes:
    """The bin of each confidence; bins are closed above, as in Guo et al."""
    bins: Classes = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
    return bins


def _one_hot(values: Classes, count: int) -> Floats:
    columns: Floats = (values[:, None] == np.arange(count)).astype(np.float64)
    return columns


def _divide(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    """The quotient in float64; 0 where the divisor is 0."""
    result = np.zeros(np.broadcast(above, below).shape)
    np.divide(above, below, out=result, where=np.asarray(below) != 0)
    return result
