"""Documents of any content that their types allow, for properties."""

from __future__ import annotations

import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MinLen
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from tasks.kd.documents.document import Part

_JSON = st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3)


def draw_parts(model: type[Part]) -> st.SearchStrategy[Any]:
    """A document's or a part's instances; a field with a default is given or not."""
    fields = {
        name: (_draw(field.annotation, field.metadata), field.is_required())
        for name, field in model.model_fields.items()
    }
    required = {name: drawn for name, (drawn, is_required) in fields.items() if is_required}
    optional = {name: drawn for name, (drawn, is_required) in fields.items() if not is_required}
    given = st.fixed_dictionaries(required, optional=optional)
    return given.map(lambda values: model(**values))


def _draw(kind: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _draw(arguments[0], [*metadata, *_flatten(arguments[1:])])
    if origin in (Union, UnionType):
        return st.one_of(*(_draw(one, metadata) for one in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (tuple, dict):
        return _draw_many(origin, arguments)
    if isinstance(kind, type) and issubclass(kind, Part):
        return draw_parts(kind)
    return _draw_plain(kind, metadata)


def _draw_many(origin: type, arguments: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if origin is tuple:
        return st.lists(_draw(arguments[0], []), max_size=3).map(tuple)
    return st.dictionaries(st.text(max_size=3), _draw(arguments[1], []), max_size=3)


def _draw_plain(kind: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    least: Any = next((one.ge for one in metadata if isinstance(one, Ge)), None)
    most: Any = next((one.le for one in metadata if isinstance(one, Le)), None)
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(least, most if most is not None else 2**60)
    if kind is float:
        return st.floats(least, most, allow_nan=False, allow_infinity=False)
    if kind is str:
        pattern = next((one.pattern for one in metadata if getattr(one, "pattern", None)), None)
        shortest = next((one.min_length for one in metadata if isinstance(one, MinLen)), 0)
        return (
            st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
            if pattern is not None
            else st.text(min_size=shortest, max_size=6)
        )
    if kind is Any:
        return _JSON
    raise AssertionError(f"no strategy for {kind}")


def _flatten(metadata: tuple[Any, ...]) -> list[Any]:
    return [
        part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])
    ]
