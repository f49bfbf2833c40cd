"""A tokenizer in use: read from its file, encoding texts, compared with known ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer

from tasks.kd.errors import DataError, KDError

if TYPE_CHECKING:
    from tasks.kd.data.examples.prepared import Ids

_BATCH = 1000


@contextmanager
def refusing(what: str, where: object) -> Iterator[None]:
    """Raise DataError for any failure of the tokenizers library inside the `with` block.

    The library raises plain Exception, and its panics derive from BaseException alone.
    """
    try:
        yield
    except KDError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(what, where=where, found=reason or type(error).__name__) from error


def read_tokenizer(path: Path, max_length_tokens: int) -> Tokenizer:
    """A saved tokenizer that cuts at the maximum length, on its saved side, and does not pad.

    Raises DataError if the file holds no tokenizer.
    """
    with refusing("not a tokenizer", path):
        tokenizer = Tokenizer.from_file(str(path))
    side = (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length_tokens, direction=side)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Token ids int32 of each text, unpadded, with special tokens. Raises as `encode_each`."""
    return [ids_of(encoding) for encoding in encode_each(tokenizer, texts)]


def encode_each(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Encoding]:
    """The full encoding of each text. Raises DataError for a text that can't be read."""
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        place = f"texts {start + 1} to {start + len(batch)}"
        with refusing("the tokenizer can't read a text", place):
            encoded = tokenizer.encode_batch(batch)
        yield from encoded


def ids_of(encoding: Encoding) -> Ids:
    """The token ids of an encoded text, int32."""
    return np.asarray(encoding.ids, dtype=np.int32)


def require_same_tokens(encoded: Sequence[Ids], prepared: Sequence[Ids], *, where: object) -> None:
    """Raise DataError unless a tokenizer's ids equal the prepared ids, row by row."""
    wrong = [
        row
        for row, (a, b) in enumerate(zip(encoded, prepared, strict=True))
        if not np.array_equal(a, b)
    ]
    if wrong:
        raise DataError(
            "the tokenizer gives other token ids than the prepared data holds",
            where=where,
            expected="the same ids for every text",
            found=f"{len(wrong)} of {len(prepared)} texts that differ, the first in row {wrong[0]}",
        )
