"""The length in tokens that `stillhouse new` proposes, measured on the texts themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.kd.data.tables import Rows

_SAMPLE = 2000  # texts: some seconds at most
_STEP = 8


def propose_length(document: Any, root: Path, rows: Rows | None) -> list[str]:
    """Set max_length_tokens so that 99 % of the training texts stay whole, and return a note of it.

    The length is rounded up to a multiple of 8 and bounded by the teacher's positions. Without
    texts or a local tokenizer, the recipe is unchanged and there is no note. Raises DataError for
    a tokenizer that can't be used.
    """
    teacher, prepare = document["fetch_sources"]["teacher"], document["prepare_data"]
    folder = root / str(teacher.get("folder", ""))
    if not rows or teacher["kind"] != "path" or not (folder / "config.json").is_file():
        return []
    texts = rows.texts[:: max(1, -(-len(rows) // _SAMPLE))]
    wanted, readable = _measure_length(folder, texts)
    copied, length = prepare["max_length_tokens"], min(wanted, readable)
    prepare["max_length_tokens"] = length
    kept = f"99 % of {len(texts)} training texts whole"
    told = f"keeps {kept}"
    if wanted > length:
        told = f"the teacher reads no more; {wanted} would keep {kept}"
    return [f"max_length_tokens {length} (was {copied}): {told}"]


def _measure_length(folder: Path, texts: list[str]) -> tuple[int, int]:
    """The wanted length, and the longest that the teacher and a recipe allow."""
    from tasks.kd.recipe.sections import LONGEST_TEXT
    from tasks.kd.tokens.counts import read_texts
    from tasks.kd.tokens.tokenizers import load_tokenizer

    model = load_tokenizer(folder)
    reading = read_texts(model.tokenizer, texts, unknown_id=None)
    wanted = max(_STEP, -(-reading.tokens_for_99_percent // _STEP) * _STEP)
    return wanted, min(model.positions or LONGEST_TEXT, LONGEST_TEXT)
