"""Where a recipe's text and weights may come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.sections import Section, Sha256, Text


class FileFormat(Section):
    """How a table on disk is read."""

    kind: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet"],
        Field(description="csv is quoted as usual; tsv is split at tabs and never quoted"),
    ]
    skip_lines: Annotated[
        int, Field(ge=0, description="lines to leave out right after the header line (csv, tsv)")
    ]

    @model_validator(mode="after")
    def _only_text_has_lines_to_skip(self) -> FileFormat:
        if self.skip_lines and self.kind in ("jsonl", "parquet"):
            raise ValueError(f"a {self.kind} file has no header line: skip_lines must be 0")
        return self


class WheelData(Section):
    """A data set inside a Python wheel: read as a zip, never installed or executed."""

    kind: Literal["wheel"]
    package: Annotated[Text, Field(description="name of the package that ships the data")]
    version: Annotated[Text, Field(description="its exact version")]
    sha256: Annotated[Sha256, Field(description="digest of the wheel file")]
    train: Annotated[Text, Field(description="path of the training split inside the wheel")]
    test: Annotated[Text, Field(description="path of the test split inside the wheel")]
    format: FileFormat


class HubData(Section):
    """A data set on the Hugging Face hub, by id and revision; code of the hub is never run."""

    kind: Literal["hub"]
    id: Annotated[Text, Field(description="for example `ag_news`")]
    subset: Annotated[str | None, Field(description="the data set's configuration, or null")]
    revision: Annotated[Text, Field(description="a commit, better than a branch")]
    train: Annotated[Text, Field(description="name of the training split")]
    test: Annotated[Text, Field(description="name of the test split")]


class PathData(Section):
    """Files of this repository, DVC-tracked (`dvc add`, `dvc import`) or not."""

    kind: Literal["path"]
    train: Annotated[Text, Field(description="path of the training file, from the root")]
    test: Annotated[Text, Field(description="path of the test file, from the root")]
    format: FileFormat


class WheelModel(Section):
    """A model folder inside a Python wheel: read as a zip, never installed or executed."""

    kind: Literal["wheel"]
    package: Annotated[Text, Field(description="name of the package that ships the model")]
    version: Annotated[Text, Field(description="its exact version")]
    sha256: Annotated[Sha256, Field(description="digest of the wheel file")]
    folder: Annotated[Text, Field(description="the model's folder inside the wheel")]


class HubModel(Section):
    """A model on the Hugging Face hub, by id and revision; safetensors only, no code of the hub."""

    kind: Literal["hub"]
    id: Annotated[Text, Field(description="for example `bert-base-uncased`")]
    revision: Annotated[Text, Field(description="a commit, better than a branch")]


class PathModel(Section):
    """A model folder of this repository (config, safetensors, tokenizer), DVC-tracked or not."""

    kind: Literal["path"]
    folder: Annotated[Text, Field(description="path of the folder, from the root")]


DataSource = Annotated[WheelData | HubData | PathData, Field(discriminator="kind")]
ModelSource = Annotated[WheelModel | HubModel | PathModel, Field(discriminator="kind")]
