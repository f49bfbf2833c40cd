"""The served student: this file travels inside the registered model, as its code.

MLflow runs it wherever `mlflow.pyfunc.load_model("models:/<name>@champion")` is called
("models from code": no pickle). It stands alone: mlflow, onnxruntime, tokenizers, numpy and pandas,
no torch, nothing else of this repository.

In: a table with a column `text`. Out: one row per text, in order, with `label` and `score` (its
probability); with `params={"all_scores": True}` one more column `score_<label>` per label.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import onnxruntime
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from tokenizers import Encoding, Tokenizer

# Padded tokens per call of the network: enough to fill the cores, little enough to stay in cache.
BATCH_TOKENS = 8192


class ServedStudent(PythonModel):
    """A text classifier: tokenizer and ONNX network, both beside this file."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the three files of the model: `network` (ONNX), `tokenizer` and `student` (JSON)."""
        settings = json.loads(Path(context.artifacts["student"]).read_text(encoding="utf-8"))
        self.labels: list[str] = settings["labels"]
        self.inputs: list[str] = settings["inputs"]
        self.output: str = settings["output"]
        self.pad_token_id: int = settings["pad_token_id"]
        # An int8 network scales its activations by the largest value in the whole batch, so that a
        # text's neighbours would change its scores; alone, a text always gets the same ones.
        self.alone: bool = "int8" in settings["serve"]
        self.tokenizer: Tokenizer = Tokenizer.from_file(context.artifacts["tokenizer"])
        # Its own side is kept: some teachers read a long text's end.
        side = (self.tokenizer.truncation or {}).get("direction", "right")
        self.tokenizer.enable_truncation(settings["max_length_tokens"], direction=side)
        self.tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            context.artifacts["network"], options, providers=["CPUExecutionProvider"]
        )

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 (MLflow's signature)
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Classify the column `text`; a Series or a list of texts will do as well."""
        texts = take_texts(model_input)
        scores = self.score(texts)
        best = scores.argmax(axis=1)
        table = {
            "label": np.asarray(self.labels, dtype=object)[best],
            "score": scores[np.arange(len(texts)), best],
        }
        if params and params.get("all_scores"):
            table |= {f"score_{label}": scores[:, i] for i, label in enumerate(self.labels)}
        given: object = model_input
        index = given.index if isinstance(given, pd.DataFrame | pd.Series) else None
        return pd.DataFrame(table, index=index)

    def score(self, texts: list[str]) -> npt.NDArray[np.float64]:
        """Probabilities, shape (texts, labels), whatever the order or the company of a text."""
        encodings = self.tokenizer.encode_batch(texts) if texts else []
        scores = np.zeros((len(texts), len(self.labels)), dtype=np.float64)
        for chosen in batch_by_length([len(e) for e in encodings], 1 if self.alone else None):
            feeds = self.pad([encodings[index] for index in chosen])
            (logits,) = self.session.run([self.output], feeds)
            scores[chosen] = softmax(np.asarray(logits, dtype=np.float64))
        return scores

    def pad(self, encodings: list[Encoding]) -> dict[str, npt.NDArray[np.int64]]:
        """Rectangles of token ids, mask and types, as wide as the longest text."""
        shape = (len(encodings), max(len(encoding) for encoding in encodings))
        filled = {
            "input_ids": np.full(shape, self.pad_token_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
        }
        for row, encoding in enumerate(encodings):
            filled["input_ids"][row, : len(encoding)] = encoding.ids
            filled["attention_mask"][row, : len(encoding)] = 1
            filled["token_type_ids"][row, : len(encoding)] = encoding.type_ids
        return {name: filled[name] for name in self.inputs}


def take_texts(model_input: pd.DataFrame | pd.Series[Any] | list[str]) -> list[str]:
    """The texts of a table, a Series or a list; whatever is no text is refused by its row."""
    if isinstance(model_input, pd.DataFrame):
        if "text" not in model_input.columns:
            found = ", ".join(map(str, model_input.columns)) or "no column"
            raise refuse(f"The table has no column `text`. Found: {found}.")
        texts = model_input["text"].tolist()
    else:
        texts = list(model_input)
    wrong = [str(row) for row, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        rows = ", ".join(wrong[:5]) + (", …" if len(wrong) > 5 else "")
        raise refuse(
            f"{len(wrong)} of {len(texts)} rows have no text (missing, or not a string): "
            f"row {rows}. Drop these rows, or fill them with a text."
        )
    return texts


def refuse(message: str) -> MlflowException:
    """An error that MLflow's server answers with status 400, the caller's fault."""
    error: MlflowException = MlflowException.invalid_parameter_value(message)
    return error


def batch_by_length(lengths: list[int], most: int | None) -> Iterator[list[int]]:
    """Indices in batches of like length, each at most `BATCH_TOKENS` when padded."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        full = (len(batch) + 1) * lengths[index] > BATCH_TOKENS or len(batch) == most
        if batch and full:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


mlflow.models.set_model(ServedStudent())
