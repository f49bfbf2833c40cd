"""Running models over texts: batches of similar length, predictions by torch and ONNX, timing.

N examples, B examples of a batch, T tokens, C classes, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from tasks.kd.data.examples.batching import split_by_tokens
from tasks.kd.data.examples.padding import Padded, pad_rows
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.capture import capture_hidden
from tasks.kd.tokens.encoding import read_tokenizer

Logits = npt.NDArray[np.float32]
Report = Callable[[int], object]

_BATCH_TOKENS = 4096


def unheard(_examples: int) -> None:
    """Ignore a report of progress."""


def batches_of_like_length(
    examples: Sequence[Ids], pad_token_id: int, *, batch_tokens: int = _BATCH_TOKENS
) -> Iterator[Padded]:
    """All examples in batches of at most `batch_tokens` padded tokens, the shortest first."""
    lengths = np.asarray([len(ids) for ids in examples], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    for rows in split_by_tokens(order, lengths, max_tokens=batch_tokens):
        yield pad_rows(examples, rows.tolist(), pad_token_id)


def predict_torch(
    model: torch.nn.Module, examples: Sequence[Ids], *, pad_token_id: int, report: Report = unheard
) -> Logits:
    """Logits float32 [N, C] of a transformers classifier; `report` gets each batch's size."""
    parts = [
        (batch.rows, _torch_logits(model, batch, report))
        for batch in batches_of_like_length(examples, pad_token_id)
    ]
    return _in_order(parts)


def predict_onnx(
    path: Path,
    examples: Sequence[Ids],
    *,
    pad_token_id: int,
    alone: bool = False,
    threads: int = 0,
    report: Report = unheard,
) -> Logits:
    """Logits float32 [N, C] of an exported file; `threads` 0 means all cores.

    `alone` gives each example a batch of its own. Dynamically quantised files need it: their
    activations share one scale per batch, so other examples and padding shift the last digits.
    """
    session = open_session(path, threads=threads)
    budget = 1 if alone else _BATCH_TOKENS
    parts = []
    for batch in batches_of_like_length(examples, pad_token_id, batch_tokens=budget):
        parts.append((batch.rows, run_session(session, batch)))
        report(len(batch.rows))
    return _in_order(parts)


def open_session(path: Path, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """A CPU session; `threads` 0 means all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, batch: Padded) -> Logits:
    """Logits float32 [B, C] of one batch."""
    feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits: Logits = session.run(["logits"], feed)[0]
    return logits


class TextClassifier:
    """A server's work for one text, tokenizing and running, on one thread."""

    def __init__(self, path: Path, tokenizer: Path, max_length_tokens: int) -> None:
        self._session = open_session(path, threads=1)
        self._tokenizer = read_tokenizer(tokenizer, max_length_tokens)

    def classify(self, text: str) -> Logits:
        """Logits float32 [1, C]."""
        ids = np.asarray(self._tokenizer.encode(text).ids, dtype=np.int32)
        # One text is never padded, so the padding id does not matter.
        return run_session(self._session, pad_rows([ids], [0], 0))


def time_in_pairs(
    classifiers: tuple[TextClassifier, TextClassifier], texts: Sequence[str], *, warm_up: int = 5
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Milliseconds per text [N] of two classifiers, tokenizer included.

    Both answer each text one after the other and take turns at going first. So a burst of other
    work on the machine slows both, and neither always finds the text in warm memory. Beforehand,
    both answer the first `warm_up` texts untimed.
    """
    for text in texts[:warm_up]:
        for classifier in classifiers:
            classifier.classify(text)
    times = np.zeros((2, len(texts)))
    for row, text in enumerate(texts):
        for which in (0, 1) if row % 2 == 0 else (1, 0):
            started = time.perf_counter_ns()
            classifiers[which].classify(text)
            times[which, row] = (time.perf_counter_ns() - started) / 1e6
    return times[0], times[1]


def hidden_states(
    model: torch.nn.Module, examples: Sequence[Ids], layers: int, *, pad_token_id: int
) -> list[npt.NDArray[np.float32]]:
    """States of the real tokens, float32 [tokens, D], for each hidden layer 0 to `layers`.

    Rows have the same order for every model that is given the same examples.
    """
    wanted = tuple(range(layers + 1))
    parts_of: list[list[npt.NDArray[np.float32]]] = [[] for _ in wanted]
    with capture_hidden(model, wanted) as states_BTD:
        for batch in batches_of_like_length(examples, pad_token_id):
            _torch_logits(model, batch, unheard)
            real = torch.from_numpy(batch.attention_mask).bool()
            for layer in wanted:
                parts_of[layer].append(states_BTD[layer][real].float().numpy())
    return [np.concatenate(parts) for parts in parts_of]


def _torch_logits(model: torch.nn.Module, batch: Padded, report: Report) -> Logits:
    with torch.inference_mode():
        output: Any = model(
            input_ids=torch.from_numpy(batch.input_ids),
            attention_mask=torch.from_numpy(batch.attention_mask),
        )
    report(len(batch.rows))
    logits: Logits = output.logits.float().numpy()
    return logits


def _in_order(parts: list[tuple[npt.NDArray[np.int64], Logits]]) -> Logits:
    rows = np.concatenate([rows for rows, _ in parts])
    logits = np.concatenate([logits for _, logits in parts])
    return logits[np.argsort(rows)]
