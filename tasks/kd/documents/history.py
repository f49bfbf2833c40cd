"""The records of a training, one a line of metrics.jsonl, in the order in which they came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from tasks.kd.documents.document import (
    Count,
    Fraction,
    Part,
    Text,
    find_remake,
    parse,
    read_bytes,
)
from tasks.kd.errors import DataError

HISTORY = "metrics.jsonl"

_TITLE = "the history of a training"


class LevelRecord(Part):
    """What a level said in an update."""

    raw: Annotated[float, Field(description="its loss before the weight")]
    weight: Annotated[float, Field(description="its weight in force")]
    weighted: Annotated[float, Field(description="their product")]
    factor: Annotated[
        float, Field(description="the factor in the weight; absent where none are balanced")
    ] = 1.0
    grad_norm: Annotated[
        float | None,
        Field(
            description="gradient norm of the weighted level; null if it is not finite, absent "
            "where it was not measured"
        ),
    ] = None


Speed = Annotated[float, Field(ge=0)]


class _Record(Part):
    step: Annotated[Count, Field(description="updates before it and with it")]
    epoch: Annotated[float, Field(ge=0, description="passes so far, with a fraction")]
    phase: Annotated[Text, Field(description="name of the recipe's phase")]


class TrainRecord(_Record):
    """An update."""

    split: Literal["train"]
    loss: Annotated[float, Field(description="sum of the weighted levels")]
    levels: Annotated[dict[str, LevelRecord], Field(description="each level's part, by its name")]
    learning_rate: Annotated[float, Field(ge=0, description="the rate of this update")]
    grad_norm: Annotated[float, Field(ge=0, description="norm of the gradient before it is cut")]
    examples_per_s: Annotated[Speed, Field(description="texts per second")]
    tokens_per_s: Annotated[Speed, Field(description="tokens per second")]
    waiting: Annotated[Fraction, Field(description="share of time in which data was waited for")]


class RefusedRecord(_Record):
    """A step without an update, as a loss or a gradient was not finite."""

    split: Literal["refused"]
    message: Text
    in_a_row: Annotated[
        Count, Field(description="refused since the last update; absent for an overflow of fp16")
    ] = 0
    examples: Annotated[
        tuple[str, ...], Field(description="ids of the first examples of the step; absent likewise")
    ] = ()
    examples_per_s: Annotated[Speed, Field(description="texts per second")]
    tokens_per_s: Annotated[Speed, Field(description="tokens per second")]
    waiting: Annotated[Fraction, Field(description="share of time in which data was waited for")]


class DevRecord(_Record):
    """An evaluation on dev."""

    split: Literal["dev"]
    accuracy: Annotated[Fraction, Field(description="share of dev that is right")]
    loss: Annotated[float, Field(description="mean cross-entropy, in nats")]


class NoticeRecord(_Record):
    """What a person should know of the training."""

    split: Literal["notice"]
    message: Text


Record = TrainRecord | RefusedRecord | DevRecord | NoticeRecord


def make_record(fields: Mapping[str, Any]) -> Record:
    """The record of what a training says; ValidationError, our own fault, where that is none."""
    return _adapter().validate_python(dict(fields))


def format_record(record: Record) -> str:
    """The line of a record, without its end."""
    return json.dumps(record.as_json(), allow_nan=False)


def read_history(folder: Path) -> list[Record]:
    """The records of a stage's out; a teacher that was given has none.

    Raises DataError for a file that is not there, and for the first line that is no record.
    """
    path = folder / HISTORY
    content = read_bytes(path, _TITLE)
    lines = content.split(b"\n")
    if lines.pop():
        raise DataError(
            f"{_TITLE} is cut short",
            where=f"{path}, line {len(lines) + 1}",
            expected="an end of line",
            found="none",
            mend=find_remake(path),
        )
    return [parse_record(line, path, f"line {place}") for place, line in enumerate(lines, 1)]


def parse_record(line: bytes | str, where: object, place: str = "") -> Record:
    """The record of a line. Raises DataError that names where it is from, and the field."""
    return parse(_adapter().validate_json, line, _TITLE, where, place)


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Annotated[Record, Field(discriminator="split")])
