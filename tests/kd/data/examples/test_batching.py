from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.data.examples.batching import epoch_batches, micro_batches, split_by_tokens

lengths_of = st.lists(st.integers(1, 60), min_size=1, max_size=300).map(np.asarray)


@given(lengths_of, st.integers(1, 40), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(
    lengths: np.ndarray, size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, batch_examples=size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert all(len(batch) <= size for batch in batches)


def test_the_order_is_that_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    first, again, later, other = (
        np.concatenate(epoch_batches(lengths, batch_examples=8, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert first == again
    assert first != later
    assert first != other


def test_batches_of_like_length_hold_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(4, 129, 4000)

    def padded(batches: list[np.ndarray]) -> float:
        return sum(len(b) * int(lengths[b].max()) for b in batches) / float(lengths.sum())

    bucketed = padded(epoch_batches(lengths, batch_examples=32, seed=0, epoch=0))
    shuffled = padded(np.array_split(np.random.default_rng(1).permutation(4000), 125))
    assert bucketed < 1.1
    assert shuffled > 1.5


@given(lengths_of, st.integers(1, 5), st.integers(1, 400))
def test_ranks_share_a_batch_and_each_piece_keeps_to_the_bound(
    lengths: np.ndarray, world_size: int, max_tokens: int
) -> None:
    rows = np.arange(len(lengths))[::-1]
    shares = [
        micro_batches(rows, lengths, max_tokens=max_tokens, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sorted(row for share in shares for piece in share for row in piece) == sorted(rows)
    for piece in (piece for share in shares for piece in share):
        assert len(piece) <= 1 or len(piece) * lengths[piece].max() <= max_tokens


def test_a_rank_without_an_example_still_takes_part() -> None:
    share = micro_batches(np.asarray([3]), np.asarray([5] * 4), max_tokens=9, rank=1, world_size=2)
    assert [len(piece) for piece in share] == [0]


def test_nothing_is_split_into_nothing() -> None:
    assert (
        list(split_by_tokens(np.asarray([], dtype=np.int64), np.asarray([1]), max_tokens=5)) == []
    )
