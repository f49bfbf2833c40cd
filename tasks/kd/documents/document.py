"""What all documents share: they are written whole, and read as this version writes them.

A document carries no number of its form: a file of another version has other fields, and says so
by them. Fields that one kind of document lacks have a default and are left out of its file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.kd.digests import write_json
from tasks.kd.errors import DataError

Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Text = Annotated[str, Field(min_length=1)]

Read = TypeVar("Read")

_SHORT = 80
_OTHER_FORM = ("missing", "extra_forbidden")


class Part(BaseModel):
    """Fields that never change: strictly typed, finite, and no others."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )

    @property
    def given(self) -> dict[str, Any]:
        """The fields that it was given, by name: those of its file."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def as_json(self) -> dict[str, Any]:
        """The JSON object of its file."""
        return self.model_dump(mode="json", exclude_unset=True)


class Document(Part):
    """A file of a stage's out. `TITLE` is what a message calls it, `FILE` its name in the out."""

    TITLE: ClassVar[str]
    FILE: ClassVar[str]

    def write(self, folder: Path) -> None:
        """Write the file atomically, for people to read."""
        write_json(folder / self.FILE, self.as_json())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The document of a stage's out.

        Raises DataError, with the command that makes it again, unless it is there, whole, and has
        just the fields that this version writes.
        """
        path = folder / cls.FILE
        return cls.parse(read_bytes(path, cls.TITLE), path)

    @classmethod
    def parse(cls, text: bytes | str, where: object) -> Self:
        """The document of a JSON text. Raises DataError; `where` is what the text is of."""
        return parse(cls.model_validate_json, text, cls.TITLE, where)


def read_bytes(path: Path, title: str) -> bytes:
    """The content of a document's file. Raises DataError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{title} can't be read", where=path, found=error.strerror, mend=find_remake(path)
        ) from None


def parse(
    read: Callable[[bytes | str], Read],
    text: bytes | str,
    title: str,
    where: object,
    place: str = "",
) -> Read:
    """What pydantic reads of a JSON text. Raises DataError that names the wrong field.

    `where` is the file or whatever holds the text, `place` is inside it.
    """
    try:
        return read(text)
    except ValidationError as error:
        raise _refuse(error, title, where, place) from None


def find_remake(where: object) -> str | None:
    """The command that makes a stage's file again, if it stands in a recipe's artifacts."""
    match where.parts[-4:] if isinstance(where, Path) else ():
        case ("artifacts", recipe, stage, _):
            return f"dvc repro -s -f {stage}@{recipe}"
    return None


def _refuse(error: ValidationError, title: str, where: object, place: str) -> DataError:
    """What is wrong with a document, by its first fault; the fields of the others are named."""
    mend = find_remake(where)
    where = f"{where}, {place}" if place else where
    first, *others = error.errors(include_url=False)
    if first["type"] == "json_invalid":
        said = first["ctx"]["error"]
        what = f"{title} is not JSON, or is cut short"
        return DataError(what, where=where, found=said, mend=mend)
    name = _name(first["loc"])
    what, expected, found = _describe(first)
    advice = ["Another version wrote it, or a hand."] if first["type"] in _OTHER_FORM else []
    if others:
        named = ", ".join(_name(fault["loc"]) for fault in others)
        advice.append(f"More fields are wrong: {named[:300]}.")
    return DataError(
        f"{title} {what}",
        where=f"{where}, field {name}" if name else where,
        expected=expected,
        found=found,
        advice=" ".join(advice) or None,
        mend=mend,
    )


def _describe(fault: Any) -> tuple[str, str, str]:
    """What is wrong with a field, what was expected of it, what was found."""
    found = json.dumps(fault["input"], default=str, ensure_ascii=False)
    found = found if len(found) <= _SHORT else f"{found[: _SHORT - 1]}…"
    if fault["type"] == "missing":
        return "lacks a field", "a value", "nothing"
    if fault["type"] == "extra_forbidden":
        return "has a field that this version does not write", "no such field", found
    return "has a wrong field", fault["msg"].removeprefix("Input should be "), found


def _name(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))
