"""A cell's value as text, in one spelling whatever kind of file holds it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal

# Halves of surrogate pairs. A JSON escape can make one; UTF-8 can't hold it.
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"(-?)(0|[1-9][0-9]*)\.0+")
_TRUTHS = {"true", "false"}
# Spellings of a missing value by Python, pandas, R, SQL and spreadsheets. Some are words too.
ABSENT_SPELLINGS = frozenset(
    ("NA", "N/A", "#N/A", "<NA>", "nan", "NaN", "None", "null", "NULL", "\\N")
)


class NoTextError(Exception):
    """A cell is no text, number or boolean; the message says what it is."""


def spell(value: object) -> str:
    """A cell as text without blanks around it; None and NaN become an empty text.

    Booleans become `true` and `false`, whole numbers have no point, bytes are read as UTF-8.
    Raises NoTextError for any other value.

    >>> [spell(value) for value in (" good ", True, 3.0, None)]
    ['good', 'true', '3', '']
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return _decode(value).strip()
    if isinstance(value, int | float | Decimal):
        return _spell_number(value)
    raise NoTextError(_describe(value))


def spell_label(text: str) -> str:
    """A label's one spelling: `1.0` is `1`, `True` is `true`.

    >>> [spell_label(text) for text in ("1.0", "True", "1.5", "Spam")]
    ['1', 'true', '1.5', 'Spam']
    """
    if whole := _WHOLE.fullmatch(text):
        sign, digits = whole.groups()
        return digits if digits == "0" else sign + digits
    return text.lower() if text.lower() in _TRUTHS else text


def is_unreadable(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no tokenizer can encode."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def replace_unreadable(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair."""
    return _SURROGATE.sub("\ufffd", text)


def show(value: object, letters: int = 60) -> str:
    """A value's repr, cut to `letters` characters."""
    text = repr(value)
    return text if len(text) <= letters else f"{text[:letters]}..."


def list_names(names: list[str], most: int = 12) -> str:
    """Column names for a message; unprintable and blank ones are quoted."""
    shown = [name if name.isprintable() and name.strip() else repr(name) for name in names[:most]]
    if len(names) > most:
        shown.append(f"and {len(names) - most} more")
    return ", ".join(shown) or "none"


def advise_path(column: str, value: object) -> str | None:
    """Advice for an object in the place of text; None for other values."""
    if not isinstance(value, Mapping) or not value:
        return None
    return f"Name a field of it as the column: {column}.{next(iter(value))}."


def _spell_number(value: float | Decimal) -> str:
    if not math.isfinite(value):
        if math.isnan(value):
            return ""
        raise NoTextError("an infinite number")
    if value == int(value):
        return str(int(value))
    return format(value.normalize(), "f") if isinstance(value, Decimal) else repr(value)


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise NoTextError(
            f"bytes that are not UTF-8, {show(value)} at byte {error.start}"
        ) from None


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"an object with the fields {list_names([str(name) for name in value])}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}, {show(value)}"
