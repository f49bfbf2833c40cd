"""Random texts: a tokenizer's tokens in random order, without meaning.

They hold every token about equally often. A student that matches its teacher's layers on them
learns words that its training texts lack. Krishna et al. (arXiv:1910.12366) showed that random
words draw out what an encoder knows; they did so by its predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from tasks.kd.data.examples.prepared import NO_LABEL, Ids, Split
from tasks.kd.errors import DataError


def random_texts(tokenizer: Tokenizer, lengths: Sequence[int], *, seed: int) -> Split:
    """One unlabelled text per length. Lengths are in tokens and count the special ones.

    Every text has at least one token between the special tokens that the tokenizer puts around a
    text. These tokens come from the vocabulary in random order, and none repeats before all were
    drawn. Special tokens are left out; tokens that no text holds (BERT's `[unused7]`) are not. The
    same arguments give the same texts. Raises DataError for a tokenizer that makes no token of a
    letter.
    """
    before, after = _frame(tokenizer)
    own = np.maximum(np.asarray(lengths) - len(before) - len(after), 1)
    words, random = _words(tokenizer), np.random.default_rng(seed)
    rounds = -(-int(own.sum()) // len(words))
    drawn = np.concatenate([random.permutation(words) for _ in range(rounds)])
    bodies = np.split(drawn[: own.sum()], own.cumsum()[:-1])
    return Split(
        [f"random-{number}" for number in range(len(bodies))],
        [tokenizer.decode(body.tolist()) for body in bodies],
        np.full(len(bodies), NO_LABEL, dtype=np.int64),
        [np.concatenate([before, body, after]) for body in bodies],
    )


def _frame(tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """Ids of the special tokens that a tokenizer puts before a text, and of those after it."""
    encoded = tokenizer.encode("a")
    own = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    if not own:
        raise DataError("the tokenizer makes no token of the text 'a'", found=encoded.tokens)
    ids = np.asarray(encoded.ids, dtype=np.int32)
    return ids[: own[0]], ids[own[-1] + 1 :]


def _words(tokenizer: Tokenizer) -> Ids:
    """Ids of all tokens that are not special, in ascending order."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    known = tokenizer.get_vocab(with_added_tokens=True).values()
    return np.asarray(sorted(set(known) - special), dtype=np.int32)
