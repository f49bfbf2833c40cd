from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.kd.recipe.maps import NAMED, chosen, drawn, pairs, uniform

depths = st.integers(1, 48)


@given(depths, depths)
def test_a_uniform_map_starts_at_0_ends_at_the_last_and_never_goes_back(a: int, b: int) -> None:
    student, teacher = sorted((a, b))
    mapped = uniform(student, teacher)
    assert mapped[0] == (0, 0)
    assert mapped[-1] == (student, teacher)
    assert [own for own, _ in mapped] == list(range(student + 1))
    theirs = [their for _, their in mapped]
    assert theirs == sorted(set(theirs))


def test_uniform_is_tinybert_s_where_depths_divide() -> None:
    assert uniform(4, 12) == ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))


def test_uniform_rounds_half_up_where_they_do_not() -> None:
    assert uniform(4, 6) == ((0, 0), (1, 2), (2, 3), (3, 5), (4, 6))


def test_named_maps() -> None:
    assert pairs("last", 3, 6) == ((3, 6),)
    assert pairs("uniform", 3, 6) == ((0, 0), (1, 2), (2, 4), (3, 6))
    assert pairs("skip", 6, 12) == ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10))  # PKD's own
    assert pairs("upper_middle", 6, 24) == ((6, 21),)  # MiniLMv2's own
    assert pairs(((1, 5), (2, 6)), 3, 6) == ((1, 5), (2, 6))


@given(st.sampled_from(sorted(NAMED)), depths, depths)
def test_a_named_map_is_in_order_and_within_both_models(name: str, a: int, b: int) -> None:
    student, teacher = sorted((a, b))
    assume(name != "skip" or student > 1)
    own, theirs = (list(side) for side in zip(*pairs(name, student, teacher), strict=True))
    assert own == sorted(set(own))
    assert theirs == sorted(set(theirs))
    assert 0 <= own[0] <= own[-1] <= student
    assert 0 <= theirs[0] <= theirs[-1] <= teacher


@pytest.mark.parametrize("layer_map", [((4, 6),), ((1, 7),), ((-1, 0),)])
def test_a_layer_that_is_not_there_is_named(layer_map: Any) -> None:
    with pytest.raises(ValueError, match=r"out of range: the student has layers 0 to 3"):
        pairs(layer_map, 3, 6)


def test_skip_leaves_nothing_to_one_layer() -> None:
    with pytest.raises(ValueError, match="skip leaves nothing"):
        pairs("skip", 1, 6)


@given(depths, depths, st.integers(0, 9), st.integers(0, 99))
def test_a_drawn_map_is_in_order_and_of_its_epoch(a: int, b: int, seed: int, epoch: int) -> None:
    student, teacher = sorted((a, b))
    found = drawn(student, teacher, seed=seed, epoch=epoch)
    assert found == drawn(student, teacher, seed=seed, epoch=epoch)
    assert [own for own, _ in found] == list(range(1, student + 1))
    theirs = [their for _, their in found]
    assert theirs == sorted(set(theirs))
    assert 1 <= theirs[0] <= theirs[-1] <= teacher


def test_epochs_and_seeds_draw_other_layers() -> None:
    assert len({drawn(3, 12, seed=7, epoch=epoch) for epoch in range(20)}) > 15
    assert drawn(3, 12, seed=7, epoch=0) != drawn(3, 12, seed=8, epoch=0)


@pytest.mark.parametrize("layer_map", ["middle", "Uniform"])
def test_an_unknown_map_is_refused(layer_map: str) -> None:
    with pytest.raises(ValueError, match="unknown layer map"):
        pairs(layer_map, 3, 6)


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="can't be mapped"):
        uniform(7, 6)
    with pytest.raises(ValueError, match="can't be taken"):
        chosen("first", 7, 6)


@given(depths, depths)
def test_chosen_layers_are_in_range_and_in_order(a: int, b: int) -> None:
    student, teacher = sorted((a, b))
    for choice in ("uniform", "first", "last"):
        layers = chosen(choice, student, teacher)
        assert len(layers) == student
        assert layers == sorted(set(layers))
        assert 1 <= layers[0] <= layers[-1] <= teacher


def test_which_layers_each_choice_takes() -> None:
    assert chosen("uniform", 3, 6) == [2, 4, 6]
    assert chosen("first", 3, 6) == [1, 2, 3]
    assert chosen("last", 3, 6) == [4, 5, 6]
    assert chosen((1, 1, 6), 3, 6) == [1, 1, 6]


@pytest.mark.parametrize("choice", [(1, 2), (0, 1, 2), (1, 2, 7), "middle"])
def test_a_wrong_choice_is_refused(choice: Any) -> None:
    with pytest.raises(ValueError, match=r"initial layers|unknown choice"):
        chosen(choice, 3, 6)
