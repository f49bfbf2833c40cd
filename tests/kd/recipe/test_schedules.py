from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tasks.kd.errors import ParamsError
from tasks.kd.levels.losses.prediction import kl
from tasks.kd.levels.losses.temperature import LEAST, cwsm, flsw
from tasks.kd.recipe.schedules import TemperatureSchedule, WeightSchedule
from tasks.kd.recipe.values import value_at


def test_a_constant_is_itself() -> None:
    assert [value_at(0.3, done) for done in (0.0, 0.5, 1.0)] == [0.3] * 3


def test_a_linear_schedule_goes_evenly() -> None:
    falling = WeightSchedule(schedule="linear", start=1.0, end=0.0)
    assert [value_at(falling, done) for done in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


def test_a_cosine_schedule_goes_slowly_at_both_ends() -> None:
    rising = TemperatureSchedule(schedule="cosine", start=1.0, end=5.0)
    values = [value_at(rising, done) for done in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert values == pytest.approx([1.0, 1.0979, 3.0, 4.9021, 5.0], abs=1e-4)


@pytest.mark.parametrize("start", [-1.0, float("nan"), float("inf")])
def test_a_weight_below_zero_or_not_finite_is_refused(start: float) -> None:
    with pytest.raises(ValidationError):
        WeightSchedule(schedule="linear", start=start, end=1.0)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValidationError):
        TemperatureSchedule(schedule="linear", start=1.0, end=0.0)


LOGITS = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.1, 0.0, 0.0]])
TEACHER = torch.tensor([[4.0, 0.0, 0.0], [4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])


def test_flsw_is_low_where_the_logits_point_elsewhere() -> None:
    found = flsw(LOGITS, TEACHER, base=4.0, slope=1.0, centre=0.5, power=2.0)
    assert found.tolist() == pytest.approx([4.5, 3.5, 4.5])  # cosines 1, 0 and 1


def test_cwsm_is_low_where_the_student_is_not_confident() -> None:
    found = cwsm(LOGITS, base=4.0, slope=1.0, centre=1.0)
    highest = LOGITS.softmax(-1).max(-1).values
    expected = (4.0 + 1.0 - 1 / (highest + 1e-3)).tolist()
    assert found.tolist() == pytest.approx(expected)
    assert found[2] < found[0]


def test_no_rule_turns_the_teacher_around() -> None:
    assert cwsm(LOGITS, base=1.0, slope=100.0, centre=1.0).min() == pytest.approx(LEAST)


def test_a_temperature_per_example_is_that_of_each_alone_but_for_the_factor() -> None:
    temperatures = torch.tensor([1.0, 2.0, 5.0])
    alone = sum(
        float(kl(LOGITS[i : i + 1], TEACHER[i : i + 1], temperature=float(t)).sum) / float(t) ** 2
        for i, t in enumerate(temperatures)
    )
    found = kl(LOGITS, TEACHER, temperature=temperatures, base=2.0)
    assert float(found.sum) == pytest.approx(4 * alone)
    with pytest.raises(ParamsError, match="need a base"):
        kl(LOGITS, TEACHER, temperature=temperatures)


def test_a_rule_pulls_harder_where_the_student_has_most_to_learn() -> None:
    """Preparing Lessons (arXiv:1911.07471): that is what the low temperatures are for."""
    pulls = []
    for slope in (0.0, 2.0):
        student = LOGITS.clone().requires_grad_()
        rule = {"base": 4.0, "slope": slope, "centre": 0.0, "power": 1.0}
        temperatures = flsw(student, TEACHER, **rule)
        kl(student, TEACHER, temperature=temperatures, base=4.0).sum.backward()
        assert student.grad is not None
        pulls.append(float(student.grad[1].norm()))  # its logits point elsewhere
    assert pulls[1] > 1.2 * pulls[0]
