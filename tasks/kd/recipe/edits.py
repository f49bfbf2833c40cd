"""Changes of a YAML text, each at one place: all other letters stay as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.kd.errors import ParamsError
from tasks.kd.recipe.faults import Place

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./ -]*")
# What stands between a name and a value that has no text of its own, and the last such list item.
_ELSEWHERE = re.compile(r"\s*:(?:(?:\s+#[^\n]*)*\s*\*[^\s,\[\]{}]+)?")
_LAST_ITEM = re.compile(r"^ *(?:- +)*-(?: +\*[^\s,\[\]{}]+)?", re.MULTILINE)
_OTHER_MEANING = {"null", "true", "false", "yes", "no", "on", "off"}


@dataclass(frozen=True)
class Put:
    """Fields that a mapping gets, after one of its own, or before all."""

    place: Place
    fields: Mapping[str, Any]
    after: str | None = None
    why: str = ""

    def __str__(self) -> str:
        """For people, as for the other changes."""
        added = ", ".join(f"{key}: {spell(value)}" for key, value in self.fields.items())
        return f"{_name(self.place)}: adds {added}{self.why and f' ({self.why})'}"


@dataclass(frozen=True)
class Rename:
    """Another name for a field."""

    place: Place
    key: str
    to: str

    def __str__(self) -> str:
        return f"{_name((*self.place, self.key))}: is now named {self.to}"


@dataclass(frozen=True)
class Drop:
    """A field that a mapping loses; another stands before it or after it."""

    place: Place
    key: str
    why: str = ""

    def __str__(self) -> str:
        return f"{_name((*self.place, self.key))}: is dropped{self.why and f' ({self.why})'}"


@dataclass(frozen=True)
class Set:
    """Another value for a field that has a number or a text."""

    place: Place
    key: str
    value: Any

    def __str__(self) -> str:
        return f"{_name((*self.place, self.key))}: is now {spell(self.value)}"


Edit = Put | Rename | Drop | Set


def apply_edits(text: str, edits: Iterable[Edit], path: Path) -> str:
    """The text of a file with all changes made. Places and names are those before them.

    Raises ParamsError for a place that a merge key (`<<`) brings in, which has no text of its own.
    """
    from ruamel.yaml import YAML

    root = YAML(typ="rt").compose(text)
    splices = dict.fromkeys(_splice(text, _find(root, edit, path), edit) for edit in edits)
    ordered = sorted(enumerate(splices), key=lambda each: (*each[1][:2], each[0]), reverse=True)
    for _, (start, end, replacement) in ordered:  # from the last, so that places stay what they are
        text = text[:start] + replacement + text[end:]
    return text


def spell(value: Any) -> str:
    """A value as YAML, in one line."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value not in _OTHER_MEANING:
        return value
    return json.dumps(value, ensure_ascii=False)


def _name(place: Place) -> str:
    return ".".join(map(str, place)) or "recipe"


def _find(root: Any, edit: Edit, path: Path) -> Any:
    """The mapping that is changed, which has the text of all fields that the change names."""
    node = root
    for part in edit.place:
        if isinstance(part, str):
            _require_text(node, part, path)
        node = node.value[part] if isinstance(part, int) else node.value[_index(node, part)][1]
    if not isinstance(edit, Put):
        _require_text(node, edit.key, path)
    return node


def _require_text(mapping: Any, key: str, path: Path) -> None:
    if key not in [name.value for name, _ in mapping.value]:
        raise ParamsError(
            f"{key} comes in by a merge key (`<<`), and can't be changed where it is",
            where=f"{path}:{mapping.start_mark.line + 1}",
            advice="Write the fields out instead.",
        )


def _index(mapping: Any, key: str) -> int:
    """The number of a field in a mapping."""
    return [name.value for name, _ in mapping.value].index(key)


def _splice(text: str, mapping: Any, edit: Edit) -> tuple[int, int, str]:
    """From where to where the text is replaced, and by what."""
    if isinstance(edit, Put):
        return _insert(text, mapping, edit)
    number = _index(mapping, edit.key)
    key, value = mapping.value[number]
    if isinstance(edit, Rename):
        new = json.dumps(edit.to) if key.style else edit.to
        return key.start_mark.index, key.end_mark.index, new
    if isinstance(edit, Set):
        end = _end(text, key, value)
        start = key.end_mark.index if _is_elsewhere(key, value) else value.start_mark.index
        lead = ": " if _is_elsewhere(key, value) else ""
        return start, end, lead + spell(edit.value)
    if number + 1 < len(mapping.value):
        return key.start_mark.index, mapping.value[number + 1][0].start_mark.index, ""
    return _end(text, *mapping.value[number - 1]), _end(text, key, value), ""


def _insert(text: str, mapping: Any, put: Put) -> tuple[int, int, str]:
    in_quotes = bool(mapping.value) and mapping.value[0][0].style == '"'  # as in JSON
    fields = [
        f"{json.dumps(key)}: {json.dumps(value)}" if in_quotes else f"{key}: {spell(value)}"
        for key, value in put.fields.items()
    ]
    after = _number_before(mapping, put)
    if mapping.flow_style:
        if after is None:
            at = text.index("{", mapping.start_mark.index) + 1
            return at, at, ", ".join(fields) + (", " if mapping.value else "")
        at = _end(text, *mapping.value[after])
        return at, at, "".join(f", {field}" for field in fields)
    indent = " " * mapping.value[0][0].start_mark.column
    if after is None:
        at = mapping.value[0][0].start_mark.index
        line = _line_end(text, at)[1]
        return at, at, "".join(f"{field}{line}{indent}" for field in fields)
    at, line = _line_end(text, _end(text, *mapping.value[after]))
    return at, at, "".join(f"{line}{indent}{field}" for field in fields)


def _number_before(mapping: Any, put: Put) -> int | None:
    """The number of the field that new ones come after: the last, where the one named is not."""
    names = [name.value for name, _ in mapping.value]
    if put.after is None or not names:
        return None
    return names.index(put.after) if put.after in names else len(names) - 1


def _end(text: str, key: Any, value: Any) -> int:
    """Where a field ends: with the last of its own text, without what follows in the line."""
    if _is_elsewhere(key, value):
        after = _ELSEWHERE.match(text, key.end_mark.index)
        return after.end() if after else int(key.end_mark.index)
    if isinstance(value.value, str):
        is_block = value.style in ("|", ">")
        return _block_end(text, key, value) if is_block else int(value.end_mark.index)
    if value.flow_style:
        return int(value.end_mark.index)
    last = value.value[-1]
    if isinstance(last, tuple):
        return _end(text, *last)
    before = max((value, *value.value[:-1]), key=lambda node: node.start_mark.index)
    if _is_elsewhere(before, last):
        return _end_of_items(text, value)
    return _end(text, value, last)


def _is_elsewhere(before: Any, value: Any) -> bool:
    """Whether a value has no text after what stands before it: `*name`, or nothing at all."""
    is_named = value.start_mark.index <= before.start_mark.index
    return is_named or (value.value == "" and not value.style)


def _end_of_items(text: str, items: Any) -> int:
    """Where the last item of a list ends, which has no text of its own."""
    lines = _LAST_ITEM.finditer(text, items.start_mark.index, items.end_mark.index)
    return max((line.end() for line in lines), default=int(items.start_mark.index))


def _block_end(text: str, key: Any, value: Any) -> int:
    """Where a text over several lines ends, which is indented further than its name."""
    end = int(value.start_mark.index)
    for line in re.finditer(r"\n( *)\S[^\r\n]*", text[: value.end_mark.index]):
        if line.start() >= value.start_mark.index:
            if len(line[1]) <= key.start_mark.column:
                break
            end = line.end()
    return end


def _line_end(text: str, start: int) -> tuple[int, str]:
    """Where the line ends that a place is in, and what ends it."""
    at = text.find("\n", start)
    if at < 0:
        return len(text), "\r\n" if "\r\n" in text else "\n"
    return (at - 1, "\r\n") if text[at - 1] == "\r" else (at, "\n")
