"""Where a recipe's text and weights may come from, and how tables are read."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tasks.kd.recipe.fields import NotNegative, Section, Sha256, Text

_PLAIN_PATH = r"[\w./ -]+"
_WILDCARDS = "*?[]"
# The hub's own rule: letters, digits and `_.-`, neither of the last two at an end or twice.
_HUB_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"


# --- names, refused before any tool sees them -----------------------------------------------------


def is_repository_path(path: str) -> bool:
    """Whether a text names a place inside the repository, in letters that no shell reads.

    DVC's templating puts it in a command line.
    """
    named = PurePosixPath(path)
    plain = re.fullmatch(_PLAIN_PATH, path) is not None
    return bool(plain and named.parts and ".." not in named.parts and not named.is_absolute())


def is_pattern(path: str) -> bool:
    """Whether a path stands for several files by a wildcard."""
    return any(letter in path for letter in _WILDCARDS)


def _inside_repository(path: str) -> str:
    if not is_repository_path(path):
        raise ValueError(
            f"{path!r} is not a path inside this repository: letters, digits, blanks and ._-/ only"
        )
    return path


def require_data_path(path: str) -> str:
    """The path of a split: a file, a folder, or a pattern in its last part. Else ValueError."""
    folder, _, name = path.rpartition("/")
    if not is_pattern(path):
        return _inside_repository(path)
    if is_pattern(folder) or not folder:
        raise ValueError(f"{path!r}: a pattern is of files in one folder, as data/train-*.csv")
    _inside_repository(folder)
    _inside_repository(re.sub(r"[*?\[\]]", "x", name))
    return path


def _member(path: str) -> str:
    named = PurePosixPath(path)
    if named.is_absolute() or ".." in named.parts or "\\" in path or not named.parts:
        raise ValueError(f"{path!r} is not the name of a member of an archive")
    return path


def _project_name(name: str) -> str:
    from packaging.utils import InvalidName, canonicalize_name

    try:
        canonicalize_name(name, validate=True)
    except InvalidName:
        raise ValueError(f"{name!r} is not the name of a Python package (PEP 508)") from None
    return name


def _exact_version(version: str) -> str:
    from packaging.version import InvalidVersion, Version

    try:
        Version(version)
    except InvalidVersion:
        raise ValueError(f"{version!r} is not an exact version (PEP 440), as 1.16.3") from None
    if version != version.strip():
        raise ValueError(f"{version!r} has blanks around it")
    return version


def _hub_id(name: str) -> str:
    if not re.fullmatch(rf"(?:{_HUB_NAME}/)?{_HUB_NAME}", name) or name.endswith(".git"):
        raise ValueError(f"{name!r} is not an id of the hub: `name` or `owner/name`")
    return name


RepositoryPath = Annotated[Text, AfterValidator(_inside_repository)]
DataPath = Annotated[Text, AfterValidator(require_data_path)]
Member = Annotated[Text, AfterValidator(_member)]
ProjectName = Annotated[Text, AfterValidator(_project_name)]
ExactVersion = Annotated[Text, AfterValidator(_exact_version)]
HubId = Annotated[Text, AfterValidator(_hub_id)]


# --- forms of tables ------------------------------------------------------------------------------

Character = Annotated[str, Field(pattern=r"^[^\r\n\x00]$")]


Quote = Annotated[
    Character | None,
    Field(description="what stands around a cell with separators in it; null: never quoted"),
]
Escape = Annotated[
    Character | None,
    Field(
        description="what stands before a quote, or before itself, that is meant as a letter "
        "(Spark writes a backslash); a doubled quote is a letter with it and without"
    ),
]
Missing = Annotated[
    tuple[str, ...],
    Field(description="spellings of no value, beside the empty cell, for example NA"),
]
SkipLines = Annotated[
    NotNegative, Field(description="rows to leave out right after the header line")
]


class CsvFormat(Section):
    """Rows of cells with a separator between them, under a header line."""

    kind: Literal["csv"]
    separator: Annotated[Character, Field(description="for example a comma, or `;`")]
    quote: Quote
    escape: Escape
    missing: Missing
    skip_lines: SkipLines

    @model_validator(mode="after")
    def _its_signs_differ(self) -> CsvFormat:
        _require_unlike(self.separator, self.quote, self.escape)
        return self


class TsvFormat(Section):
    """Rows of cells with tabs between them, under a header line."""

    kind: Literal["tsv"]
    quote: Quote
    escape: Escape
    missing: Missing
    skip_lines: SkipLines

    @property
    def separator(self) -> str:
        """A tab."""
        return "\t"

    @model_validator(mode="after")
    def _its_signs_differ(self) -> TsvFormat:
        _require_unlike(self.separator, self.quote, self.escape)
        return self


def _require_unlike(*signs: str | None) -> None:
    given = [sign for sign in signs if sign is not None]
    if len(set(given)) < len(given):
        raise ValueError("separator, quote and escape must be different characters")


class JsonLinesFormat(Section):
    """One JSON object in each line; a column may be a path into objects, as `message.body`."""

    kind: Literal["jsonl"]


class ParquetFormat(Section):
    """Parquet files; a column may be a path into structs, as `message.body`.

    Class names that `datasets` left in the file's own metadata stand for its numbers.
    """

    kind: Literal["parquet"]


FileFormat = Annotated[
    CsvFormat | TsvFormat | JsonLinesFormat | ParquetFormat, Field(discriminator="kind")
]


# --- sources --------------------------------------------------------------------------------------


class WheelData(Section):
    """A data set inside a Python wheel: read as a zip, never installed or executed."""

    kind: Literal["wheel"]
    package: Annotated[ProjectName, Field(description="name of the package that ships the data")]
    version: Annotated[ExactVersion, Field(description="its exact version")]
    sha256: Annotated[Sha256, Field(description="digest of the wheel file")]
    train: Annotated[Member, Field(description="path of the training split inside the wheel")]
    test: Annotated[Member, Field(description="path of the test split inside the wheel")]
    format: FileFormat


class HubData(Section):
    """A data set on the Hugging Face hub, by id and revision; code of the hub is never run."""

    kind: Literal["hub"]
    id: Annotated[HubId, Field(description="for example `ag_news`; never a folder")]
    subset: Annotated[str | None, Field(description="the data set's configuration, or null")]
    revision: Annotated[Text, Field(description="a commit, better than a branch")]
    train: Annotated[Text, Field(description="name of the training split")]
    test: Annotated[Text, Field(description="name of the test split")]


class PathData(Section):
    """Files of this repository, DVC-tracked (`dvc add`, `dvc import`) or not.

    A split is one file, a folder of parts, or a pattern of parts in one folder, as
    `data/train-*.parquet`. Parts are read in order of their names and must have the same columns.
    """

    kind: Literal["path"]
    train: Annotated[DataPath, Field(description="path of the training split, from the root")]
    test: Annotated[DataPath, Field(description="path of the test split, from the root")]
    format: FileFormat


class WheelModel(Section):
    """A model folder inside a Python wheel: read as a zip, never installed or executed."""

    kind: Literal["wheel"]
    package: Annotated[ProjectName, Field(description="name of the package that ships the model")]
    version: Annotated[ExactVersion, Field(description="its exact version")]
    sha256: Annotated[Sha256, Field(description="digest of the wheel file")]
    folder: Annotated[Member, Field(description="the model's folder inside the wheel")]


class HubModel(Section):
    """A model on the Hugging Face hub, by id and revision; safetensors only, no code of the hub."""

    kind: Literal["hub"]
    id: Annotated[HubId, Field(description="for example `bert-base-uncased`; never a folder")]
    revision: Annotated[Text, Field(description="a commit, better than a branch")]


class PathModel(Section):
    """A model folder of this repository (config, safetensors, tokenizer), DVC-tracked or not."""

    kind: Literal["path"]
    folder: Annotated[RepositoryPath, Field(description="path of the folder, from the root")]


DataSource = Annotated[WheelData | HubData | PathData, Field(discriminator="kind")]
ModelSource = Annotated[WheelModel | HubModel | PathModel, Field(discriminator="kind")]
