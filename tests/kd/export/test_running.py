"""Batches, order, padding and timing: what a prediction must not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.kd.data.examples.padding import pad_rows
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.errors import DataError
from tasks.kd.export import running as inference
from tasks.kd.export.running import (
    batches_of_like_length,
    hidden_states,
    predict_torch,
    time_in_pairs,
)
from tasks.kd.tokens.encoding import require_same_tokens
from tests.makers.tiny import tiny_model


def make_examples(count: int = 12) -> list[Ids]:
    """Examples of lengths 1 to 20, in no order."""
    random = np.random.default_rng(3)
    return [random.integers(4, 60, random.integers(1, 21)).astype(np.int32) for _ in range(count)]


def test_padding_is_on_the_right_and_masked() -> None:
    batch = pad_rows([np.array([5, 6], np.int32), np.array([7], np.int32)], [1, 0], 9)
    assert batch.input_ids.tolist() == [[7, 9], [5, 6]]
    assert batch.attention_mask.tolist() == [[1, 0], [1, 1]]
    assert batch.rows.tolist() == [1, 0]


@pytest.mark.parametrize("budget", [1, 16, 40, 4096])
def test_batches_hold_each_example_once_within_the_budget(budget: int) -> None:
    examples = make_examples()
    batches = list(batches_of_like_length(examples, 0, batch_tokens=budget))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(examples)))
    for batch in batches:
        assert batch.input_ids.size <= budget or len(batch.rows) == 1


def test_predictions_come_back_in_the_order_of_the_examples() -> None:
    model, examples = tiny_model(2), make_examples()
    heard: list[int] = []
    together = predict_torch(model, examples, pad_token_id=0, report=heard.append)
    alone = [predict_torch(model, [ids], pad_token_id=0)[0] for ids in examples]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)
    assert sum(heard) == len(examples)


def test_hidden_states_are_those_of_real_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_model(3), make_examples()
    together = hidden_states(model, examples, 3, pad_token_id=0)
    monkeypatch.setattr(inference, "_BATCH_TOKENS", 1)
    assert len(together) == 4
    assert {len(states) for states in together} == {sum(len(ids) for ids in examples)}
    shortest_first = sorted(range(len(examples)), key=lambda row: len(examples[row]))
    alone = [hidden_states(model, [examples[row]], 3, pad_token_id=0) for row in shortest_first]
    for layer, states in enumerate(together):
        np.testing.assert_allclose(states, np.concatenate([one[layer] for one in alone]), atol=1e-4)


def test_a_tokenizer_that_cuts_elsewhere_is_noticed() -> None:
    prepared = make_examples(3)
    require_same_tokens(prepared, prepared, where="tokenizer.json")
    found = [*prepared[:2], prepared[2][:-1]]
    with pytest.raises(DataError, match="1 of 3 texts that differ, the first in row 2"):
        require_same_tokens(found, prepared, where="tokenizer.json")


def test_both_classifiers_answer_each_text_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    clock = iter(range(0, 10**9, 2_000_000))

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def classify(self, text: str) -> None:
            asked.append((self.name, text))

    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock))
    pair: Any = (Recorder("teacher"), Recorder("student"))
    teacher, student = time_in_pairs(pair, ["a", "b"], warm_up=1)
    warm_up, timed = asked[:2], asked[2:]
    assert warm_up == [("teacher", "a"), ("student", "a")]
    assert timed == [("teacher", "a"), ("student", "a"), ("student", "b"), ("teacher", "b")]
    assert teacher.tolist() == student.tolist() == [2.0, 2.0]
