"""Texts that are made of a tokenizer's tokens alone, with no regard to what they mean.

They hold every token about equally often, so that a student which matches its teacher's layers on
them learns of the words that its training texts lack. That random words draw out of an encoder
what it knows was shown by Krishna et al. (arXiv:1910.12366), there of its predictions.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from tasks.kd.data import NO_LABEL, Ids, Split
from tasks.kd.errors import DataError


def vocabulary_texts(tokenizer: Tokenizer, *, count: int, tokens: int, seed: int) -> Split:
    """So many unlabelled texts of so many tokens each, the tokenizer's special ones included.

    Between the special tokens that the tokenizer puts around a text stand tokens of its vocabulary
    in random order, none a second time before all have come; special ones are not among them. The
    same arguments give the same texts. Raises DataError where special tokens leave no room.
    """
    before, after = _frame(tokenizer)
    room = tokens - len(before) - len(after)
    if room < 1:
        raise DataError(
            "a text of the vocabulary has no room for a token",
            where="prepare_data.max_length_tokens",
            expected=f"more than {len(before) + len(after)}",
            found=tokens,
        )
    words, random = _words(tokenizer), np.random.default_rng(seed)
    rounds = -(-count * room // len(words))
    drawn = np.concatenate([random.permutation(words) for _ in range(rounds)])
    bodies = drawn[: count * room].reshape(count, room)
    ids = [np.concatenate([before, body, after]) for body in bodies]
    return Split(
        [f"vocabulary-{number}" for number in range(count)],
        tokenizer.decode_batch([body.tolist() for body in bodies]),
        np.full(count, NO_LABEL, dtype=np.int64),
        ids,
    )


def _frame(tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """The special tokens that a tokenizer puts before a text and after it."""
    encoded = tokenizer.encode("a")
    own = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    ids = np.asarray(encoded.ids, dtype=np.int32)
    return ids[: own[0]], ids[own[-1] + 1 :]


def _words(tokenizer: Tokenizer) -> Ids:
    """Ids of all tokens that are not special, in order."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    known = tokenizer.get_vocab(with_added_tokens=True).values()
    return np.asarray(sorted(set(known) - special), dtype=np.int32)
