"""YAML documents: read with their lines, and changed with comments and layout kept."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.kd.digests import write_bytes
from tasks.kd.errors import ParamsError

_WIDEST = 4096  # letters in a line, from which on ruamel folds it


@dataclass(frozen=True)
class Document:
    """A YAML document that can be changed: `data` are its mappings and lists with comments."""

    data: Any
    indent: int
    offset: int

    def render(self) -> bytes:
        """The text of the data as they are now, in the layout that was read."""
        stream = io.BytesIO()
        _round_trip(self.indent, self.offset).dump(self.data, stream)
        return stream.getvalue()


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 document with line numbers kept. Raises ParamsError with file and line."""
    return parse_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """A file's text, its line ends as they are. Raises ParamsError if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ParamsError("no such file", where=path) from None
    except IsADirectoryError:
        raise ParamsError("a folder in the place of a file", where=path) from None
    except UnicodeDecodeError as error:
        raise ParamsError("not YAML in UTF-8", where=path, found=error) from None


def require_writable(path: Path) -> None:
    """Raise ParamsError for a file that its permissions keep from being changed."""
    if path.exists() and not (path.stat().st_mode & stat.S_IWUSR and os.access(path, os.W_OK)):
        raise ParamsError("a file that must not be written", where=path, mend=f"chmod u+w {path}")


def write_document(path: Path, content: bytes) -> None:
    """Write a file, or the one that a link names, at once; its permissions stay.

    Raises ParamsError as `require_writable` does.
    """
    require_writable(path)
    target = path.resolve()
    mode = target.stat().st_mode if target.exists() else None
    write_bytes(target, content)
    if mode is not None:
        target.chmod(mode)


def parse_yaml(text: str, path: Path) -> Any:
    """The document of a text that is, or is to be, in that file. Raises as `read_yaml` does."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ParamsError(f"{path}{line}: not valid YAML, {problem}") from None
    except YAMLError as error:
        problem = " ".join(str(error).split())
        raise ParamsError("not YAML in UTF-8", where=path, found=problem) from None


# --- sections as text ----------------------------------------------------------------------------


def leading_comment(text: str, data: Any) -> str:
    """What stands above the first section."""
    return "".join(text.splitlines(keepends=True)[: data.lc.key(next(iter(data)))[0]])


def section_text(text: str, data: Any, key: str) -> str:
    """The lines of a section, without blank lines and comments around it."""
    lines = text.splitlines(keepends=True)
    start, end = _find_section(lines, data, key)
    return "".join(lines[start:end])


def replace_section(text: str, data: Any, key: str, section: str) -> str:
    """The text with other lines for a section, and for the comment right above it."""
    lines = text.splitlines(keepends=True)
    start, end = _find_section(lines, data, key)
    while start and lines[start - 1].startswith("#"):
        start -= 1
    return "".join([*lines[:start], section, *lines[end:]])


def _find_section(lines: Sequence[str], data: Any, key: str) -> tuple[int, int]:
    """The lines of a section, from its name to its last."""
    starts = [data.lc.key(each)[0] for each in data]
    start = data.lc.key(key)[0]
    end = min((other for other in starts if other > start), default=len(lines))
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    return start, end


# --- documents that are changed ------------------------------------------------------------------


def open_document(path: Path) -> Document:
    """The document of a file, to be changed. Raises ParamsError as `read_yaml` does."""
    return parse_document(read_text(path), path)


def parse_document(text: str, path: Path) -> Document:
    """The document of a text that is, or is to be, in that file."""
    from ruamel.yaml.util import load_yaml_guess_indent

    data = parse_yaml(text, path)
    _, indent, offset = load_yaml_guess_indent(text)
    return Document(data, indent or 2, offset or 0)


def _round_trip(indent: int, offset: int) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Writes null as people do."""

    Representer.add_representer(
        type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml = YAML(typ="rt")
    yaml.Representer = Representer
    yaml.width = _WIDEST
    yaml.indent(mapping=2, sequence=indent, offset=offset)
    return yaml


def replace_mapping(section: Any, key: str, value: Mapping[str, Any]) -> None:
    """Put a mapping in another's place, with the blank line or comment that follows it."""
    from ruamel.yaml.comments import CommentedMap

    old, new = section[key], CommentedMap(value)
    if (following := old.ca.items.get(list(old)[-1])) is not None:
        new.ca.items[list(new)[-1]] = following
    section[key] = new


def replace_list(section: Any, key: str, values: Sequence[str]) -> None:
    """Put a list in another's place, in the layout that it has, with what follows it."""
    from ruamel.yaml.comments import CommentedSeq

    old, new = section.get(key), CommentedSeq(values)
    if not (isinstance(old, CommentedSeq) and old) or old.fa.flow_style():
        new.fa.set_flow_style()
    elif (following := old.ca.items.get(len(old) - 1)) is not None and new:
        new.ca.items[len(new) - 1] = following
    section[key] = new


def on_one_line(entry: Mapping[str, Any]) -> Any:
    """A mapping that is written between braces."""
    from ruamel.yaml.comments import CommentedMap

    mapping = CommentedMap(entry)
    mapping.fa.set_flow_style()
    return mapping
