"""Each loss against numbers worked out from its paper's equation. See make.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.kd import losses
from tasks.kd.digests import read_json
from tests.golden.make import GOLDENS


@pytest.fixture(scope="module")
def goldens() -> Any:
    return read_json(GOLDENS)


def test_every_loss_has_a_golden(goldens: Any) -> None:
    assert sorted(goldens) == sorted(losses.__all__)


def test_labels(goldens: Any) -> None:
    golden = goldens["labels"]
    total = losses.labels(torch.tensor(golden["student"]), torch.tensor(golden["classes"]))
    assert float(total.sum) == pytest.approx(golden["sum"], rel=1e-6)
    assert total.count == 4


@pytest.mark.parametrize("number", range(3))
def test_kl(goldens: Any, number: int) -> None:
    golden = goldens["kl"][number]
    total = losses.kl(
        torch.tensor(golden["student"]),
        torch.tensor(golden["teacher"]),
        temperature=golden["temperature"],
    )
    assert float(total.sum) == pytest.approx(golden["sum"], rel=1e-5)
    assert total.count == 4


@pytest.mark.parametrize("number", range(2))
def test_mse(goldens: Any, number: int) -> None:
    golden = goldens["mse"][number]
    mask = torch.arange(5) < torch.tensor(golden["lengths"])[:, None]
    deviation = golden["deviation"]
    total = losses.mse(
        torch.tensor(golden["student"]),
        torch.tensor(golden["teacher"]),
        mask,
        deviation_D=None if deviation is None else torch.tensor(deviation),
    )
    assert float(total.sum) == pytest.approx(golden["sum"], rel=1e-6)
    assert total.count == sum(golden["lengths"])
