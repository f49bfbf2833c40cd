"""What a cache was made of, and how two caches differ. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

FORMAT_VERSION = 1
Fields = Mapping[str, object]


def base_fields(
    *, teacher_sha256: str, tokenizer_sha256: str, encoded_sha256: str, attention: str = "sdpa"
) -> dict[str, object]:
    """What every stream of one teacher on one set of encoded examples was made of.

    `attention` is the kernel that the teacher computes with (`encoders.attention_kernel`); the
    writer refuses another. Settings that only move work about (shards, batches, processes) are left
    out. So is the device: a teacher's pass is in full float32 on any device, and differs by as
    little as that of another batch does (see `targets.run_teacher`).
    """
    return {
        "format_version": FORMAT_VERSION,
        "teacher_sha256": teacher_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        "encoded_sha256": encoded_sha256,
        "numerics": {"dtype": "float32", "attention": attention},
    }


def stream_fields(
    base: Fields, stream: str, *, codec: str, max_relative_error: float
) -> dict[str, object]:
    """Fields that say what one stored stream was made of. Logits are float32 whatever the codec."""
    kept = {"codec": codec, "max_relative_error": max_relative_error}
    return {**base, "stream": stream, **(kept if stream != "logits" else {"codec": "float32"})}


def piece_fields(base: Fields, piece: str) -> dict[str, object]:
    """Fields that say what one frozen piece was made of: the teacher, whatever the examples."""
    return {
        "format_version": base["format_version"],
        "teacher_sha256": base["teacher_sha256"],
        "piece": piece,
    }


def fingerprint(fields: Fields) -> str:
    """Hex digest over all fields, in any order. Caches of equal fields have equal content."""
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
