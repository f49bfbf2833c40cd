from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.totals import Total

totals = st.builds(
    Total, st.integers(-50, 50).map(lambda n: torch.tensor(float(n))), st.integers(0, 40)
)


@given(totals, totals, totals)
def test_merging_is_associative_and_commutative(a: Total, b: Total, c: Total) -> None:
    left, right = a.merge(b).merge(c), c.merge(b.merge(a))
    assert left.count == right.count
    assert float(left.sum) == float(right.sum)


def test_mean_divides_once_by_the_count_it_is_given() -> None:
    total = Total(torch.tensor(6.0), 3)
    assert float(total.mean()) == 2
    assert float(total.mean(12)) == 0.5


def test_mean_of_nothing_is_zero() -> None:
    assert float(Total(torch.tensor(0.0), 0).mean()) == pytest.approx(0)
