"""Gradients are summed over processes to the bit, also where a table of words goes in rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tasks.kd.processes import ranks
from tasks.kd.processes.launch import run_processes


def gradients(rank: int) -> list[torch.Tensor]:
    """A table of which each process reached other rows, one that nobody reached, and others."""
    table, untouched = torch.zeros(5000, 7), torch.zeros(5000, 3)
    generator = torch.Generator().manual_seed(rank)
    rows = torch.tensor([0, 4999, 17]) if rank == 0 else torch.tensor([17, 18, 4000])
    table[rows] = torch.randn(3, 7, generator=generator)
    table[40 + rank] = 1e-30  # whose norm underflows
    return [torch.randn(6, 4, generator=generator), table, untouched, torch.full((3,), 1.0 + rank)]


def sum_up(folder: str) -> None:
    sent: list[int] = []
    reduce = distributed.all_reduce

    def counted(tensor: torch.Tensor, *more: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *more)

    found = gradients(ranks.rank())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "all_reduce", counted)
        ranks.add_up(found)
    expected = [a + b for a, b in zip(gradients(0), gradients(1), strict=True)]
    for own, whole in zip(found, expected, strict=True):
        counts = whole.abs() > 1e-20  # the rows whose norm underflows may be left out
        assert torch.equal(own * counts, whole * counts)
    # Five rows of a table of 5 000, and a byte for each row of both.
    assert sum(sent) < 2 * 5000 + 4 * (5 * 7 + 6 * 4 + 3) + 1
    spoilt = gradients(ranks.rank())
    spoilt[1][99] = torch.nan if ranks.rank() else 0.0
    ranks.add_up(spoilt)
    assert bool(spoilt[1][99].isnan().all())
    (Path(folder) / f"done-{ranks.rank()}").touch()


@pytest.mark.slow
def test_a_sum_is_what_one_process_would_have_added(tmp_path: Path) -> None:
    run_processes(sum_up, str(tmp_path), processes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done-0", "done-1"]
