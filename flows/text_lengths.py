"""The length in tokens that `stillhouse new` proposes, from a look at the texts themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.kd.errors import DataError

_SAMPLE = 2000  # texts: some seconds at most
_LARGEST = 1 << 26  # bytes of a table that is read for it
_STEP = 8


def propose_length(document: Any, root: Path) -> str | None:
    """Set max_length_tokens to what keeps 99 % of the training texts whole; what to say of it.

    Rounded up to a multiple of 8, within the teacher's positions. None, and the recipe as it is,
    where the table or the tokenizer is not at hand as a file, or the table can't be read: later
    stages say why. Raises DataError for a tokenizer that can't be used.
    """
    sources, prepare = document["fetch_sources"], document["prepare_data"]
    folder = root / str(sources["teacher"].get("folder", ""))
    local = sources["teacher"]["kind"] == "path" == sources["data"]["kind"]
    table = root / str(sources["data"].get("train", ""))
    if not (local and (folder / "config.json").is_file() and _is_small(table)):
        return None
    texts = _sample_texts(table, document)
    if not texts:
        return None
    wanted, readable = _measure_length(folder, texts)
    copied, length = prepare["max_length_tokens"], min(wanted, readable)
    prepare["max_length_tokens"] = length
    kept = f"99 % of {len(texts)} training texts whole"
    if wanted > length:
        kept = f"the teacher reads no more; {wanted} would keep {kept}"
    else:
        kept = f"keeps {kept}"
    return f"max_length_tokens {length} (was {copied}): {kept}"


def _is_small(table: Path) -> bool:
    return table.is_file() and table.stat().st_size <= _LARGEST


def _sample_texts(table: Path, document: Any) -> list[str]:
    """Texts from all over the training file; none if it can't be read."""
    from tasks.kd.tables import read_rows

    columns, layout = document["prepare_data"], document["fetch_sources"]["data"]["format"]
    try:
        rows = read_rows(
            table,
            text=columns["text_column"],
            label=columns["label_column"],
            skip_lines=layout["skip_lines"],
        )
    except DataError:
        return []
    texts = [text for text in rows.texts if text.isascii() or not _has_half_pairs(text)]
    return texts[:: max(1, -(-len(texts) // _SAMPLE))]


def _has_half_pairs(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _measure_length(folder: Path, texts: list[str]) -> tuple[int, int]:
    """The length that is wanted, and the longest that the teacher and the recipe allow."""
    from tasks.kd.digests import read_json
    from tasks.kd.params import LONGEST_TEXT
    from tasks.kd.token_counts import read_texts
    from tasks.kd.tokenization import load_tokenizer, positions_of

    model = load_tokenizer(folder)
    reading = read_texts(model.tokenizer, texts, unknown_id=None)
    wanted = max(_STEP, -(-reading.tokens_for_99_percent // _STEP) * _STEP)
    positions = positions_of(read_json(folder / "config.json"), model.pad_token_id)
    return wanted, min(positions or LONGEST_TEXT, LONGEST_TEXT)
