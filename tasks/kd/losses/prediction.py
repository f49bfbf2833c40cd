"""Prediction level: the student's logits against labels or against the teacher's logits."""

from __future__ import annotations

import torch
from torch.nn import functional

from tasks.kd.shapes import require_shape
from tasks.kd.totals import Total


def labels(student_BC: torch.Tensor, labels_B: torch.Tensor) -> Total:
    """Cross-entropy with the true classes, summed over examples.

    `student_BC` logits, `labels_B` int64 class ids. Raises ShapeError if B differs.
    """
    require_shape("labels", labels_B, (student_BC.shape[0],))
    total = functional.cross_entropy(student_BC.float(), labels_B, reduction="sum")
    return Total(total, student_BC.shape[0])


def kl(student_BC: torch.Tensor, teacher_BC: torch.Tensor, *, temperature: float) -> Total:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), summed over classes and examples.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (arXiv:1503.02531), whose
    T² keeps the gradient's size independent of T. Per example it is summed over classes, so that
    a weight means the same for 2 and for 50 classes. Raises ShapeError if the logits differ.

    Differs from the authors' code: TinyBERT averages over classes and has no T².
    """
    require_shape("teacher logits", teacher_BC, tuple(student_BC.shape))
    log_student = functional.log_softmax(student_BC.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher_BC.float() / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return Total(divergence * temperature**2, student_BC.shape[0])
