"""Tables given to `stillhouse new`: their form, their dialect and their usable rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.kd.data.local_files import PART_SUFFIXES, Kind
from tasks.kd.errors import DataError, ParamsError

if TYPE_CHECKING:
    from tasks.kd.data.formats import Part
    from tasks.kd.data.splits import RawSplits
    from tasks.kd.data.tables import Rows
    from tasks.kd.recipe.sources import FileFormat

FORMATS = {suffix: kind for kind, suffixes in PART_SUFFIXES.items() for suffix in suffixes}
Parts = Mapping[str, "Sequence[Part]"]


def format_of(root: Path, named: str) -> Kind:
    """The form of a file, a folder's parts or a pattern's files, by their endings.

    Raises ParamsError if the endings don't name one form.
    """
    place = root / named
    names = [named]
    if _is_data_path(named) and place.is_dir():
        names = [p.name for p in place.iterdir() if not p.name.startswith((".", "_"))]
        names = [name.removesuffix(".dvc") for name in names]
    kinds = {FORMATS.get(Path(name).suffix.lower()) for name in names}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ParamsError(
            f"can't tell the format of {named!r}",
            expected=f"a name, or a folder of names, that ends in {', '.join(FORMATS)}",
        )
    return kind


def fit_data(document: Any, root: Path) -> tuple[list[str], Rows | None]:
    """Write the dialect and the least number of training rows into a recipe of local tables.

    Returns notes, one a line, and the usable training rows; None if they can't be read here.
    Raises DataError for a file that is no table of its form.
    """
    data, prepare = document["fetch_sources"]["data"], document["prepare_data"]
    parts = {split: _find(root, data, split) for split in ("train", "test")}
    layout, told = _propose_layout(data["format"]["kind"], parts, prepare)
    data["format"] = _as_yaml(layout)
    notes = [f"{data['train']}: {told}"] if told else []
    try:
        splits = _read_usable(parts, layout, document, root)
        if splits is not None:
            splits.require_enough(1)
    except DataError as error:  # the recipe is written, since its fields may mend the row
        splits, notes = None, [*notes, f"rows are not counted: {error}"]
    prepare["min_train_examples"] = max(1, len(splits.train) // 2 if splits else 1)
    if splits is None:
        return notes, None
    losses = splits.describe_losses()
    count = f"{len(splits.train)} usable training rows" + (f" ({losses})" if losses else "")
    return [*notes, f"{count}: min_train_examples is half of them"], splits.train


def read_training(document: Any, root: Path) -> Rows | None:
    """The usable training rows of a recipe's local tables; None if they can't be read here."""
    from pydantic import TypeAdapter

    from tasks.kd.recipe.sources import FileFormat

    data = document["fetch_sources"]["data"]
    if data["kind"] != "path":
        return None
    layout: FileFormat = TypeAdapter(FileFormat).validate_json(json.dumps(data["format"]))
    try:
        parts = {split: _find(root, data, split) for split in ("train", "test")}
        splits = _read_usable(parts, layout, document, root)
    except DataError:  # the whole recipe is checked next, and says where
        return None
    return splits.train if splits else None


def _is_data_path(named: str) -> bool:
    """Whether a recipe may name this path; other paths are never looked at."""
    from tasks.kd.recipe.sources import require_data_path

    try:
        require_data_path(named)
    except ValueError:
        return False
    return True


def _find(root: Path, data: Any, split: str) -> list[Part]:
    from tasks.kd.data.formats import Part
    from tasks.kd.data.local_files import find_parts

    named = data[split]
    if not _is_data_path(named):
        return []  # the whole recipe is checked next, and says where
    paths = find_parts(root, named, data["format"]["kind"])
    return [Part(path, path.relative_to(root).as_posix()) for path in paths]


def _propose_layout(kind: Kind, parts: Parts, prepare: Any) -> tuple[FileFormat, str]:
    from tasks.kd.data.formats import Columns
    from tasks.kd.recipe.sources import JsonLinesFormat, ParquetFormat

    if kind == "jsonl":
        return JsonLinesFormat(kind=kind), ""
    if kind == "parquet":
        return ParquetFormat(kind=kind), ""
    from tasks.kd.data.formats.dialects import propose_layout

    columns = Columns(str(prepare["text_column"]), str(prepare["label_column"]))
    return propose_layout(kind, [part for split in parts.values() for part in split[:1]], columns)


def _as_yaml(layout: FileFormat) -> Any:
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    fields = CommentedMap(layout.model_dump())
    if "missing" in fields:
        fields["missing"] = CommentedSeq(fields["missing"])
        fields["missing"].fa.set_flow_style()
    return fields


def _read_usable(parts: Parts, layout: FileFormat, document: Any, root: Path) -> RawSplits | None:
    """Both splits as a training would use them now; None if a file is missing.

    Raises DataError for a row that can't be read.
    """
    from tasks.kd.data.splits import read_splits
    from tasks.kd.recipe.sections import PrepareData

    if not all(parts.values()):
        return None
    try:
        params = PrepareData.model_validate_json(json.dumps(document["prepare_data"]))
    except ValueError:  # the whole recipe is checked next, and says where
        return None
    teacher = root / str(document["fetch_sources"]["teacher"].get("folder", ""))
    return read_splits(parts, layout, params, teacher)
