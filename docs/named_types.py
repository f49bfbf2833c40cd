"""The types of a recipe that have a name in the code, and that a page describes once."""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

LONG = 120  # letters of a cell that is worth a name, though only one field has it


@dataclass(frozen=True)
class NamedType:
    """A type alias: its name, what it stands for, and what the fields that use it mean.

    `description` is what the alias itself says of every field; None if that is the fields' to say.
    """

    name: str
    core: Any
    description: str | None
    meaning: str = ""


def collect_named_types(
    models: Sequence[type[BaseModel]], describe: Callable[[Any, list[Any]], str]
) -> tuple[NamedType, ...]:
    """The aliases with alternatives that several fields use, or whose words are long.

    Each has as its meaning what the alias says, or what several of its fields say of themselves.
    """
    aliases = list(_list_aliases(models))
    uses: dict[str, list[str]] = {}
    first: dict[str, NamedType] = {}
    for annotation, description in _list_uses(models):
        if (alias := find_named_type(aliases, annotation, description)) is not None:
            first.setdefault(alias.name, alias)
            uses.setdefault(alias.name, []).append(description or "")
    return tuple(
        replace(alias, meaning=alias.description or _shared(uses[alias.name]))
        for alias in first.values()
        if len(uses[alias.name]) > 1 or len(describe(alias.core, [])) > LONG
    )


def find_named_type(
    named: Sequence[NamedType], annotation: Any, description: str | None
) -> NamedType | None:
    """The named type that an annotation is; of two alike, the one that says the description."""
    core = _strip(annotation)
    alike = [each for each in named if each.core == core]
    own = [each for each in alike if each.description is not None]
    exact = [each for each in own if each.description == description]
    return next(iter([*exact, *(each for each in alike if each not in own)]), None)


def find_narrower(named: Sequence[NamedType], wider: NamedType) -> NamedType | None:
    """The named type that another one begins with: its alternatives and its meaning, and more."""
    for each in named:
        alternatives = get_args(each.core)
        more = wider.meaning.startswith(each.meaning) and wider.meaning != each.meaning
        if more and each.meaning and get_args(wider.core)[: len(alternatives)] == alternatives:
            return each
    return None


def _list_aliases(models: Sequence[type[BaseModel]]) -> Iterator[NamedType]:
    """The public aliases with alternatives, in the modules of models and of what they extend."""
    extended = (each for model in models for each in model.__mro__ if issubclass(each, BaseModel))
    for module in dict.fromkeys(each.__module__ for each in extended):
        for name, value in vars(sys.modules[module]).items():
            core = _strip(value)
            has_alternatives = get_origin(core) in (Union, types.UnionType, Literal)
            if has_alternatives and len(get_args(core)) > 1 and not name.startswith("_"):
                yield NamedType(name, core, _describe_alias(value))


def _list_uses(models: Sequence[type[BaseModel]]) -> Iterator[tuple[Any, str | None]]:
    """Every annotation in a field of a model, with the field's description at the outermost."""
    for model in models:
        for field in model.model_fields.values():
            yield field.annotation, field.description
            yield from ((part, None) for part in _walk(field.annotation))


def _walk(annotation: Any) -> Iterator[Any]:
    parts = get_args(_strip(annotation))
    if get_origin(_strip(annotation)) is not Literal:
        for part in parts:
            yield part
            yield from _walk(part)


def _strip(annotation: Any) -> Any:
    """An annotation without what `Annotated` adds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _describe_alias(value: Any) -> str | None:
    added = getattr(value, "__metadata__", ())
    return next((part.description for part in added if isinstance(part, FieldInfo)), None)


def _shared(meanings: list[str]) -> str:
    """What most of several meanings say; nothing if no two agree."""
    said, count = Counter(meanings).most_common(1)[0]
    return said if count > 1 else ""
