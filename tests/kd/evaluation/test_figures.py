"""Figures against hand-worked cases and scikit-learn; intervals and similarity by their laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from tasks.kd.documents.evaluation import Right
from tasks.kd.errors import DataError, ShapeError
from tasks.kd.evaluation import figures as evaluation
from tasks.kd.evaluation.figures import (
    Answers,
    Comparison,
    ModelAnswers,
    bin_confidence,
    compare_answers,
    compare_classes,
    count_confusion,
    count_right,
    read_answers,
)
from tasks.kd.evaluation.similarity import cka_matrix

LABELS = [0, 0, 0, 1, 1, 2]
TEACHER = [0, 0, 0, 1, 1, 1]  # 5 of 6
STUDENT = [0, 0, 1, 1, 0, 1]  # 3 of 6


def outcome(classes: list[int], confidence: float = 0.9) -> ModelAnswers:
    """Answers that are all as sure."""
    return ModelAnswers(np.asarray(classes, dtype=np.int64), np.full(len(classes), confidence))


def answers(
    labels: list[int] = LABELS, teacher: list[int] = TEACHER, student: list[int] = STUDENT
) -> Answers:
    """The hand-worked case, or another."""
    return Answers(np.asarray(labels, dtype=np.int64), outcome(teacher), outcome(student))


def compare(given: Answers, *, resamples: int = 400, seed: int = 1) -> Comparison:
    """Figures with 95 % intervals."""
    return compare_answers(given, resamples=resamples, confidence=0.95, seed=seed)


def test_figures_of_the_case_worked_by_hand() -> None:
    found = compare(answers())
    assert found.teacher.accuracy.value == pytest.approx(5 / 6)
    assert found.student.accuracy.value == pytest.approx(3 / 6)
    assert found.retention.value == pytest.approx(3 / 5)
    assert found.agreement.value == pytest.approx(4 / 6)
    # F1 of the teacher: 1, 2*2/(3+2), 0; of the student: 2*2/(3+3), 2*1/(3+2), 0
    assert found.teacher.macro_f1.value == pytest.approx((1 + 4 / 5 + 0) / 3)
    assert found.student.macro_f1.value == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)
    # the constant answer 0 makes 3 errors of 6, the teacher 1, the student 3
    assert found.teacher.lead is not None
    assert found.student.lead is not None
    assert found.teacher.lead.value == pytest.approx(2 / 3)
    assert found.student.lead.value == pytest.approx(0)
    # one bin: |0.9 - accuracy|
    assert found.teacher.ece.value == pytest.approx(0.9 - 5 / 6)
    assert found.student.ece.value == pytest.approx(0.9 - 3 / 6)
    assert found.retention.n == 6
    assert count_right(answers()) == Right(both=3, teacher_only=2, student_only=0, neither=1)


def test_examples_of_one_label_give_no_lead() -> None:
    found = compare(answers([0] * 6, [0, 0, 0, 0, 0, 1], [0] * 6))
    assert "lead" not in found.teacher.as_json()
    assert "lead" not in found.student.as_json()
    assert found.teacher.accuracy.value == pytest.approx(5 / 6)


def test_calibration_error_weighs_each_bin_by_its_examples() -> None:
    sure = np.array([0.95, 0.95, 0.95, 0.40])
    classes = np.array([0, 0, 1, 1], dtype=np.int64)
    labels = np.zeros(4, dtype=np.int64)
    found = compare(Answers(labels, ModelAnswers(classes, sure), outcome([0] * 4, 1.0)))
    expected = (3 * abs(0.95 - 2 / 3) + 1 * abs(0.40 - 0)) / 4
    assert found.teacher.ece.value == pytest.approx(expected)
    assert found.student.ece.value == 0


def test_reliability_bins_hold_all_examples_and_are_closed_above() -> None:
    labels = np.array([0, 0, 0], dtype=np.int64)
    bins = bin_confidence(labels, ModelAnswers(labels, np.array([1.0, 1 / 15, 0.99])))
    assert len(bins) == 15
    assert [b.examples for b in bins] == [1, *[0] * 13, 2]
    assert bins[14].confidence == pytest.approx(0.995)
    assert bins[14].accuracy == 1
    assert (bins[5].confidence, bins[5].accuracy) == (0, 0)


@given(
    st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=60).filter(
        lambda rows: any(label == teacher for label, teacher, _ in rows)
    )
)
def test_figures_are_those_of_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    labels, teacher, student = (list(column) for column in zip(*rows, strict=True))
    case = answers(labels, teacher, student)
    found = compare(case, resamples=200)
    for who, classes in (("teacher", teacher), ("student", student)):
        expected = f1_score(labels, classes, average="macro", zero_division=0)
        assert getattr(found, who).macro_f1.value == pytest.approx(expected)
        confusion = count_confusion(case.labels, np.asarray(classes), 5)
        assert (confusion == confusion_matrix(labels, classes, labels=range(5))).all()
        scores = precision_recall_fscore_support(labels, classes, labels=range(5), zero_division=0)
        table = compare_classes(case, list("abcde"))
        for place, figure in enumerate(("precision", "recall", "f1")):
            measured = [getattr(row, f"{who}_{figure}") for row in table]
            assert measured == pytest.approx(list(scores[place]))
        assert [row.support for row in table] == list(scores[3])


def test_a_resample_is_what_drawing_examples_one_by_one_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = answers()
    features = evaluation._features(case)
    monkeypatch.setattr(evaluation, "_DRAWS", 13)  # two resamples at once
    sums = evaluation._resample(features, 5, seed=7)
    random = np.random.default_rng(7)
    drawn = np.concatenate([random.integers(0, 6, size=(rows, 6)) for rows in (2, 2, 1)])
    np.testing.assert_allclose(sums, np.stack([features[rows].sum(axis=0) for rows in drawn]))


def test_intervals_depend_on_the_seed_alone() -> None:
    assert compare(answers(), seed=5) == compare(answers(), seed=5)
    assert compare(answers(), seed=5) != compare(answers(), seed=6)


def test_intervals_hold_the_value_and_narrow_with_examples() -> None:
    few, many = (compare(answers(LABELS * k, TEACHER * k, STUDENT * k)) for k in (5, 80))
    for found in (few, many):
        for figure in (found.retention, found.agreement, found.teacher.accuracy):
            assert figure.low <= figure.value <= figure.high
    widths = [found.retention.high - found.retention.low for found in (few, many)]
    assert widths[1] < widths[0] / 2


def test_a_95_percent_interval_covers_the_truth_about_as_often() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        labels = np.zeros(150, dtype=np.int64)
        classes = (random.random(150) > 0.8).astype(np.int64)
        case = Answers(
            labels, ModelAnswers(classes, np.ones(150)), ModelAnswers(classes, np.ones(150))
        )
        accuracy = compare(case, resamples=300).teacher.accuracy
        covered += accuracy.low <= 0.8 <= accuracy.high
    assert 0.89 <= covered / 200 <= 0.99


def test_both_models_are_resampled_by_the_same_draws() -> None:
    case = answers(LABELS * 20, TEACHER * 20, TEACHER * 20)
    retention = compare(case).retention
    assert (retention.low, retention.value, retention.high) == (1, 1, 1)


def test_scores_are_a_softmax_and_large_logits_do_not_overflow() -> None:
    found = read_answers(np.array([[1000.0, 0.0], [0.0, np.log(3)]], dtype=np.float32), 2)
    assert found.classes.tolist() == [0, 1]
    assert found.confidence == pytest.approx([1.0, 0.75])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="1 examples without"):
        read_answers(np.array([[0.0, 1.0], [bad, 1.0]]), 2)


def test_a_model_with_another_number_of_labels_is_refused() -> None:
    with pytest.raises(ShapeError, match="logits of 3 classes"):
        read_answers(np.zeros((4, 2)), 3)


def test_answers_to_different_examples_are_refused() -> None:
    with pytest.raises(ShapeError, match="same examples"):
        answers(student=[0])
    with pytest.raises(ShapeError, match="same examples"):
        answers([], [], [])


def test_a_teacher_that_is_never_right_is_refused() -> None:
    with pytest.raises(DataError, match="no test example right"):
        compare(answers([0, 0], [1, 1], [0, 0]))


# --- similarity ----------------------------------------------------------------------------------


def states(width: int, *, seed: int = 0, tokens: int = 300) -> Any:
    """Random states with channels of very different size."""
    random = np.random.default_rng(seed)
    return random.normal(size=(tokens, width)) * np.geomspace(0.1, 5, width) + 3


def rotation(width: int) -> Any:
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(9).normal(size=(width, width)))[0]


def cka_of(first: Any, second: Any) -> float:
    """Of one layer with another."""
    return cka_matrix([first], [second])[0][0]


def test_similarity_to_itself_is_one_whatever_rotation_scale_and_shift() -> None:
    x = states(8)
    assert cka_of(x, x) == pytest.approx(1)
    assert cka_of(x, 1e-3 * x @ rotation(8) - 7) == pytest.approx(1)
    assert cka_of(x.astype(np.float32), x.astype(np.float32)) == pytest.approx(1, abs=1e-6)


def test_similarity_is_the_formula_over_gram_matrices() -> None:
    x, y = states(5), states(9, seed=1)[:, :9] + states(5)[:, :1]
    centre = np.eye(300) - 1 / 300
    k, m = (centre @ z @ z.T @ centre for z in (x, y))
    expected = np.sum(k * m) / (np.linalg.norm(k) * np.linalg.norm(m))
    assert cka_of(x, y) == pytest.approx(expected)
    assert cka_of(y, x) == pytest.approx(expected)
    assert cka_of(x @ rotation(5), 40 * y) == pytest.approx(expected)
    assert 0 < expected < 1


def test_unrelated_states_are_hardly_similar_and_constant_ones_not_at_all() -> None:
    assert cka_of(states(4, tokens=5000), states(4, seed=5, tokens=5000)) < 0.02
    assert cka_of(states(4), np.ones((300, 4))) == 0


def test_the_matrix_has_a_row_per_student_layer() -> None:
    found = cka_matrix([states(4), states(6)], [states(4), states(4, seed=2), states(6)])
    assert np.shape(found) == (2, 3)
    assert found[0][0] == pytest.approx(1)
    assert found[1][2] == pytest.approx(1)
    assert found[0][1] == pytest.approx(cka_of(states(4), states(4, seed=2)))


def test_layers_over_different_tokens_are_refused() -> None:
    with pytest.raises(ShapeError, match="same tokens"):
        cka_of(states(4), states(4)[:-1])
