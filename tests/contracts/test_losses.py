"""What holds for every loss, whatever it measures. A loss that is not listed here fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from tasks.kd import losses
from tasks.kd.errors import ShapeError
from tasks.kd.totals import Total

LENGTHS = [5, 3, 1, 4]


@dataclass(frozen=True)
class Case:
    """A loss with what it is given: `own` [B, ...] and `theirs`, cut into rows and padded."""

    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Total]
    own: torch.Tensor
    theirs: torch.Tensor
    zero_on_itself: bool
    ragged: bool


def cases() -> dict[str, Case]:
    """One per loss, and per option that changes the formula."""
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).float()

    logits, states = numbers(4, 6), numbers(4, 5, 8)
    deviation = numbers(8).abs() + 0.2
    return {
        "labels": Case(
            lambda s, t, _: losses.labels(s, t), logits, torch.tensor([0, 1, 5, 2]), False, False
        ),
        "kl": Case(
            lambda s, t, _: losses.kl(s, t, temperature=3.0), logits, numbers(4, 6), True, False
        ),
        "mse": Case(losses.mse, states, numbers(4, 5, 8), True, True),
        "mse standardised": Case(
            lambda s, t, m: losses.mse(s, t, m, deviation_D=deviation),
            states,
            numbers(4, 5, 8),
            True,
            True,
        ),
    }


CASES = cases()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def mask_of(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def run(case: Case, rows: slice = slice(None), extra: int = 0) -> Total:
    """The loss on some rows, with `extra` more columns of padding full of nonsense."""
    own, theirs = case.own[rows].clone(), case.theirs[rows].clone()
    if not case.ragged:
        return case.loss(own, theirs, torch.empty(0))
    own = torch.nn.functional.pad(own, (0, 0, 0, extra))
    theirs = torch.nn.functional.pad(theirs, (0, 0, 0, extra))
    mask = mask_of(LENGTHS[rows], own.shape[1])
    own[~mask], theirs[~mask] = 1e30, -1e30
    return case.loss(own, theirs, mask)


def test_every_loss_is_in_this_suite() -> None:
    assert {name.split()[0] for name in CASES} == set(losses.__all__)


def test_is_zero_on_itself(case: Case) -> None:
    if not case.zero_on_itself:
        assert float(run(case).sum) > 0
        return
    mask = mask_of(LENGTHS, 5)
    assert float(case.loss(case.own, case.own.clone(), mask).sum) == pytest.approx(0, abs=1e-6)


def test_what_stands_in_padding_and_how_much_of_it_there_is_never_matters(case: Case) -> None:
    plain, padded = run(case), run(case, extra=7)
    assert torch.equal(plain.sum, padded.sum)
    assert plain.count == padded.count


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_any_split_of_the_batch_gives_the_same_total(case: Case, cut: int) -> None:
    whole, merged = run(case), run(case, slice(0, cut)).merge(run(case, slice(cut, None)))
    assert merged.count == whole.count
    assert float(merged.sum) == pytest.approx(float(whole.sum), rel=1e-6)


def test_is_float32_and_finite_for_half_precision_input(case: Case) -> None:
    own, theirs = case.own.half(), case.theirs
    total = case.loss(own, theirs, mask_of(LENGTHS, 5))
    assert total.sum.dtype == torch.float32
    assert bool(torch.isfinite(total.sum))


def test_its_gradient_is_that_of_its_value(case: Case) -> None:
    own = case.own.clone().requires_grad_()
    mask = mask_of(LENGTHS, 5)
    case.loss(own, case.theirs, mask).sum.backward()
    assert own.grad is not None
    direction = torch.randn(own.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2
    ahead = case.loss(case.own + step * direction, case.theirs, mask).sum
    behind = case.loss(case.own - step * direction, case.theirs, mask).sum
    expected = float((own.grad * direction).sum())
    assert float(ahead - behind) / (2 * step) == pytest.approx(expected, rel=5e-3, abs=1e-3)


def test_padding_gets_no_gradient(case: Case) -> None:
    if not case.ragged:
        return
    own = case.own.clone().requires_grad_()
    mask = mask_of(LENGTHS, 5)
    case.loss(own, case.theirs, mask).sum.backward()
    assert own.grad is not None
    assert float(own.grad[~mask].abs().sum()) == 0


def test_shapes_that_differ_are_refused(case: Case) -> None:
    with pytest.raises(ShapeError, match="wrong shape"):
        case.loss(case.own, case.theirs[:2], mask_of(LENGTHS, 5))
