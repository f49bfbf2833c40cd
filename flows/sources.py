"""Whether what a recipe's `path` sources name is there, and has the columns that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.kd.errors import DataError, ParamsError

if TYPE_CHECKING:
    from tasks.kd.recipe import Recipe


def check_sources(root: Path, path: Path, recipe: Recipe) -> None:
    """Raise ParamsError with a line per fault of the sources of a recipe, whose file is `path`.

    A file that DVC tracks, or that a stage makes, may be absent. Of a table that is here the
    header alone is read, or the first record.
    """
    from tasks.kd.recipes import locate, read_yaml

    document, made = read_yaml(path), _list_made(root)
    lines = []
    for place, fault in _find_faults(root, recipe, made):
        _, line = locate(place.split("."), document)
        lines.append(f"  {path}:{line}: {place}: {fault}")
    if lines:
        raise ParamsError("\n".join([f"{path.name} can't be run:", *lines]))


def _find_faults(root: Path, recipe: Recipe, made: set[str]) -> Iterator[tuple[str, str]]:
    """Each fault with the dotted name of the field that it is of."""
    from tasks.kd.source_sections import PathData, PathModel

    sources, data = recipe.fetch_sources, recipe.fetch_sources.data
    if isinstance(data, PathData):
        for split in ("train", "test"):
            named = getattr(data, split)
            if (root / named).is_file():
                yield from _find_column_faults(root, recipe, split, named, data.format.kind)
            elif not _comes_by_dvc(root, named, made):
                yield f"fetch_sources.data.{split}", _absent("file", named)
    models = {"teacher": sources.teacher, "student": sources.student}
    models |= {f"more_teachers.{name}": model for name, model in sources.more_teachers.items()}
    for name, model in models.items():
        if not isinstance(model, PathModel):
            continue
        if (root / model.folder).is_dir():
            yield from _find_tokenizer_faults(name, root / model.folder)
        elif not _comes_by_dvc(root, model.folder, made):
            yield f"fetch_sources.{name}.folder", _absent("folder", model.folder)


def _find_tokenizer_faults(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    from tasks.kd.tokenizer_files import find_tokenizer

    try:
        find_tokenizer(folder)
    except DataError as error:
        yield f"fetch_sources.{name}.folder", str(error)


def _find_column_faults(
    root: Path, recipe: Recipe, split: str, named: str, kind: str
) -> Iterator[tuple[str, str]]:
    from tasks.kd.tables import read_column_names

    try:
        names = read_column_names(root / named, kind)
    except DataError as error:
        yield f"fetch_sources.data.{split}", str(error)
        return
    for field in ("text_column", "label_column"):
        column = getattr(recipe.prepare_data, field)
        if column not in names:
            found = ", ".join(names) or "none"
            yield f"prepare_data.{field}", f"no column {column!r} in {named}, found {found}"


def _absent(kind: str, named: str) -> str:
    return f"no such {kind}, expected {named} or {named.rstrip('/')}.dvc, found neither"


def _comes_by_dvc(root: Path, named: str, made: set[str]) -> bool:
    """Whether the path, or a folder that it lies in, is tracked by DVC or made by a stage."""
    places = [Path(named), *list(Path(named).parents)[:-1]]
    return any(
        (root / place.with_name(f"{place.name}.dvc")).is_file() or place.as_posix() in made
        for place in places
    )


def _list_made(root: Path) -> set[str]:
    """The outs of stages that the user added to dvc.yaml; the recipes' own have other places."""
    from tasks.kd.recipes import read_yaml

    stages: Any = read_yaml(root / "dvc.yaml").get("stages") or {}
    outs = [out for stage in stages.values() for out in stage.get("outs", ())]
    return {out if isinstance(out, str) else next(iter(out)) for out in outs}
