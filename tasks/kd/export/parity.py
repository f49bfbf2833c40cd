"""Exported files against torch, and int8 against float32, on the same examples.

N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tasks.kd.data.examples.padding import pad_rows
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.errors import ExportError
from tasks.kd.export.running import Logits, open_session, predict_onnx, predict_torch, run_session

_PARITY_BATCH = 16


def require_parity(
    model: torch.nn.Module,
    path: Path,
    examples: Sequence[Ids],
    *,
    pad_token_id: int,
    limit: float,
) -> float:
    """The largest absolute difference between the file's logits and torch's.

    Examples go through ONNX in batches of mixed length, as a server would pad them, and through
    torch in batches of similar length, so that an ignored mask shows as a difference. Raises
    ExportError if the difference is above `limit` or is NaN.
    """
    exported = predict_padded(path, examples, pad_token_id=pad_token_id)
    trained = predict_torch(model, examples, pad_token_id=pad_token_id)
    difference = float(np.abs(exported - trained).max())
    if not difference <= limit:
        raise ExportError(
            "the exported student's logits differ from the trained one's",
            where=path,
            expected=f"at most {limit:g} (max_logit_difference) over {len(examples)} examples",
            found=f"{difference:.3g}",
        )
    return difference


def predict_padded(path: Path, examples: Sequence[Ids], *, pad_token_id: int) -> Logits:
    """Logits float32 [N, C], computed in batches in the examples' order, of mixed lengths."""
    session = open_session(path)
    starts = range(0, len(examples), _PARITY_BATCH)
    rows = [range(start, min(start + _PARITY_BATCH, len(examples))) for start in starts]
    batches = [pad_rows(examples, chosen, pad_token_id) for chosen in rows]
    return np.concatenate([run_session(session, batch) for batch in batches])


def measure_agreement(
    float32: Path, int8: Path, examples: Sequence[Ids], *, pad_token_id: int
) -> float:
    """The share of examples to which both files give the same class, each in a batch of its own."""
    classes = [
        predict_onnx(path, examples, pad_token_id=pad_token_id, alone=True).argmax(axis=1)
        for path in (float32, int8)
    ]
    return float(np.mean(classes[0] == classes[1]))


def require_agreement(agreement: float, path: Path, *, limit: float) -> None:
    """Raise ExportError if the int8 file agrees with the float32 file less often than `limit`."""
    if agreement < limit:
        raise ExportError(
            "the int8 student answers differently from the float32 one too often",
            where=path,
            expected=f"agreement of at least {limit:g} (min_int8_agreement)",
            found=f"{agreement:.4f}",
            advice="Set export_student.serve to float32, or lower the limit.",
        )
