from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.errors import ShapeError
from tasks.kd.students.bases import Basis, principal, selected


def moment(width: int, *, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    """Second moment of states of unequal channels, in a subspace if a rank is given."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(400, rank or width, generator=generator, dtype=torch.float64)
    mix = torch.randn(rank or width, width, generator=generator, dtype=torch.float64)
    states = states @ mix * torch.linspace(0.3, 2.0, width, dtype=torch.float64)
    return states.T @ states / len(states)


def normalised(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(rows, rows.shape[1:], eps=0.0)


@given(st.integers(3, 24), st.data())
def test_columns_are_orthonormal_and_one_direction_is_the_channels_mean(
    have: int, data: st.DataObject
) -> None:
    width = data.draw(st.integers(2, have))
    basis = principal(moment(have, seed=width), width)
    columns = basis.columns
    assert torch.allclose(columns.T @ columns, torch.eye(width, dtype=torch.float64), atol=1e-10)
    mean = torch.full((have,), have**-0.5, dtype=torch.float64)
    kept = torch.full((width,), width**-0.5, dtype=torch.float64)
    assert torch.allclose(mean @ columns, kept, atol=1e-10)


def test_of_the_full_width_components_are_the_channels_themselves() -> None:
    basis = principal(moment(12), 12)
    assert torch.equal(basis.columns, torch.eye(12, dtype=torch.float64))
    assert basis.scale == 1.0


def test_components_keep_more_of_the_states_than_any_channels_do() -> None:
    states = moment(16, rank=6)

    def kept(basis: Basis) -> float:
        centred = torch.eye(16, dtype=torch.float64) - 1 / 16
        about = centred @ states @ centred
        return float((basis.columns.T @ about @ basis.columns).trace() / about.trace())

    assert kept(principal(states, 7)) > 1 - 1e-9  # 6 dimensions about the mean, and the mean
    assert kept(principal(states, 4)) < 1 - 1e-3
    for channels in torch.combinations(torch.arange(16), 4)[::37]:
        assert kept(selected(states, channels)) < kept(principal(states, 4))


def test_a_layer_norm_does_in_the_narrow_space_what_it_did_in_the_wide_one() -> None:
    """States that lie in the kept components: exactly, and as large per channel."""
    states = moment(16, rank=6)
    basis = principal(states, 7)
    vectors = torch.linalg.eigh(states).eigenvectors[:, -6:]
    rows = torch.randn(50, 6, dtype=torch.float64) @ vectors.T
    wide = normalised(rows)
    assert torch.allclose(normalised(basis.narrow(rows)), basis.narrow(wide), atol=1e-10)
    assert basis.scale == pytest.approx((16 / 7) ** 0.5)


def test_columns_stay_as_near_to_channels_as_may_be() -> None:
    """Any other columns of the same components would be further from single channels."""
    basis = principal(moment(16), 12)
    fourth = basis.columns.pow(4).sum()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        turn, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
        assert (basis.columns @ turn).pow(4).sum() < fourth


def test_equal_gains_stay_what_they_are_and_channels_keep_theirs() -> None:
    states = moment(10)
    assert torch.allclose(
        principal(states, 4).gain(torch.full((10,), 0.7)), torch.tensor([0.7]).double()
    )
    gains = torch.arange(10.0)
    channels = torch.tensor([1, 4, 9])
    assert torch.equal(selected(states, channels).gain(gains), gains[channels].double())
    assert principal(states, 4).gain(gains).std() > 0.1


def test_what_is_lost_is_the_rest() -> None:
    basis, vector = principal(moment(10), 4), torch.randn(10, dtype=torch.float64)
    kept = basis.narrow(vector) * basis.scale @ basis.columns.T
    assert torch.allclose(kept + basis.lost(vector), vector)
    assert basis.narrow(basis.lost(vector)).abs().max() < 1e-12


@pytest.mark.parametrize("width", [0, 1, 11])
def test_components_that_are_not_there_are_refused(width: int) -> None:
    with pytest.raises(ShapeError, match=f"Expected 2 to 10, found {width}"):
        principal(moment(10), width)


def test_a_moment_that_is_not_square_is_refused() -> None:
    with pytest.raises(ShapeError, match="second moment"):
        principal(torch.ones(4, 5), 2)
