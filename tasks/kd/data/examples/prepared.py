"""Prepared splits: reading and writing the Arrow files of `prepare_data`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.kd.errors import DataError

Ids = npt.NDArray[np.int32]

# The label of an example without one, as in torch and transformers.
NO_LABEL = -100

_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("text", pa.string()),
        ("label", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Split:
    """One split, in a fixed order. `input_ids[i]` holds example i's tokens, int32, unpadded.

    `labels` is int64 [N]; an example without a label has `NO_LABEL`.
    """

    example_ids: list[str]
    texts: list[str]
    labels: npt.NDArray[np.int64]
    input_ids: list[Ids]

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per example."""
        return np.asarray([len(ids) for ids in self.input_ids], dtype=np.int64)

    @property
    def labelled(self) -> npt.NDArray[np.int64]:
        """The rows that have a label."""
        return np.flatnonzero(self.labels != NO_LABEL)

    def take(self, rows: npt.NDArray[np.int64]) -> Split:
        """The given rows, in that order."""
        return Split(
            [self.example_ids[i] for i in rows],
            [self.texts[i] for i in rows],
            self.labels[rows],
            [self.input_ids[i] for i in rows],
        )

    def followed_by(self, other: Split) -> Split:
        """This split's rows, then the other's."""
        return Split(
            [*self.example_ids, *other.example_ids],
            [*self.texts, *other.texts],
            np.concatenate([self.labels, other.labels]),
            [*self.input_ids, *other.input_ids],
        )


def write_split(path: Path, split: Split) -> None:
    """Write a split as an Arrow IPC file."""
    columns = [split.example_ids, split.texts, split.labels.astype(np.int32), split.input_ids]
    table = pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        writer.write_table(table)


def read_split(path: Path) -> Split:
    """Read a split. Raises DataError if the file is missing or was not written by `write_split`."""
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError("not a prepared split", where=path, found=str(error)) from error
    if table.schema != _SCHEMA:
        raise DataError(
            "not a prepared split", where=path, expected=_SCHEMA.names, found=table.schema.names
        )
    column = table.column("input_ids").combine_chunks()
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy().astype(np.int32, copy=True)
    return Split(
        table.column("example_id").to_pylist(),
        table.column("text").to_pylist(),
        table.column("label").to_numpy().astype(np.int64),
        [values[start:end] for start, end in pairwise(offsets)],
    )
