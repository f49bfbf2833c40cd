"""What a cache was made of, and how two such differ. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

FORMAT_VERSION = 1
Fields = Mapping[str, object]


def fingerprint(fields: Fields) -> str:
    """Hex digest over all fields, whatever their order. Equal fields, equal cache content."""
    text = json.dumps(dict(fields), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def differences(expected: Fields, found: Fields) -> list[str]:
    """One line per field that differs, `field: expected X, found Y`; empty if none does."""
    return [
        f"{name}: expected {_short(expected.get(name))}, found {_short(found.get(name))}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


def example_key(input_ids: bytes) -> bytes:
    """Sixteen bytes that address an example by what the teacher saw (int32 ids, little endian)."""
    return hashlib.sha256(input_ids).digest()[:16]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 72 else f"{text[:69]}..."
