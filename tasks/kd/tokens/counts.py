"""Texts as a tokenizer reads them: their ids, the share that is cut, the tokens it lacks.

N texts, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tasks.kd.errors import DataError
from tasks.kd.tokens.encoding import encode_each, ids_of

if TYPE_CHECKING:
    from tasks.kd.data.examples.prepared import Ids

KEPT = 0.99  # the share of texts that a proposed length keeps whole


@dataclass(frozen=True)
class Reading:
    """The token ids of texts, and counts about them."""

    input_ids: list[Ids]
    whole: npt.NDArray[np.int64]  # [N]: tokens of each text before cutting
    tokens: int  # without the special pieces around a text
    unknown: int  # how many of these are unknown
    words: Counter[str]  # unknown words, as the texts write them

    @property
    def unknown_fraction(self) -> float:
        """The share of unknown tokens; a text without any token counts as one unknown token."""
        return self.unknown / max(1, self.tokens)

    @property
    def common_unknown(self) -> str:
        """The most frequent unknown words, for a message."""
        words = ", ".join(repr(word[:30]) for word, _ in self.words.most_common(5))
        return f"most often {words}" if words else "texts of which nothing is left"

    def cut_fraction(self, max_length_tokens: int) -> float:
        """The share of texts longer than `max_length_tokens`."""
        return float(np.mean(self.whole > max_length_tokens))

    @property
    def tokens_for_99_percent(self) -> int:
        """The length that keeps 99 % of the texts whole."""
        return int(np.quantile(self.whole, KEPT, method="inverted_cdf"))


def read_texts(tokenizer: Tokenizer, texts: Sequence[str], *, unknown_id: int | None) -> Reading:
    """The texts' ids and counts. Raises DataError if the tokenizer can't read a text."""
    around = tokenizer.num_special_tokens_to_add(False)
    ids: list[Ids] = []
    whole: list[int] = []
    tokens, unknown, words = 0, 0, Counter[str]()
    for text, encoding in zip(texts, encode_each(tokenizer, texts), strict=True):
        ids.append(ids_of(encoding))
        own = len(encoding) - around
        tokens += max(1, own)
        unknown += own <= 0
        whole.append(around + own + sum(len(rest) - around for rest in encoding.overflowing))
        if unknown_id in encoding.ids:
            missed = [
                text[slice(*encoding.offsets[t])] for t in np.flatnonzero(ids[-1] == unknown_id)
            ]
            unknown += len(missed)
            words.update(missed)
    return Reading(ids, np.asarray(whole, dtype=np.int64), tokens, unknown, words)


def require_known(reading: Reading, limit: float, *, where: object) -> None:
    """Raise DataError if the share of unknown tokens is above `limit`."""
    if reading.unknown_fraction <= limit:
        return
    raise DataError(
        "the teacher's tokenizer does not know the training texts",
        where=where,
        expected=f"at most {limit:.1%} unknown tokens (prepare_data.max_unknown_fraction)",
        found=f"{reading.unknown_fraction:.1%}, {reading.common_unknown}",
        advice="Take a teacher of the texts' language, mend its tokenizer, or raise the limit.",
    )
