"""Each loss against numbers worked out from its paper's equation. See make.py."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from tasks.kd.digests import read_json
from tasks.kd.levels import losses
from tests.golden import references
from tests.golden.make import CASES, GOLDENS, take

NAMES = [f"{case[0]}-{number}" for number, case in enumerate(CASES)]


@pytest.fixture(scope="module")
def goldens() -> Any:
    return read_json(GOLDENS)


def window(scores: torch.Tensor, width: int) -> torch.Tensor:
    tokens = torch.arange(scores.shape[-1])
    return scores.masked_fill((tokens[:, None] - tokens).abs() > width, -torch.inf)


def tensors(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """As the losses are given them: float32, int64, and lengths as a mask."""
    mask = torch.arange(5) < torch.tensor(inputs["mask"])[:, None]
    return {name: torch.tensor(value) for name, value in inputs.items()} | {"mask": mask}


def arguments(loss: Any, given: list[Any], values: dict[str, Any]) -> dict[str, Any]:
    """What is given, by the loss's own names, as some may be given by name alone."""
    taken = [take(name, values, window) for name in given]
    return dict(zip(inspect.signature(loss).parameters, taken, strict=False))


def test_every_loss_has_a_golden(goldens: Any) -> None:
    assert sorted(goldens["losses"]) == sorted(losses.FUNCTIONS)
    assert sum(map(len, goldens["losses"].values())) == len(CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_a_loss_is_its_golden(goldens: Any, number: int) -> None:
    name = CASES[number][0]
    golden = goldens["losses"][name][[case[0] for case in CASES[:number]].count(name)]
    loss = losses.FUNCTIONS[name]
    given = arguments(loss, golden["given"], tensors(goldens["inputs"]))
    total = loss(**given, **golden["options"])
    assert float(total.sum) == pytest.approx(golden["sum"], rel=2e-6)
    assert total.count == golden["count"]


@pytest.mark.parametrize("name", sorted(losses.FUNCTIONS))
def test_a_golden_is_far_from_zero_and_from_others_of_its_loss(goldens: Any, name: str) -> None:
    sums = [golden["sum"] for golden in goldens["losses"][name]]
    assert min(sums) > 1e-2
    assert len({round(value, 4) for value in sums}) == len(sums)


def blanked(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs as the references are given them, with NaN at padding."""
    values = {
        name: np.array(value) if isinstance(value[0], list) else value
        for name, value in inputs.items()
    }
    for name, value in values.items():
        for row, length in enumerate(inputs["mask"]):
            if name.endswith(("states", "next", "edges")):
                value[row, length:] = np.nan
            elif "scores" in name:
                value[row, :, length:], value[row, :, :, length:] = np.nan, np.nan
    return values


@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_the_file_is_what_the_references_say_and_they_read_no_padding(
    goldens: Any, number: int
) -> None:
    name, given, options, _ = CASES[number]
    golden = goldens["losses"][name][[case[0] for case in CASES[:number]].count(name)]
    values = blanked(goldens["inputs"])
    taken = [take(part, values, references.windowed) for part in given]
    expected = getattr(references, name)(*taken, **options)
    assert golden["sum"] == pytest.approx(expected, rel=1e-12)
