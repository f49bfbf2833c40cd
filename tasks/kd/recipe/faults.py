"""Faults of a recipe, each told once and with its line: `file:line: field: what is wrong`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.kd.errors import ParamsError

Place = tuple[str | int, ...]
# Kinds of faults whose text says all; after that of others stands what was found.
_WHOLE = ("extra_forbidden", "missing", "value_error", "union_tag_not_found", "union_tag_invalid")
_SHOULD_BE = "Input should be "
_SHOWN = 80  # letters of a value that is refused


@dataclass(frozen=True)
class Fault:
    """What is wrong with the field at a place: `("train_student", "phases", 0, "optimizer")`."""

    place: Place
    text: str

    @property
    def field(self) -> str:
        """The dotted name of its place."""
        return ".".join(map(str, self.place))


def refuse(
    path: Path, document: Any, faults: Iterable[Fault], *more: str, wish: str = "run"
) -> ParamsError:
    """The error that tells all faults of a recipe that was to be run, or what is wished."""
    return ParamsError(
        "\n".join([f"{path.name} can't be {wish}:", *tell(path, document, faults), *more])
    )


def tell(path: Path, document: Any, faults: Iterable[Fault]) -> list[str]:
    """A line for each fault, in order of their own lines."""
    told = {(locate(fault.place, document), fault.field, fault.text): None for fault in faults}
    return [
        f"  {path}:{line}: {field}: {text}"
        for line, field, text in sorted(told, key=lambda each: each[0])
    ]


def locate(place: Sequence[int | str], document: Any) -> int:
    """The 1-based line of a place, or of what holds it where it is not there."""
    node, line = document, 1
    for part in place:
        if not _is_inside(part, node):
            break
        if part in (node.lc.data or ()):  # what a merge key brings in has no line of its own
            line = int(node.lc.data[part][0]) + 1
        node = node[part]
    return line


def _is_inside(part: int | str, node: Any) -> bool:
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, dict) and part in node


def field_faults(error: ValidationError, document: Any) -> list[Fault]:
    """What pydantic found wrong with single fields and sections, one fault for each place.

    A field of several kinds is refused by each of them: its fault names them all. Of a field that
    is of one kind, but wrong inside, only what is inside is told.
    """
    found: dict[Place, list[Any]] = {}
    for each in error.errors():
        found.setdefault(_place_of(each, document), []).append(each)
    return [
        Fault(place, _join(errors))
        for place, errors in found.items()
        if place and not any(place == other[: len(place)] for other in found if other != place)
    ]


def _place_of(error: Any, document: Any) -> Place:
    """Where pydantic found a fault, without the names of the kinds that it tried there."""
    node, place = document, list[str | int]()
    for part in error["loc"]:
        if _is_inside(part, node):
            node = node[part]
            place.append(part)
    if error["type"] == "missing":
        place.append(error["loc"][-1])
    return tuple(place)


def _join(errors: Sequence[Any]) -> str:
    """One text for what was found wrong at one place."""
    texts = list(dict.fromkeys(_tell(error) for error in errors))
    first, *others = texts
    text = ", or ".join([first, *(other.removeprefix(_SHOULD_BE) for other in others)])
    if errors[0]["type"] in _WHOLE:
        return text
    return f"{text}, found {json.dumps(errors[0]['input'], default=str)[:_SHOWN]}"


def _tell(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field"
    if error["type"] == "missing":
        return "is missing"
    named = str(error.get("ctx", {}).get("discriminator", "")).strip("'")
    if error["type"] == "union_tag_not_found":
        return f"{named} is missing"
    if error["type"] == "union_tag_invalid":
        name = "level.loss" if named.endswith("()") else named  # what no field says alone
        tag, tags = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        return f"{name} {tag!r} does not match any of the expected tags: {tags}"
    return str(error["msg"]).removeprefix("Value error, ")


def wrong_sections(error: ValidationError) -> Iterator[str]:
    """Names of the sections that have a fault, each once."""
    yield from dict.fromkeys(str(each["loc"][0]) for each in error.errors() if each["loc"])
