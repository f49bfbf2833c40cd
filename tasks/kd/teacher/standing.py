"""What a classifier's answers are worth: against one answer for all texts, and under other names.

K classes, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.kd.documents.training import CONFIDENCE, Standing
from tasks.kd.encoders.files.label_names import FIELD, paste
from tasks.kd.gate.paired import best_constant, bound_lead, count_pairs, lead_of

Counts = npt.NDArray[np.int64]

_FAR_BETTER = 0.2  # of the examples, that another order of the labels must win to be meant
_BETTER, _FEW = 0.05, 5  # ... to be told: of the examples, and of them
_ONE_ANSWER = 0.9  # share of the answers, from which on a model gives nearly one alone


def take_standing(labels: Sequence[str], answers: Sequence[str], classes: int) -> Standing:
    """How a classifier of so many classes stands on examples of those labels."""
    constant = best_constant(labels)
    pairs = count_pairs(labels, answers, [constant] * len(labels))
    errors = 1 - pairs.second / pairs.total
    return Standing(
        examples=pairs.total,
        accuracy=pairs.first / pairs.total,
        constant=pairs.second / pairs.total,
        constant_label=constant,
        chance=1 / classes,
        lead=lead_of(pairs) if errors else None,
        lead_bound=bound_lead(pairs, CONFIDENCE) if errors else None,
    )


def best_names(confusion_KK: Counts) -> list[int]:
    """For each answer, the label that it is named after so that most answers are right.

    One label per answer: the assignment problem. Rows of the confusion are labels, columns answers.
    """
    from scipy.optimize import linear_sum_assignment

    _, named = linear_sum_assignment(confusion_KK.T, maximize=True)
    return [int(label) for label in named]


@dataclass(frozen=True)
class Order:
    """Other names for a classifier's answers, under which more of them are right."""

    right: float  # share of the examples that would be
    gain: float  # share of the examples by which that is more
    labels: str  # the map, as YAML on one line

    @property
    def is_far_better(self) -> bool:
        """Whether it can hardly be chance, nor a classifier that takes one label for another."""
        return self.gain >= _FAR_BETTER

    def __str__(self) -> str:
        return f"so named, {self.right:.2%} would be right. Write {FIELD}: {self.labels}"


def find_order(
    confusion_KK: Counts, labels: Sequence[str], own_names: Sequence[str]
) -> Order | None:
    """The order of the labels under which clearly more answers are right; None if there is none.

    Clearly is by 5 % of the examples, and 5 of them.
    """
    named, examples = best_names(confusion_KK), int(confusion_KK.sum())
    best = int(sum(confusion_KK[label, answer] for answer, label in enumerate(named)))
    gain = best - int(np.trace(confusion_KK))
    if gain < max(_BETTER * examples, _FEW):
        return None
    pasted = paste(own_names, [labels[label] for label in named])
    return Order(best / examples, gain / examples, pasted)


def find_causes(
    confusion_KK: Counts, labels: Sequence[str], confidence: float, own_names: Sequence[str]
) -> list[str]:
    """Why a tuned teacher may be no better than guessing, the likeliest first.

    `confidence` is the mean of its highest probabilities, `own_names` what its configuration calls
    the labels.
    """
    other = find_order(confusion_KK, labels, own_names)
    share = int(confusion_KK.sum(axis=0).max()) / int(confusion_KK.sum())
    order = "its labels stand in another order, or mean something else: see train_teacher.labels"
    causes = [
        "another tokenizer or casing than it was tuned with",
        "texts prepared otherwise: another column, a pair of texts, a prefix",
        "a teacher of another task or language",
        "a classifier head that was never trained",
    ]
    if other is not None and other.is_far_better:
        order = f"its labels stand in another order: {other}"
    elif share >= _ONE_ANSWER or confidence < 1 / len(labels) + 0.1:
        head = causes.pop()
        return [f"{head} ({share:.0%} of its answers are one, mean confidence {confidence:.2f})",
                *causes[:1], order, *causes[1:]]  # fmt: skip
    return [order, *causes]
