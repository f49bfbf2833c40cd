"""How hidden states are kept: float32, float16 or bfloat16, with the error that it costs."""

from __future__ import annotations

from typing import Literal

import torch

Codec = Literal["float32", "float16", "bfloat16"]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def encode(states: torch.Tensor, codec: Codec) -> torch.Tensor:
    """The states in the codec's type."""
    return states.to(DTYPES[codec])


def decode(stored: torch.Tensor) -> torch.Tensor:
    """Back to float32."""
    return stored.float()


def relative_error(states: torch.Tensor, codec: Codec) -> float:
    """‖decoded − states‖ / ‖states‖ over all elements; infinite where a value overflows."""
    decoded = decode(encode(states, codec))
    if not bool(torch.isfinite(decoded).all()):
        return float("inf")
    return float((decoded - states).norm() / states.norm().clamp_min(1e-12))


def choose(states: torch.Tensor, codec: Codec, max_relative_error: float) -> tuple[Codec, float]:
    """The codec for one stream and its measured error: the one asked for, or float32."""
    error = relative_error(states, codec)
    if error > max_relative_error:
        return "float32", relative_error(states, "float32")
    return codec, error
