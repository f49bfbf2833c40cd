from __future__ import annotations

import torch

from tasks.kd.data.examples.trainable import Moment
from tasks.kd.levels.objective import Objective
from tests.makers.levels import MSE, batch_of, phase_with
from tests.makers.training_setup import make_parts, objective_of


def test_projections_are_trained_and_are_no_part_of_the_student() -> None:
    objective = make_parts().objective
    trained = {name for name, _ in objective.named_parameters()}
    assert {f"projections.{pair}.weight" for pair in ("0_0", "1_2", "2_4")} <= trained
    assert not [name for name in objective.student.state_dict() if "projection" in name]


def test_a_projection_between_equal_widths_starts_as_the_identity() -> None:
    objective = objective_of(make_parts(width=32))
    states = torch.randn(2, 3, 32)
    assert torch.equal(objective.projections["0_0"](states), states)


def test_a_shared_projection_is_one_for_all_layers() -> None:
    objective = objective_of(make_parts((phase_with({**MSE, "projection": "shared"}),)))
    assert list(objective.projections) == ["shared"]


def weight_of(objective: Objective) -> torch.Tensor:
    weight = objective.projections["orthogonal_2_4"].weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def test_an_orthogonal_projection_keeps_lengths_also_when_trained() -> None:
    fields = {**MSE, "projection": "orthogonal", "layer_map": "last"}
    parts = make_parts((phase_with(fields),))
    optimizer = torch.optim.SGD(parts.objective.parameters(), lr=1.0)
    batch, targets = batch_of(parts, slice(0, 6))
    before = weight_of(objective_of(parts)).clone()
    (total,) = parts.objective(batch, targets, Moment(0)).values()
    total.mean().backward()
    optimizer.step()
    weight = weight_of(objective_of(parts))
    assert not torch.allclose(weight, before)
    assert torch.allclose(weight.mT @ weight, torch.eye(16), atol=1e-5)
