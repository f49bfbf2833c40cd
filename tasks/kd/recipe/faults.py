"""Faults of a recipe, each told once and with its line: `file:line: field: what is wrong`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.kd.errors import ParamsError

Place = tuple[str | int, ...]
# Kinds of faults whose text says all; after that of others stands what was found.
_WHOLE = ("extra_forbidden", "missing", "value_error")
_OF_KIND = ("union_tag_not_found", "union_tag_invalid")
_QUOTED = re.compile(r"'([^']+)'")
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
    for each in (one for whole in error.errors() for one in _of_fields(whole)):
        found.setdefault(_place_of(each, document), []).append(each)
    return [
        Fault(place, _join(errors))
        for place, errors in found.items()
        if place and not any(place == other[: len(place)] for other in found if other != place)
    ]


def _of_fields(error: Any) -> Iterator[Any]:
    """The errors of the fields that say a section's kind, where that is what is wrong, or itself.

    A level's kind is said by two fields, `level` and `loss`.
    """
    if error["type"] not in _OF_KIND:
        yield error
        return
    given, named = error["input"], error["ctx"]["discriminator"].strip("'")
    if not isinstance(given, dict):
        yield {**error, "type": "model_type", "msg": f"{_SHOULD_BE}an object"}
        return
    fields = ("level", "loss") if named.endswith("()") else (named,)
    kinds = [tag.split(".") for tag in _QUOTED.findall(error["ctx"].get("expected_tags", ""))]
    for number, field in enumerate(fields):
        loc = (*error["loc"], field)
        known = list(dict.fromkeys(repr(kind[number]) for kind in kinds))
        if field not in given:
            yield {**error, "loc": loc, "type": "missing"}
        elif known and repr(given[field]) not in known:
            text = _SHOULD_BE + " or ".join(filter(None, [", ".join(known[:-1]), known[-1]]))
            yield {**error, "loc": loc, "type": "literal_error", "msg": text, "input": given[field]}
        kinds = [kind for kind in kinds if kind[number] == given.get(field)]


def unfit_faults(node: Any, place: Place = ()) -> Iterator[Fault]:
    """What of a YAML document can't stand in a recipe: other values than those of JSON."""
    if isinstance(node, dict | list):
        inner = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in inner:
            if isinstance(node, dict) and not isinstance(key, str):
                yield Fault((*place, key), f"a field's name must be a text, found {key!r}")
            else:
                yield from unfit_faults(value, (*place, key))
    elif isinstance(node, str):
        if any("\ud800" <= letter <= "\udfff" for letter in node):
            yield Fault(place, "a text with half of a surrogate pair")
    elif not (node is None or isinstance(node, bool | int | float)):
        found = str(getattr(node, "value", node))[:_SHOWN]
        yield Fault(place, f"no text, number, list or mapping, found {found}")


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
    return str(error["msg"]).removeprefix("Value error, ")


def wrong_sections(error: ValidationError) -> Iterator[str]:
    """Names of the sections that have a fault, each once."""
    yield from dict.fromkeys(str(each["loc"][0]) for each in error.errors() if each["loc"])
