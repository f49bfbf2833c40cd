"""What export_student says of the files that it makes: how to use them, how they compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.kd.documents.document import Count, Document, Fraction, Text, parse, read_bytes


class Contract(Document):
    """What a program must know to serve the student. The served student reads it by itself."""

    TITLE: ClassVar[str] = "the student's contract"
    FILE: ClassVar[str] = "student.json"

    labels: Annotated[tuple[str, ...], Field(description="names of the labels, in order of logits")]
    max_length_tokens: Annotated[Count, Field(description="tokens at which texts are cut")]
    pad_token_id: Annotated[Count, Field(description="id of the token that fills a batch")]
    serve: Annotated[Text, Field(description="name of the ONNX file that is served")]
    inputs: Annotated[tuple[str, ...], Field(description="names of the network's inputs")]
    output: Annotated[Text, Field(description="name of the network's output: logits")]


class _AnyContract(BaseModel):
    """What the contracts of all releases have."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    labels: tuple[str, ...]


def read_known_labels(folder: Path) -> tuple[str, ...]:
    """The labels of a student of any release, by the contract in a folder. Raises DataError."""
    path = folder / Contract.FILE
    text = read_bytes(path, Contract.TITLE)
    return parse(_AnyContract.model_validate_json, text, Contract.TITLE, path).labels


class ExportReport(Document):
    """How the exported files compare with the trained student, on dev."""

    TITLE: ClassVar[str] = "the report of the export"
    FILE: ClassVar[str] = "report.json"

    max_logit_difference: Annotated[
        float, Field(ge=0, description="largest difference of float32 logits from torch's")
    ]
    int8_agreement: Annotated[
        Fraction, Field(description="share of texts that int8 and float32 give the same label")
    ]
    int8_agreement_suffices: Annotated[
        bool, Field(description="whether that is what the recipe asks for")
    ]
    parity_examples: Annotated[Count, Field(description="texts that were compared")]
    sizes: Annotated[dict[str, Count], Field(description="bytes of each ONNX file, by its name")]
    serve: Annotated[Text, Field(description="name of the ONNX file that is served")]
