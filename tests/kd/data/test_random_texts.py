"""Texts of random tokens: the whole vocabulary, evenly, in the lengths that are asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing

from tasks.kd.data.examples.prepared import NO_LABEL, Split, read_split, write_split
from tasks.kd.data.random_texts import random_texts
from tasks.kd.errors import DataError
from tasks.kd.levels.losses.prediction import NO_LABEL as NO_LABEL_OF_LOSSES
from tests.makers.tiny import SPECIAL, WORDS, tiny_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    found = Tokenizer.from_file(str(tiny_tokenizer(tmp_path / "tokenizer.json")))
    found.add_special_tokens(SPECIAL)
    found.enable_truncation(16)
    return found


def test_every_word_comes_before_any_comes_again(tokenizer: Tokenizer) -> None:
    lengths = [9, 12, 4, 16] * 5  # 165 places for 60 words
    found = random_texts(tokenizer, lengths, seed=3)
    assert [len(ids) for ids in found.input_ids] == lengths
    assert {(ids[0], ids[-1]) for ids in found.input_ids} == {(2, 3)}
    drawn = np.concatenate([ids[1:-1] for ids in found.input_ids]).tolist()
    words = set(range(len(SPECIAL), len(SPECIAL) + len(WORDS)))
    assert set(drawn[:60]) == set(drawn[60:120]) == words
    assert set(Counter(drawn).values()) == {2, 3}
    assert drawn[:60] != drawn[60:120]


def test_they_have_no_label_and_say_what_they_hold(tokenizer: Tokenizer) -> None:
    found = random_texts(tokenizer, [6] * 5, seed=0)
    assert not len(found.labelled)
    assert len(set(found.example_ids)) == 5
    assert [tokenizer.encode(text).ids for text in found.texts] == [
        ids.tolist() for ids in found.input_ids
    ]


def test_the_seed_decides_them(tokenizer: Tokenizer) -> None:
    def drawn(seed: int) -> list[list[int]]:
        return [ids.tolist() for ids in random_texts(tokenizer, [12] * 3, seed=seed).input_ids]

    assert drawn(1) == drawn(1) != drawn(2)


def test_what_stands_around_a_text_is_the_tokenizer_s_own(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    found = random_texts(tokenizer, [5, 5], seed=0)
    assert all(ids[0] >= len(SPECIAL) and ids[-1] == 3 for ids in found.input_ids)
    tokenizer.post_processor = None
    found = random_texts(tokenizer, [5, 5], seed=0)
    assert all(ids.min() >= len(SPECIAL) and len(ids) == 5 for ids in found.input_ids)


def test_the_shortest_holds_a_word(tokenizer: Tokenizer) -> None:
    assert [len(ids) for ids in random_texts(tokenizer, [2, 3, 0], seed=0).input_ids] == [3, 3, 3]


def test_a_tokenizer_that_leaves_letters_out_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = Replace("a", "")
    with pytest.raises(DataError, match=r"makes no token of the text 'a'.*\[CLS\]"):
        random_texts(tokenizer, [5], seed=0)


def test_they_stand_behind_labelled_texts_in_a_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    own = Split(["a"], ["word1"], np.asarray([1]), [np.asarray([2, 5, 3], dtype=np.int32)])
    both = own.followed_by(random_texts(tokenizer, [5, 5], seed=0))
    write_split(tmp_path / "train.arrow", both)
    found = read_split(tmp_path / "train.arrow")
    assert found.labels.tolist() == [1, NO_LABEL, NO_LABEL]
    assert found.labelled.tolist() == [0]
    assert found.example_ids == ["a", "random-0", "random-1"]


def test_losses_know_the_same_label_of_none() -> None:
    assert NO_LABEL == NO_LABEL_OF_LOSSES
