"""The served student: this file travels inside the registered model, as its code.

MLflow runs it wherever `mlflow.pyfunc.load_model("models:/<name>@champion")` is called
("models from code": no pickle). It stands alone: mlflow, onnxruntime, tokenizers, numpy and pandas,
no torch, nothing else of this repository.

In: texts, as a table with a column `text` (a data frame, an Arrow table, records, or a mapping
{"text": [...]}), as a list, an array or a Series, or one text. Columns may be categorical or
dictionary-encoded, and there may be more of them. MLflow's server takes the same as
`dataframe_split`, `dataframe_records`, `instances` and `inputs`.

Out: one row per text, in order, with `label` and `score` (its probability); with
`params={"all_scores": True}` one more column `score_<label>` per label. A data frame's or a
Series' index is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
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
TAKES = (
    "Send a table with a column `text`, records or a mapping with `text`, "
    "a list, an array or a Series of texts, or one text."
)


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
        model_input: pd.DataFrame,  # of all hints the one that makes MLflow check nothing
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Classify texts, in any of the forms that this file's first lines name."""
        asked = as_pandas(model_input)
        texts = take_texts(asked)
        scores = self.score(texts)
        best = scores.argmax(axis=1)
        table = {
            "label": np.asarray(self.labels, dtype=object)[best],
            "score": scores[np.arange(len(texts)), best],
        }
        if params and params.get("all_scores"):
            table |= {f"score_{label}": scores[:, i] for i, label in enumerate(self.labels)}
        index = asked.index if isinstance(asked, pd.DataFrame | pd.Series) else None
        return pd.DataFrame(table, index=index)

    def score(self, texts: list[str]) -> npt.NDArray[np.float64]:
        """Probabilities, shape (texts, labels), whatever the order or the company of a text."""
        encodings = self.encode(texts) if texts else []
        scores = np.zeros((len(texts), len(self.labels)), dtype=np.float64)
        for chosen in batch_by_length([len(e) for e in encodings], 1 if self.alone else None):
            feeds = self.pad([encodings[index] for index in chosen])
            (logits,) = self.session.run([self.output], feeds)
            scores[chosen] = softmax(np.asarray(logits, dtype=np.float64))
        return scores

    def encode(self, texts: list[str]) -> list[Encoding]:
        """Tokens of each text; a text that no tokenizer can encode is refused by its row."""
        try:
            encodings: list[Encoding] = self.tokenizer.encode_batch(texts)
        except (TypeError, UnicodeError):
            halves = [row for row, text in enumerate(texts) if not is_encodable(text)]
            if not halves:
                raise
            raise refuse_rows(halves, len(texts), "hold half of a surrogate pair") from None
        return encodings

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


def as_pandas(asked: Any) -> Any:
    """Tables and columns of Arrow, polars or datasets as pandas; the rest as it is."""
    return asked.to_pandas() if hasattr(asked, "to_pandas") else asked


def take_texts(asked: Any) -> list[str]:
    """The texts of whatever holds them, in order; what is no text is refused by its row."""
    values = list_values(asked)
    if values and all(isinstance(value, Mapping) for value in values):
        values = take_column(pd.DataFrame([dict(value) for value in values]))
    texts = [only_item(value) for value in values]
    wrong = [row for row, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise refuse_rows(wrong, len(texts), "have no text (missing, or not a string)")
    return [str(text) for text in texts]


def list_values(asked: Any) -> list[Any]:
    """What stands where the texts should, row by row."""
    if isinstance(asked, str):
        return [asked]
    if isinstance(asked, pd.DataFrame):
        return take_column(asked)
    if isinstance(asked, Mapping):
        if "text" not in asked:
            raise refuse_columns("mapping has no `text`", asked)
        column = as_pandas(asked["text"])
        # `DataFrame.to_dict()` maps each row's index to its cell.
        return list_values(list(column.values()) if isinstance(column, Mapping) else column)
    if isinstance(asked, Iterable) and not isinstance(asked, bytes | bytearray | set | frozenset):
        # An array of no dimension is how MLflow's server hands one text on.
        values = asked.reshape(1) if isinstance(asked, np.ndarray) and asked.ndim == 0 else asked
        return list(values)
    raise refuse(f"These are no texts: {type(asked).__name__}. {TAKES}")


def take_column(table: pd.DataFrame) -> list[Any]:
    """The cells of `text`, or of the one column of a table whose columns have no names."""
    named = [name for name in table.columns if name == "text"]
    if not named and list(table.columns) in ([0], ["0"]):
        named = list(table.columns)
    if len(named) != 1:
        fault = "table has several columns `text`" if named else "table has no column `text`"
        raise refuse_columns(fault, table.columns)
    return list(table[named[0]])


def only_item(value: Any) -> Any:
    """The text in a row of one cell, `["..."]`; anything else as it is."""
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.item()
    if isinstance(value, list | tuple) and len(value) == 1:
        return value[0]
    return value


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8, which half of a surrogate pair can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_rows(rows: list[int], count: int, fault: str) -> MlflowException:
    """An error that names the first rows that have a fault."""
    named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return refuse(
        f"{len(rows)} of {count} rows {fault}: row {named}. "
        f"Drop these rows, or fill them with a text. {TAKES}"
    )


def refuse_columns(fault: str, columns: Iterable[Any]) -> MlflowException:
    """An error that says which columns there are."""
    found = ", ".join(map(str, columns)) or "no column"
    return refuse(f"The {fault}. Found: {found}. {TAKES}")


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
