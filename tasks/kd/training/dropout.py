"""Dropout on CPUs at a tenth of its cost: the same rule, another source of random bits.

torch draws a Bernoulli number for each element, one after the other: a fifth of the step of a
small student, most of it for attention weights. Here NumPy's SFC64, seeded from torch's own
generator, fills 16 bits for each element, compared with a threshold.

B examples, H heads, T tokens, D width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_STEPS = 2**16  # a probability is rounded to a multiple of 1 / _STEPS


def quick_dropout(device: torch.device) -> AbstractContextManager[Any]:
    """While open, dropout on a CPU is drawn here; on other devices nothing changes.

    It covers `torch.nn.Dropout` and attention's own dropout. Like torch's, it depends on the state
    of torch's generator alone. A backward pass that recomputes layers needs it as well.
    """
    return _Quick() if device.type == "cpu" else nullcontext()


class _Quick(TorchFunctionMode):
    """Replaces two of torch's functions while it is active."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is functional.dropout:
            return _dropout(*args, **named)
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **named)
        return func(*args, **named)


def _dropout(
    values: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """What `torch.nn.functional.dropout` computes, with draws of our own."""
    if not training or inplace or not 0 < p < 1:
        return functional.dropout(values, p, training, inplace)
    return values * kept(values, p)


def kept(values: torch.Tensor, p: float) -> torch.Tensor:
    """Factors in the values' shape and type: 0 with probability p, else 1 / (1 - p)."""
    seed = int(torch.randint(2**63 - 1, ()))
    draws = np.random.Generator(np.random.SFC64(seed))
    words = draws.integers(2**64, size=-(-values.numel() // 4), dtype=np.uint64)
    bits = torch.from_numpy(words.view(np.int16))[: values.numel()].view(values.shape)
    found = torch.empty_like(values, memory_format=torch.contiguous_format, requires_grad=False)
    torch.ge(bits, round(p * _STEPS) - _STEPS // 2, out=found)
    return found.mul_(1 / (1 - p))


def _attention(
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    *causal: bool,
    scale: float | None = None,
    **named: Any,
) -> torch.Tensor:
    """What torch's `scaled_dot_product_attention` computes; with dropout it has no kernel."""
    if not 0 < dropout_p < 1 or any(causal) or any(named.values()):
        attention: Any = functional.scaled_dot_product_attention
        states = (query_BHTD, key_BHTD, value_BHTD)
        found: torch.Tensor = attention(
            *states, attn_mask, dropout_p, *causal, scale=scale, **named
        )
        return found
    scale = query_BHTD.shape[-1] ** -0.5 if scale is None else scale
    scores_BHTT = (query_BHTD * scale) @ key_BHTD.transpose(-2, -1)
    if attn_mask is not None:
        scores_BHTT = scores_BHTT + _added(attn_mask, scores_BHTT.dtype)
    weights_BHTT = scores_BHTT.softmax(-1)
    return _dropout(weights_BHTT, dropout_p).to(value_BHTD.dtype) @ value_BHTD


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as numbers to add to scores; booleans are true where a token is seen."""
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
