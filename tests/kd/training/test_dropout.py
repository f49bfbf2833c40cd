"""Dropout drawn quickly: the rule of torch's own, from other random bits."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.kd.training import dropout
from tasks.kd.training.dropout import quick_dropout
from tests.makers.small_families import CONFIGS, small

CPU = torch.device("cpu")
DRAWS = 400_000


def drawn(p: float, seed: int = 0, *, count: int = DRAWS) -> torch.Tensor:
    torch.manual_seed(seed)
    with quick_dropout(CPU):
        return functional.dropout(torch.ones(count), p)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_that_share_is_dropped_and_the_rest_made_up_for_it(p: float) -> None:
    values = drawn(p)
    assert set(values.tolist()) == {0.0, float(torch.tensor(1 / (1 - p)))}
    error = math.sqrt(p * (1 - p) / DRAWS)
    assert abs(float((values == 0).double().mean()) - p) < 5 * error
    beside = ((values[1:] == 0) & (values[:-1] == 0)).double().mean()
    assert abs(float(beside) - p * p) < 5 * math.sqrt(p * p / DRAWS)


def test_the_state_of_torchs_generator_decides_alone() -> None:
    assert torch.equal(drawn(0.3), drawn(0.3))
    assert not torch.equal(drawn(0.3), drawn(0.3, seed=1))
    with quick_dropout(CPU):
        ones = torch.ones(1000)
        assert not torch.equal(functional.dropout(ones, 0.5), functional.dropout(ones, 0.5))


def test_a_gradient_passes_where_a_value_did() -> None:
    values = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    with quick_dropout(CPU):
        found = functional.dropout(values, 0.4)
    found.sum().backward()
    assert values.grad is not None
    assert torch.equal(found.detach(), values.detach() * values.grad)
    assert set(values.grad.flatten().tolist()) == {0.0, 1 / 0.6}


@pytest.mark.parametrize(
    "named", [{"p": 0.0}, {"p": 1.0}, {"p": 0.5, "training": False}, {"p": 0.5, "inplace": True}]
)
def test_what_is_not_dropped_at_random_is_as_torch_does_it(named: dict[str, Any]) -> None:
    values = torch.randn(100)
    torch.manual_seed(1)
    expected = functional.dropout(values.clone(), **named)
    torch.manual_seed(1)
    with quick_dropout(CPU):
        assert torch.equal(functional.dropout(values.clone(), **named), expected)
    with quick_dropout(CPU), pytest.raises(ValueError, match="between 0 and 1"):
        functional.dropout(values, 1.5)


def masks() -> list[torch.Tensor | None]:
    """None, of booleans by key, of booleans by query and key, and of what is added."""
    seen_BT = torch.arange(7)[None] < torch.tensor([7, 4, 1])[:, None]
    by_key = seen_BT[:, None, None, :].expand(3, 1, 7, 7)
    near = (torch.arange(7)[:, None] - torch.arange(7)[None]).abs() <= 2
    added = torch.zeros(3, 1, 7, 7).masked_fill(~by_key, torch.finfo(torch.float32).min)
    return [None, by_key, near[None, None] & seen_BT[:, None, :, None] | by_key, added]


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_torchs_but_for_what_is_dropped(
    mask: torch.Tensor | None, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    states = [torch.randn(3, 2, 7, 5, requires_grad=True) for _ in range(3)]
    attention: Any = functional.scaled_dot_product_attention
    monkeypatch.setattr(dropout, "kept", lambda values, _p: torch.ones_like(values))
    with quick_dropout(CPU):
        found = attention(*states, attn_mask=mask, dropout_p=0.5, scale=scale)
    expected = attention(*states, attn_mask=mask, scale=scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    ways = torch.randn_like(found)
    both = (torch.autograd.grad(output, states, ways) for output in (found, expected))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_attention_drops_weights_and_is_right_on_average() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 6, 4) for _ in range(3))
    with quick_dropout(CPU):
        found = torch.stack(
            [
                functional.scaled_dot_product_attention(query, key, value, dropout_p=0.2)
                for _ in range(4000)
            ]
        )
    exact = functional.scaled_dot_product_attention(query, key, value)
    error = found.std(0) / math.sqrt(len(found))
    assert bool((error > 0).all())
    assert float(((found.mean(0) - exact) / error).abs().max()) < 5
    with quick_dropout(CPU):
        assert torch.equal(functional.scaled_dot_product_attention(query, key, value), exact)


def test_what_has_a_rule_of_its_own_is_left_to_torch() -> None:
    torch.manual_seed(0)
    states = [torch.randn(2, 2, 6, 4) for _ in range(3)]
    for causal, named in (((True,), {}), ((), {"is_causal": True})):
        found = []
        for context in (quick_dropout(CPU), nullcontext()):
            torch.manual_seed(1)
            attention: Any = functional.scaled_dot_product_attention
            with context:
                found.append(attention(*states, None, 0.5, *causal, **named))
        assert torch.equal(*found)


class Bernoulli(TorchDispatchMode):
    """Counts what torch draws itself."""

    times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += "bernoulli" in str(func) or "native_dropout" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", CONFIGS)
def test_no_family_has_torch_draw(family: str) -> None:
    model: Any = small(family).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    def draws() -> int:
        counted = Bernoulli()  # type: ignore[no-untyped-call]
        with counted:
            model(input_ids=ids, attention_mask=mask).logits.sum().backward()
        return counted.times

    assert draws() > 0
    with quick_dropout(CPU):
        assert draws() == 0


def test_elsewhere_than_on_a_cpu_nothing_changes() -> None:
    torch.manual_seed(0)
    expected = functional.dropout(torch.ones(100), 0.5)
    torch.manual_seed(0)
    with quick_dropout(torch.device("cuda")):
        assert torch.equal(functional.dropout(torch.ones(100), 0.5), expected)
