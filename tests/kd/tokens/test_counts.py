"""What is cut and what is unknown, counted on texts whose every token is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tasks.kd.errors import DataError
from tasks.kd.tokens.counts import read_texts, require_known
from tests.makers.tokenizer_folders import wordpiece

UNKNOWN = 1


def cutting(length: int, side: str) -> Tokenizer:
    tokenizer = wordpiece()
    tokenizer.enable_truncation(length, direction=side)
    return tokenizer


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_that_is_cut_is_counted_at_its_whole_length(side: str) -> None:
    texts = ["a " * words for words in (1, 6, 7, 40)]
    reading = read_texts(cutting(8, side), texts, unknown_id=UNKNOWN)
    assert [len(ids) for ids in reading.input_ids] == [3, 8, 8, 8]
    assert reading.whole.tolist() == [3, 8, 9, 42]
    assert reading.cut_fraction(8) == 0.5
    assert reading.tokens_for_99_percent == 42


def test_the_length_for_99_percent_leaves_one_of_a_hundred() -> None:
    texts = ["a a"] * 99 + ["a " * 30]
    assert read_texts(wordpiece(), texts, unknown_id=UNKNOWN).tokens_for_99_percent == 4
    texts = ["a a"] * 98 + ["a " * 30] * 2
    assert read_texts(wordpiece(), texts, unknown_id=UNKNOWN).tokens_for_99_percent == 32


def test_unknown_words_are_counted_and_named(tmp_path: Path) -> None:
    texts = ["where is Zug zug", "a parcel", "", "Zug"]
    reading = read_texts(wordpiece(), texts, unknown_id=UNKNOWN)
    # Four and two words, a text of which nothing is left, and one more.
    assert (reading.unknown, reading.tokens) == (4, 8)
    assert reading.words == {"Zug": 2, "zug": 1}
    require_known(reading, 0.5, where=tmp_path)
    with pytest.raises(DataError, match=r"found 50.0%, most often 'Zug', 'zug'"):
        require_known(reading, 0.49, where=tmp_path)


def test_without_an_unknown_piece_nothing_is_unknown() -> None:
    assert read_texts(wordpiece(), ["Zug"], unknown_id=None).unknown_fraction == 0


def test_a_text_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(DataError, match="the tokenizer can't read a text: texts 1 to 2"):
        read_texts(wordpiece(), ["a", "\ud83d"], unknown_id=UNKNOWN)
