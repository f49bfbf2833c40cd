"""Prediction level: the student's logits against labels or against the teacher's logits.

B examples, C classes. Temperatures are above 0. Sums and counts are over examples.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from tasks.kd.errors import ParamsError, ShapeError
from tasks.kd.levels.losses.numerics import (
    masked_kl,
    masked_log_softmax,
    precise,
    precise_pair,
)
from tasks.kd.shapes import require_shape
from tasks.kd.totals import Total

# The label of what has none, as everywhere in torch and transformers.
NO_LABEL = -100


# --- one class per example -----------------------------------------------------------------------


def labels(student_BC: torch.Tensor, labels_B: torch.Tensor) -> Total:
    """Cross-entropy with the true classes, summed over examples; the count is examples.

    `student_BC` logits, `labels_B` int64 class ids. An example labelled -100 adds nothing and is
    counted. Raises ShapeError if B differs.
    """
    require_shape("labels", labels_B, (student_BC.shape[0],))
    total = functional.cross_entropy(
        precise(student_BC), labels_B, reduction="sum", ignore_index=NO_LABEL
    )
    return Total(total, student_BC.shape[0])


def kl(
    student_BC: torch.Tensor,
    teacher_BC: torch.Tensor,
    *,
    temperature: float | torch.Tensor,
    base: float | None = None,
) -> Total:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), summed over classes and examples.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (arXiv:1503.02531), whose
    T² keeps the gradient's size independent of T. Per example it is summed over classes, so that
    a weight means the same for 2 and for 50 classes; the count is examples. The temperature may be
    [B], each example's own (`losses/temperature.py`); the factor is then `base`² for all of them,
    since T² of each would undo what a rule's low temperatures are for. Raises ShapeError if the
    logits differ, ParamsError for temperatures of examples without a base.

    Differs from the authors' code: TinyBERT averages over classes and has no T².
    """
    if isinstance(temperature, torch.Tensor):
        if base is None:
            raise ParamsError("temperatures of examples need a base", expected="a number")
        factor = base**2
    else:
        factor = temperature**2
    log_student, log_teacher = _log_softmax_pair(student_BC, teacher_BC, temperature)
    divergence = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return Total(divergence * factor, student_BC.shape[0])


def reverse_kl(student_BC: torch.Tensor, teacher_BC: torch.Tensor, *, temperature: float) -> Total:
    """T² · KL(softmax(student / T) ‖ softmax(teacher / T)), summed over classes and examples.

    MiniLLM (arXiv:2306.08543): the student gives up the teacher's small modes rather
    than cover them all. The count is examples. Raises ShapeError if the logits differ.

    Differs from the authors' code, which samples texts and has no temperature.
    """
    log_student, log_teacher = _log_softmax_pair(student_BC, teacher_BC, temperature)
    divergence = functional.kl_div(log_teacher, log_student, reduction="sum", log_target=True)
    return Total(divergence * temperature**2, student_BC.shape[0])


def jsd(
    student_BC: torch.Tensor, teacher_BC: torch.Tensor, *, beta: float, temperature: float
) -> Total:
    """T² · (β KL(p ‖ m) + (1-β) KL(q ‖ m)) with m = βp + (1-β)q, summed over examples.

    GKD (arXiv:2306.13649), equation 1; p the teacher's, q the student's probabilities; the count
    is examples. It tends to 0 at both ends, so β = 0 is `kl` and β = 1 is `reverse_kl`: the limits
    of JSD / β and of JSD / (1-β). Raises ShapeError if the logits differ, ParamsError unless
    0 ≤ β ≤ 1.

    Differs from the authors' definition in the factor T²; at the ends it jumps, as TRL's does.
    """
    if not 0 <= beta <= 1:
        raise ParamsError("beta of jsd is out of range", expected="0 to 1", found=beta)
    if beta == 0:
        return kl(student_BC, teacher_BC, temperature=temperature)
    if beta == 1:
        return reverse_kl(student_BC, teacher_BC, temperature=temperature)
    log_student, log_teacher = _log_softmax_pair(student_BC, teacher_BC, temperature)
    log_middle = torch.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))
    teacher_part, student_part = (
        functional.kl_div(log_middle, log, reduction="sum", log_target=True)
        for log in (log_teacher, log_student)
    )
    divergence = beta * teacher_part + (1 - beta) * student_part
    return Total(divergence * temperature**2, student_BC.shape[0])


def dkd(
    student_BC: torch.Tensor,
    teacher_BC: torch.Tensor,
    labels_B: torch.Tensor,
    *,
    temperature: float,
    target_weight: float,
    other_weight: float,
) -> Total:
    """T² · (target_weight · KL of target against rest + other_weight · KL among the rest).

    Decoupled knowledge distillation (arXiv:2203.08679), equation 7, whose α and β (1 and 8 there)
    the weights are; the count is examples. With weights 1 and 1 - p(target) it would be `kl`.
    `labels_B` int64, one of the C classes each. Raises ShapeError if shapes differ, if a label is
    no class, or if C < 3, as there is no rest to distribute among then.

    Differs from the authors' code, which blanks the target by -1000 and takes log(0) as it comes;
    here all is in logarithms. Their warm-up of the weight is a schedule, not part of the loss.
    """
    classes = student_BC.shape[-1]
    _require_rest("decoupled distillation", classes)
    log_student, log_teacher = _log_softmax_pair(student_BC, teacher_BC, temperature)
    require_shape("labels", labels_B, (student_BC.shape[0],))
    if bool(((labels_B < 0) | (labels_B >= classes)).any()):
        raise ShapeError("a label of decoupled distillation is no class", expected=f"< {classes}")
    rest_BC = functional.one_hot(labels_B, classes) == 0
    rest_student, rest_teacher = (
        masked_log_softmax(log, rest_BC) for log in (log_student, log_teacher)
    )
    target = functional.kl_div(
        _target_and_rest(log_student, rest_BC),
        _target_and_rest(log_teacher, rest_BC),
        reduction="sum",
        log_target=True,
    )
    rest = masked_kl(rest_student, rest_teacher, rest_BC)
    total = target_weight * target + other_weight * rest
    return Total(total * temperature**2, student_BC.shape[0])


def dist(student_BC: torch.Tensor, teacher_BC: torch.Tensor, *, temperature: float) -> Total:
    """T² · (1 - Pearson correlation of an example's probabilities), summed over examples.

    DIST (arXiv:2205.10536), the inter-class part; T² is its authors' code's. The count is
    examples. Raises ShapeError if the logits differ, or if C < 3, as two classes correlate to ±1
    whatever they are.
    Its gradient grows without bound as the student's probabilities become all equal.

    Differs from the paper: the intra-class part, which correlates a class over the examples of a
    batch, is left out, since its value depends on how the batch is split.
    """
    _require_rest("DIST", student_BC.shape[-1])
    probabilities = [log.exp() for log in _log_softmax_pair(student_BC, teacher_BC, temperature)]
    student, teacher = (values - values.mean(-1, keepdim=True) for values in probabilities)
    correlation_B = functional.cosine_similarity(student, teacher, dim=-1)
    return Total((1 - correlation_B).sum() * temperature**2, student_BC.shape[0])


def logits_mse(student_BC: torch.Tensor, teacher_BC: torch.Tensor) -> Total:
    """Squared difference of logits, averaged over classes and summed over examples.

    Ba, Caruana: Do Deep Nets Really Need to be Deep? (arXiv:1312.6184), there halved and
    summed over classes; the count is examples. Also the teacher's level for regression (C scores).
    Unlike `kl` it minds a constant that is added to all logits. Raises ShapeError if the logits
    differ.
    """
    require_shape("teacher logits", teacher_BC, tuple(student_BC.shape))
    return _squares(student_BC, teacher_BC)


# --- several labels, or scores, per example ------------------------------------------------------


def bce(student_BC: torch.Tensor, labels_BC: torch.Tensor) -> Total:
    """Binary cross-entropy of each class with its own label, averaged over classes.

    `labels_BC` is 0 or 1 (or a probability), of any dtype. Summed over examples; the count is
    examples. Raises ShapeError if the shapes differ.
    """
    require_shape("labels", labels_BC, tuple(student_BC.shape))
    student, wanted = precise_pair(student_BC, labels_BC)
    loss_BC = functional.binary_cross_entropy_with_logits(student, wanted, reduction="none")
    return Total(loss_BC.mean(-1).sum(), student_BC.shape[0])


def bce_kl(student_BC: torch.Tensor, teacher_BC: torch.Tensor, *, temperature: float) -> Total:
    """T² · KL of each class's own yes or no at sigmoid(logit / T), averaged over classes.

    `kl` (arXiv:1503.02531) of C independent distributions of two; the count is examples. Raises
    ShapeError if the logits differ.

    Differs from binary cross-entropy with the teacher's probabilities by the teacher's entropy
    alone, so the gradient is the same and the least value is 0.
    """
    require_shape("teacher logits", teacher_BC, tuple(student_BC.shape))
    student, teacher = precise_pair(student_BC, teacher_BC)
    divergence = torch.stack(
        [
            functional.kl_div(
                functional.logsigmoid(sign * student / temperature),
                functional.logsigmoid(sign * teacher / temperature),
                reduction="none",
                log_target=True,
            )
            for sign in (1, -1)
        ]
    ).sum(0)
    return Total(divergence.mean(-1).sum() * temperature**2, student_BC.shape[0])


def regression(student_BC: torch.Tensor, labels_BC: torch.Tensor) -> Total:
    """Squared error of C scores (mostly one), averaged over them and summed over examples.

    `labels_BC` of any dtype; the count is examples. There is no temperature: scores are no
    distribution. Raises ShapeError if the shapes differ; a [B] of labels is not spread over [B, 1].
    """
    require_shape("labels", labels_BC, tuple(student_BC.shape))
    return _squares(student_BC, labels_BC)


def _log_softmax_pair(
    student_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    require_shape("teacher logits", teacher_BC, tuple(student_BC.shape))
    student, teacher = precise_pair(student_BC, teacher_BC)
    if isinstance(temperature, torch.Tensor):
        require_shape("temperatures", temperature, (student_BC.shape[0],))
        temperature = temperature[:, None]
    return (
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
    )


def _target_and_rest(log_BC: torch.Tensor, rest_BC: torch.Tensor) -> torch.Tensor:
    """[B, 2]: log-probability of the target, and of all the rest together."""
    least = torch.finfo(log_BC.dtype).min
    parts = (log_BC.masked_fill(hidden, least).logsumexp(-1) for hidden in (rest_BC, ~rest_BC))
    return torch.stack(list(parts), dim=-1)


def _squares(student_BC: torch.Tensor, wanted_BC: torch.Tensor) -> Total:
    student, wanted = precise_pair(student_BC, wanted_BC)
    return Total((student - wanted).square().mean(-1).sum(), student_BC.shape[0])


def _require_rest(loss: str, classes: int) -> None:
    if classes < 3:
        raise ShapeError(
            f"{loss} says nothing with so few classes", expected="3 or more", found=classes
        )
