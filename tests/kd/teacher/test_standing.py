"""What a classifier's answers are worth, and why they may be worth nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.teacher.standing import best_names, find_causes, find_order, take_standing

LABELS = ["bad", "fair", "good"]
OWN = ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_a_standing_is_against_chance_and_the_best_constant_answer() -> None:
    labels = ["a"] * 60 + ["b"] * 40
    standing = take_standing(labels, ["a"] * 70 + ["b"] * 30, 4)
    assert (standing.accuracy, standing.constant, standing.chance) == (0.9, 0.6, 0.25)
    assert standing.constant_label == "a"
    assert standing.lead == pytest.approx(0.75)
    assert standing.lead_bound is not None
    assert 0.5 < standing.lead_bound < 0.75
    assert standing.is_above_chance
    assert "accuracy 90.00% of 100 (chance 25.00%, 'a' for all 60.00%); lead 75.00%" in str(
        standing
    )


@pytest.mark.parametrize("answers", [["a"] * 100, ["b"] * 100])
def test_one_answer_for_all_texts_has_no_lead(answers: list[str]) -> None:
    standing = take_standing(["a"] * 60 + ["b"] * 40, answers, 2)
    assert standing.lead is not None
    assert standing.lead <= 0
    assert not standing.is_above_chance


def test_a_split_of_one_label_shows_nothing_and_says_so() -> None:
    standing = take_standing(["a"] * 9, ["a"] * 9, 2)
    assert standing.lead is standing.lead_bound is None
    assert not standing.is_above_chance
    assert "all have one label" in str(standing)


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_best_names_are_no_worse_than_any(classes: int, seed: int) -> None:
    cells = np.random.default_rng(seed).integers(0, 9, size=(classes, classes))
    named = best_names(cells)
    assert sorted(named) == list(range(classes))

    def right(order: tuple[int, ...]) -> int:
        return int(sum(cells[label, answer] for answer, label in enumerate(order)))

    best = max(map(right, itertools.permutations(range(classes))))
    assert right(tuple(named)) == best


def test_the_best_names_of_many_labels_are_found() -> None:
    order = np.random.default_rng(1).permutation(120)
    cells = np.zeros((120, 120), int)
    cells[order, np.arange(120)] = 7
    assert best_names(cells) == order.tolist()


def test_labels_in_another_order_are_the_first_cause_with_the_map_to_write() -> None:
    cells = np.array([[1, 0, 49], [50, 0, 0], [0, 48, 2]])
    first = find_causes(cells, LABELS, 0.9, OWN)[0]
    assert "98.00% would be right" in first
    assert "train_teacher.labels: {LABEL_0: fair, LABEL_1: good, LABEL_2: bad}" in first


def test_two_labels_in_each_other_s_place_are_found_though_most_is_right() -> None:
    names, own = ["a", "b", "c", "d"], [f"LABEL_{i}" for i in range(4)]
    cells = np.diag([25, 25, 25, 25])[[1, 0, 2, 3]]
    order = find_order(cells, names, own)
    assert order is not None
    assert order.is_far_better
    assert str(order).endswith("labels: {LABEL_0: b, LABEL_1: a, LABEL_2: c, LABEL_3: d}")
    assert "100.00% would be right" in str(order)
    few = np.diag([3, 3, 50, 50])[[1, 0, 2, 3]]
    found = find_order(few, names, own)
    assert found is not None
    assert not found.is_far_better
    assert find_order(np.diag([2, 2, 50, 50])[[1, 0, 2, 3]], names, own) is None
    assert find_order(np.diag([25] * 4), names, own) is None


def test_one_answer_for_nearly_all_puts_the_head_first() -> None:
    cells = np.array([[50, 0, 0], [49, 1, 0], [50, 0, 0]])
    assert find_causes(cells, LABELS, 0.4, OWN)[0].startswith("a classifier head that was never")
    assert (
        "99% of its answers are one, mean confidence 0.40"
        in find_causes(cells, LABELS, 0.4, OWN)[0]
    )


def test_answers_that_say_nothing_have_every_cause() -> None:
    cells = np.full((3, 3), 11)
    causes = find_causes(cells, LABELS, 0.9, OWN)
    words = ("another order", "tokenizer", "prepared otherwise", "another task", "head")
    assert [word in cause for word, cause in zip(words, causes, strict=True)] == [True] * 5
