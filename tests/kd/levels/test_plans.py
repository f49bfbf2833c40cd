from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from tasks.kd.levels.plans import mixture, nearest, transport


def random_costs(examples: int, students: int, teachers: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(examples, students, teachers, generator=generator, dtype=torch.float64)


def least_cost(costs: np.ndarray) -> float:
    """The exact optimum, as a linear programme."""
    students, teachers = costs.shape
    rows = np.kron(np.eye(students), np.ones(teachers))
    columns = np.kron(np.ones(students), np.eye(teachers))
    wanted = np.concatenate([np.full(students, 1 / students), np.full(teachers, 1 / teachers)])
    found = linprog(costs.ravel(), A_eq=np.vstack([rows, columns]), b_eq=wanted, bounds=(0, None))
    assert found.success
    return float(found.fun)


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 10**6))
def test_a_plan_gives_each_layer_its_share_at_nearly_the_least_cost(
    students: int, teachers: int, seed: int
) -> None:
    costs = random_costs(3, students, teachers, seed)
    plan = transport(costs)
    assert plan.min() >= 0
    assert plan.sum((1, 2)).tolist() == pytest.approx([1.0] * 3)
    assert torch.allclose(plan.sum(1), torch.full((3, teachers), 1 / teachers).double())
    assert torch.allclose(plan.sum(2), torch.full((3, students), 1 / students).double())
    for cost, own in zip(costs.numpy(), plan.numpy(), strict=True):
        # The smoothing is 5 % of the mean cost, and its entropy at most the log of all pairs.
        slack = 0.05 * cost.mean() * (1 + np.log(cost.size))
        assert float((cost * own).sum()) <= least_cost(cost) + slack


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3, 1.0])
def test_no_plan_of_many_is_spoilt_by_rounding(spread: float) -> None:
    """What rounding leaves of the shares can sum to nothing: one plan in 400 was of 1e22."""
    torch.manual_seed(0)
    plans = transport(torch.exp(torch.randn(10_000, 3, 6) * spread))
    assert plans.min() >= 0
    assert torch.allclose(plans.sum(1), torch.full((10_000, 6), 1 / 6), atol=1e-6)
    assert torch.allclose(plans.sum(2), torch.full((10_000, 3), 1 / 3), atol=1e-6)


def test_a_plan_follows_the_costs() -> None:
    costs = torch.tensor([[[0.0, 9.0], [9.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]]])
    plan = transport(costs)
    assert torch.allclose(plan[0], torch.eye(2) / 2, atol=1e-4)
    assert torch.allclose(plan[1], 1 / 2 - torch.eye(2) / 2, atol=1e-4)


def test_layers_that_cost_nothing_or_very_much_have_a_plan() -> None:
    for costs in (torch.zeros(1, 2, 3), torch.full((1, 2, 3), 1e30), torch.full((1, 2, 3), 1e-30)):
        assert torch.allclose(transport(costs), torch.full((1, 2, 3), 1 / 6))


@given(st.integers(0, 10**6), st.floats(0.01, 1e4))
def test_a_plan_does_not_mind_the_unit_of_the_costs(seed: int, unit: float) -> None:
    costs = random_costs(2, 3, 6, seed)
    assert torch.allclose(transport(costs), transport(costs * unit), atol=1e-9)


def test_an_example_s_plan_does_not_depend_on_the_others() -> None:
    costs = random_costs(5, 3, 6, 1)
    alone = torch.cat([transport(costs[i : i + 1]) for i in range(5)])
    assert torch.allclose(transport(costs), alone, atol=1e-12)


def test_each_teacher_layer_has_the_student_layer_that_costs_least() -> None:
    costs = torch.tensor([[[3.0, 1.0], [2.0, 1.0], [4.0, 5.0]]])
    assert nearest(costs).tolist() == [[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]


def test_a_mixture_is_of_the_layers_that_are_alike() -> None:
    teachers = torch.eye(3)[None, None] * 50  # [1, 1, L, D]
    mixed = mixture(torch.tensor([[[0.0, 1.0, 0.0]]]), teachers)
    assert torch.allclose(mixed, torch.tensor([[[0.0, 50.0, 0.0]]]))
    even = mixture(torch.zeros(1, 1, 3), teachers)
    assert torch.allclose(even, torch.full((1, 1, 3), 50 / 3))
