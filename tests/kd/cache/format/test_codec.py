"""What a codec keeps of a state, by hand and as bounds that hold for every number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks.kd.cache.format.codec import (
    DTYPES,
    Encoded,
    Statistics,
    decode,
    encode,
    is_finite,
    relative_error,
    statistics_of,
)
from tests.makers.caches import CODECS

# Half a unit in the last place, of each float's significand; and its smallest normal number.
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float32": 0.0, "float16": 2.0**-24, "bfloat16": 2.0**-133}

NUMBERS = st.floats(-1000, 1000, width=32, allow_subnormal=False)
STATES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 8)), elements=NUMBERS
).map(torch.from_numpy)


def standard(width: int) -> Statistics:
    return Statistics(torch.zeros(width), torch.ones(width))


def test_int8_is_decoded_as_the_format_says() -> None:
    """values · scale · deviation + mean, worked out by hand."""
    values = torch.tensor([[127, -64], [0, 1]], dtype=torch.int8)
    scale = torch.tensor([[0.5], [0.25]], dtype=torch.float16)
    statistics = Statistics(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 4.0]))
    expected = [[127 * 0.5 * 2 + 1, -64 * 0.5 * 4 - 1], [1.0, 1 * 0.25 * 4 - 1]]
    assert decode(values, scale, statistics).tolist() == expected == [[128.0, -129.0], [1.0, 0.0]]
    assert decode(values[None], scale[None], statistics).tolist() == [expected]  # a batch


def test_int8_is_encoded_as_the_format_says() -> None:
    """Channels are standardised, then each token is divided by its own largest value / 127."""
    statistics = Statistics(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 4.0]))
    states = torch.tensor([[128.0, -129.0], [1.0, -1.0], [1 + 2 * 63.5, -1 - 4 * 31.75]])
    encoded = encode(states, "int8", statistics)
    assert encoded.scale is not None
    assert encoded.scale.tolist() == [[0.5], [2.0**-14], [0.5]]  # the mean itself: least scale
    assert encoded.values.tolist() == [[127, -64], [0, 0], [127, -64]]  # -63.5 to the even one


@pytest.mark.parametrize("codec", CODECS)
def test_types_are_those_of_the_format(codec: Any) -> None:
    encoded = encode(torch.randn(3, 4), codec, standard(4))
    assert encoded.values.dtype == DTYPES[codec]
    assert encoded.values.shape == (3, 4)
    assert (encoded.scale is not None) == (codec == "int8")
    if encoded.scale is not None:
        assert (encoded.scale.dtype, encoded.scale.shape) == (torch.float16, (3, 1))
    assert decode(encoded.values, encoded.scale, standard(4)).dtype == torch.float32


@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16"])
@given(states=STATES)
def test_floats_are_off_by_half_a_unit_in_the_last_place(codec: Any, states: torch.Tensor) -> None:
    encoded = encode(states, codec, standard(states.shape[1]))
    error = (decode(encoded.values, None, None) - states).abs()
    assert bool((error <= ROUNDING[codec] * states.abs() + TINY[codec]).all())


@given(STATES, st.floats(-100, 100, width=32), st.floats(0.5, 20, width=32))
def test_int8_is_off_by_half_a_step_of_its_token(
    states: torch.Tensor, mean: float, deviation: float
) -> None:
    """And by what rounding the scale to float16 adds: at most 127 · 2^-11 of a step."""
    width = states.shape[1]
    statistics = Statistics(torch.full((width,), mean), torch.full((width,), deviation))
    encoded = encode(states, "int8", statistics)
    assert encoded.scale is not None
    assert is_finite(encoded)
    error = (decode(encoded.values, encoded.scale, statistics) - states).abs()
    step = encoded.scale.float() * deviation
    rounding = 4e-7 * (states.abs() + abs(mean))
    assert bool((error <= step * (0.5 + 127 * 2**-11) + rounding).all())
    largest = ((states - mean) / deviation).abs().amax(1, keepdim=True)
    assert bool((encoded.scale.float() <= largest / 127 * (1 + 2**-11) + 2**-14).all())


@pytest.mark.parametrize("codec", CODECS)
@given(states=STATES)
def test_encoding_leaves_its_input_alone_and_minds_no_other_token(
    codec: Any, states: torch.Tensor
) -> None:
    before, statistics = states.clone(), standard(states.shape[1])
    encoded = encode(states, codec, statistics)
    assert torch.equal(states, before)
    for row in range(len(states)):
        alone = encode(states[row : row + 1], codec, statistics)
        assert torch.equal(alone.values[0], encoded.values[row])


@pytest.mark.parametrize("codec", CODECS)
def test_decoding_leaves_what_is_stored_alone(codec: Any) -> None:
    """Float32 values are the memory map itself: writing to them would end the process."""
    encoded = encode(torch.randn(5, 4), codec, standard(4))
    before = encoded.values.clone()
    decode(encoded.values, encoded.scale, standard(4)).sum()
    assert torch.equal(encoded.values, before)


def test_statistics_are_those_of_the_channels_in_double_precision() -> None:
    random = np.random.default_rng(0)
    states = (random.normal(size=(50, 6)) * [1, 5, 0.5, 2, 3, 9] + 100).astype(np.float32)
    found = statistics_of(torch.from_numpy(states))
    exact = states.astype(np.float64)
    np.testing.assert_allclose(found.mean_D.numpy(), exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.deviation_D.numpy(), exact.std(0), rtol=1e-6)


def test_a_channel_that_does_not_move_counts_with_the_median_deviation() -> None:
    states = torch.tensor([[1.0, 7.0, 0.0], [3.0, 7.0, 4.0]])
    assert statistics_of(states).deviation_D.tolist() == [1.0, 1.0, 2.0]
    assert statistics_of(torch.ones(1, 4)).deviation_D.tolist() == [1.0] * 4
    slow = torch.tensor([[1.0, 1.0, 1.0, 7.0, 7.0], [3.0, 3.0, 3.0, 7.4, 7.1]])
    deviations = [1.0, 1.0, 1.0, 0.2, 1.0]  # a fifth is a movement, a twentieth is none
    assert statistics_of(slow).deviation_D.tolist() == pytest.approx(deviations)


def test_what_overflows_is_told() -> None:
    huge = torch.tensor([[1e6, 1.0]])
    told = {codec: is_finite(encode(huge, codec, standard(2))) for codec in DTYPES}  # type: ignore[arg-type]
    assert told == {"float32": True, "float16": False, "bfloat16": True, "int8": True}
    assert not is_finite(encode(100 * huge, "int8", standard(2)))  # its scale is float16
    assert not is_finite(Encoded(torch.tensor([[float("nan")]])))
    for codec in CODECS:
        for bad in (float("nan"), float("inf"), float("-inf")):
            assert not is_finite(encode(torch.tensor([[1.0, bad]]), codec, standard(2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_told_wherever_it_stands(dtype: torch.dtype) -> None:
    states = torch.randn(9, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_finite(Encoded(states))
    assert is_finite(Encoded(states[:0]))
    for place in range(states.numel()):
        broken = states.clone()
        broken.view(-1)[place] = (float("nan"), float("inf"), float("-inf"))[place % 3]
        assert not is_finite(Encoded(broken)), place


def test_the_measured_error_by_hand() -> None:
    assert relative_error(torch.tensor([[1e6, 1.0]]), "float16", standard(2)) == float("inf")
    assert relative_error(torch.randn(9, 9), "float32", standard(9)) == 0
    # 2049 is stored as 2048 in float16, 257 as 256 in bfloat16
    off = relative_error(torch.tensor([[2049.0, 0.0]]), "float16", standard(2))
    assert off == pytest.approx(1 / 2049)
    off = relative_error(torch.tensor([[257.0, 0.0]]), "bfloat16", standard(2))
    assert off == pytest.approx(1 / 257)
    # steps of 1: 0.25 becomes 0
    off = relative_error(torch.tensor([[127.0, 0.25]]), "int8", standard(2))
    assert off == pytest.approx(0.25 / (127**2 + 0.25**2) ** 0.5)
    assert relative_error(torch.zeros(2, 2), "int8", standard(2)) == 0


def test_standardising_is_what_saves_int8_from_outlying_channels() -> None:
    """As BERT has them (methods.md, section 3b): one channel of a hundred times the others'."""
    states = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    states[:, 3] = 100 * states[:, 3] + 500
    quiet = [channel for channel in range(16) if channel != 3]

    def error(statistics: Statistics) -> float:
        encoded = encode(states, "int8", statistics)
        decoded = decode(encoded.values, encoded.scale, statistics)
        return float((decoded - states)[:, quiet].norm() / states[:, quiet].norm())

    assert error(statistics_of(states)) < 0.01
    assert error(standard(16)) > 0.5
