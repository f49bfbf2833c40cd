"""Random texts: a tokenizer's tokens in random order, with no regard to what they mean.

They hold every token about equally often, so that a student which matches its teacher's layers on
them learns of the words that its training texts lack. That random words draw out of an encoder
what it knows was shown by Krishna et al. (arXiv:1910.12366), there of its predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from tasks.kd.data.examples.prepared import NO_LABEL, Ids, Split
from tasks.kd.errors import DataError


def random_texts(tokenizer: Tokenizer, lengths: Sequence[int], *, seed: int) -> Split:
    """An unlabelled text of each length in tokens, special ones included, but of one at least.

    Between the special tokens that the tokenizer puts around a text stand tokens of its vocabulary
    in random order, none a second time before all have come; special ones are not among them, ones
    that no text holds (BERT's `[unused7]`) are. The same arguments give the same texts. Raises
    DataError for a tokenizer that makes no token of a letter.
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
    """The special tokens that a tokenizer puts before a text and after it."""
    encoded = tokenizer.encode("a")
    own = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    if not own:
        raise DataError("the tokenizer makes no token of the text 'a'", found=encoded.tokens)
    ids = np.asarray(encoded.ids, dtype=np.int32)
    return ids[: own[0]], ids[own[-1] + 1 :]


def _words(tokenizer: Tokenizer) -> Ids:
    """Ids of all tokens that are not special, in order."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    known = tokenizer.get_vocab(with_added_tokens=True).values()
    return np.asarray(sorted(set(known) - special), dtype=np.int32)
