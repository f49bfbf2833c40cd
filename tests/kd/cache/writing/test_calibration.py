"""Statistics come from some texts, errors from others, and both are what they say."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.cache.format.codec import Moments, decode, encode, statistics_of
from tasks.kd.cache.writing.calibration import EXAMPLES, Sample, deviations, sample
from tasks.kd.cache.writing.job import distinct
from tasks.kd.data.examples.prepared import Ids, Split
from tasks.kd.errors import DataError
from tasks.kd.targets.targets import LiveTargets
from tests.kd.conftest import make_teacher
from tests.makers.caches import (
    CODECS,
    job_of,
    live_of,
    make_job,
    make_params,
    spread_teacher,
    texts_of,
    write,
)

STREAMS = ("logits", "hidden.0", "hidden.1", "hidden.2", "attention.2", "relation.2", "hidden.4")


def make_sample(texts: list[Ids], teacher: Any) -> Sample:
    return Sample(teacher, texts, STREAMS, pad_id=0, batch_tokens=64)


@pytest.fixture(scope="module")
def texts(split: Split) -> list[Ids]:
    return distinct(split.input_ids)[1]


def states_of(texts: list[Ids], teacher: Any, stream: str) -> torch.Tensor:
    """All tokens' states, each text run alone."""
    live = LiveTargets(teacher, (stream,), pad_id=0)
    return torch.cat([live.fetch([ids])[stream][0] for ids in texts])


@given(st.lists(st.integers(1, 99), min_size=1, max_size=2000))
def test_the_sample_is_spread_over_all_lengths(lengths: list[int]) -> None:
    rows = sample(sorted(lengths))
    assert len(rows) == min(len(lengths), EXAMPLES)
    assert rows == sorted(set(rows))
    assert rows[0] == 0
    assert rows[-1] == len(lengths) - 1
    assert max(np.diff(rows), default=0) <= len(lengths) / EXAMPLES + 2


def test_statistics_are_of_every_second_text_and_errors_of_the_others(texts: list[Ids]) -> None:
    teacher = make_teacher()
    fitted, held_back = texts[::2], texts[1::2]
    found = make_sample(texts, teacher).calibrate("hidden.2", "int8", 1.0)
    expected = statistics_of(states_of(fitted, teacher, "hidden.2"))
    assert found.statistics is not None
    torch.testing.assert_close(found.statistics.mean_D, expected.mean_D)
    torch.testing.assert_close(found.statistics.deviation_D, expected.deviation_D)
    states = states_of(held_back, teacher, "hidden.2")
    encoded = encode(states, "int8", found.statistics)
    difference = decode(encoded.values, encoded.scale, found.statistics) - states
    error = float(difference.norm() / states.norm())
    assert found.relative_error == pytest.approx(error, rel=0.02)
    assert found.width == 32


def test_attention_kl_is_that_of_the_next_layer_from_decoded_states(texts: list[Ids]) -> None:
    """Worked out anew: softmax over each text's own tokens, mean over heads and queries."""
    teacher = spread_teacher()
    found = make_sample(texts, teacher).calibrate("hidden.1", "int8", 1.0)
    assert found.statistics is not None
    attention = teacher.bert.encoder.layer[1].attention.self
    live, divergences = LiveTargets(teacher, ("hidden.1",), pad_id=0), []
    for ids in texts[1::2]:
        states = live.fetch([ids])["hidden.1"][0]
        encoded = encode(states, "int8", found.statistics)
        decoded = decode(encoded.values, encoded.scale, found.statistics)
        logs = []
        for state_TD in (states, decoded):
            queries, keys = (
                projection(state_TD).unflatten(-1, (4, 8)).transpose(0, 1).double()
                for projection in (attention.query, attention.key)
            )
            logs.append((queries @ keys.mT / 8**0.5).log_softmax(-1))
        divergences.append((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean(0))
    expected = float(torch.cat(divergences).mean().detach())
    assert expected > 1e-7
    assert found.attention_kl == pytest.approx(expected, rel=0.02)


def test_coarser_codecs_have_larger_errors(texts: list[Ids]) -> None:
    found = make_sample(texts, spread_teacher())
    errors = [found.calibrate("hidden.1", codec, 1.0) for codec in CODECS]  # type: ignore[arg-type]
    relative = [one.relative_error for one in errors]
    divergence = [one.attention_kl for one in errors]
    assert relative[0] == divergence[0] == 0
    assert relative == sorted(relative)
    assert divergence == sorted(divergence, key=lambda value: value or 0.0)
    assert 1e-4 < relative[1] < 4e-4 < relative[2] < 3e-3 < relative[3] < 0.02


def test_the_last_layer_and_logits_have_no_next_attention(texts: list[Ids]) -> None:
    found = make_sample(texts, make_teacher())
    assert found.calibrate("hidden.4", "int8", 1.0).attention_kl is None
    logits = found.calibrate("logits", "int8", 1e-9)
    assert (logits.codec, logits.relative_error, logits.attention_kl) == ("float32", 0.0, None)
    assert (logits.width, logits.statistics) == (3, None)


def test_a_codec_that_passes_the_bound_gives_way_to_float32(texts: list[Ids]) -> None:
    found = make_sample(texts, make_teacher())
    error = found.calibrate("hidden.2", "int8", 1.0).relative_error
    assert found.calibrate("hidden.2", "int8", error * 1.01).codec == "int8"
    finer = found.calibrate("hidden.2", "int8", error * 0.99)
    assert (finer.codec, finer.relative_error, finer.attention_kl) == ("float32", 0.0, 0.0)
    assert finer.statistics is not None  # for standardised losses


def test_errors_of_computed_streams_are_those_of_what_a_reader_sees(texts: list[Ids]) -> None:
    teacher = spread_teacher()
    found = make_sample(texts, teacher)
    kept = found.calibrate("hidden.1", "int8", 1.0)
    assert kept.statistics is not None
    computed = ("hidden.0", "attention.2", "relation.2", "hidden.2")
    errors = found.derived_errors(computed, {1: (kept.codec, kept.statistics)})
    assert errors["hidden.0"] == 0
    states = states_of(texts[1::2], teacher, "hidden.1")
    encoded = encode(states, "int8", kept.statistics)
    decoded = decode(encoded.values, encoded.scale, kept.statistics)
    inner = teacher.bert.encoder.layer[1].attention.self
    with torch.no_grad():
        own, theirs = (
            torch.cat([part(x) for part in (inner.query, inner.key, inner.value)], -1)
            for x in (decoded, states)
        )
    assert errors["relation.2"] == pytest.approx(
        float((own - theirs).norm() / theirs.norm()), rel=0.02
    )
    assert 0 < errors["hidden.2"] < 0.05
    assert 0 < errors["attention.2"] < 0.05
    exact = found.derived_errors(computed, {1: ("float32", kept.statistics)})
    assert all(error < 1e-6 for error in exact.values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_texts_suffice(count: int) -> None:
    found = make_sample(texts_of([4] * count), make_teacher()).calibrate("hidden.2", "int8", 1.0)
    assert 0 < found.relative_error < 0.02


def test_a_teacher_of_another_type_is_refused(texts: list[Ids]) -> None:
    with pytest.raises(DataError, match=r"teacher's \S+ is not what .* says. Expected float32"):
        make_sample(texts, make_teacher().half())


def test_deviations_are_those_of_the_texts(split: Split) -> None:
    """Of all of them where they are few; equal texts count as often as they are there."""
    teacher = make_teacher()
    live = LiveTargets(teacher, STREAMS, pad_id=0)
    found = deviations(live, split.input_ids, (0, 2))
    assert set(found) == {0, 2}
    for layer in (0, 2):
        expected = states_of(list(split.input_ids), teacher, f"hidden.{layer}")
        expected_D = expected.double().std(0, correction=0).float()
        torch.testing.assert_close(found[layer], expected_D, rtol=1e-4, atol=1e-6)
    assert deviations(live, split.input_ids, ()) == {}


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.floats(-1e4, 1e4),
    st.floats(1e-2, 1e2),
)
def test_statistics_of_parts_are_those_of_the_whole(
    counts: list[int], mean: float, deviation: float
) -> None:
    """Also where the mean is large: sums of squares would have lost the digits."""
    random = torch.Generator().manual_seed(sum(counts))
    states = torch.randn(sum(counts), 3, generator=random, dtype=torch.float64)
    states = (states * deviation + mean).float()
    moments = Moments(3)
    for part in states.split(counts):
        moments.add(part)
    double = states.double()
    found = moments.statistics()
    torch.testing.assert_close(found.mean_D, double.mean(0).float(), rtol=1e-6, atol=1e-9)
    expected_D = double.std(0, correction=0)
    ordinary = (expected_D > 0.11 * expected_D.median()) & (expected_D > 1e-9)
    torch.testing.assert_close(
        found.deviation_D[ordinary], expected_D[ordinary].float(), rtol=1e-6, atol=0
    )
    assert bool((found.deviation_D > 0).all())


class Counted:
    """Targets that know how many of the states that they gave are still held by somebody."""

    def __init__(self) -> None:
        self.given: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        self.most = max(self.most, sum(one() is not None for one in self.given))
        states = torch.randn(1, len(input_ids[0]), 4)
        self.given.append(weakref.ref(states))
        return {"hidden.1": states}


def test_deviations_keep_no_states() -> None:
    targets = Counted()
    deviations(targets, texts_of([7] * 40), (1,))
    assert len(targets.given) == 40
    assert targets.most <= 1


def test_deviations_do_not_depend_on_the_order_of_the_texts(split: Split) -> None:
    live = LiveTargets(make_teacher(), STREAMS, pad_id=0)
    own, other = (
        deviations(live, texts, (2,))[2] for texts in (split.input_ids, split.input_ids[::-1])
    )
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)


def test_what_was_measured_is_in_the_manifest(
    split: Split, texts: list[Ids], tmp_path: Path
) -> None:
    job = make_job(split, make_params(codec="int8", streams=STREAMS))
    manifest = write(job, tmp_path)
    found = make_sample(texts, job.teacher)
    for name, stream in manifest.streams.items():
        expected = found.calibrate(name, "int8", 0.02)
        assert (stream.codec, stream.relative_error) == (expected.codec, expected.relative_error)
        assert stream.attention_kl == expected.attention_kl
    assert manifest.codec_errors.keys() == set(STREAMS)
    assert manifest.computed["attention.2"] > 0


def test_calibration_of_a_large_set_runs_few_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.kd.cache.writing.calibration.EXAMPLES", 6)
    job = job_of(texts_of(range(3, 33)), make_params())
    manifest = write(job, tmp_path)
    live = live_of(job)
    texts = distinct(job.input_ids)[1]
    rows = [round(place) for place in np.linspace(0, 29, 6)]
    states = states_of([texts[row] for row in rows[1::2]], job.teacher, "hidden.2")
    error = float((states.half().float() - states).norm() / states.norm())
    assert manifest.streams["hidden.2"].relative_error == pytest.approx(error, rel=0.05)
    assert len(deviations(live, texts, (2,))[2]) == 32
