"""Whether a recipe's sources are there, inside the repository, and what the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.kd.data.formats.cells import list_names
from tasks.kd.data.local_files import tracked_parts
from tasks.kd.errors import DataError

if TYPE_CHECKING:
    from tasks.kd.recipe.faults import Fault
    from tasks.kd.recipe.recipe import Recipe
    from tasks.kd.recipe.sources import PathData


def check_sources(root: Path, path: Path, recipe: Recipe) -> None:
    """Raise ParamsError with a line per fault of the sources of a recipe, whose file is `path`.

    A file that DVC tracks, or that a stage makes, may be absent. Of a table that is here the
    header alone is read, or the first record; of a model all but the values of its weights.
    """
    from tasks.kd.recipe.document import read_yaml
    from tasks.kd.recipe.faults import refuse

    if faults := list(find_source_faults(root, recipe)):
        raise refuse(path, read_yaml(path), faults)


def find_source_faults(root: Path, recipe: Recipe) -> Iterator[Fault]:
    """The faults of a recipe's sources, as `check_sources` tells them."""
    from tasks.kd.recipe.faults import Fault

    for place, fault in _find_faults(root, recipe, _list_made(root)):
        yield Fault(tuple(place.split(".")), fault)


def _find_faults(root: Path, recipe: Recipe, made: set[str]) -> Iterator[tuple[str, str]]:
    """Each fault with the dotted name of the field that it is of."""
    from tasks.kd.data.sources import require_no_folder
    from tasks.kd.recipe.sources import HubData, HubModel, PathData, PathModel

    sources, data = recipe.fetch_sources, recipe.fetch_sources.data
    models = {"teacher": sources.teacher, "student": sources.student}
    models |= {f"more_teachers.{name}": model for name, model in sources.more_teachers.items()}
    if isinstance(data, PathData):
        for split in ("train", "test"):
            yield from _find_split_faults(root, recipe, data, split, made)
    for name, source in {"data": data, **models}.items():
        if isinstance(source, HubData | HubModel):
            yield from _tell(f"fetch_sources.{name}.id", require_no_folder, root, source.id)
        elif isinstance(source, PathModel):
            yield from _find_folder_faults(root, recipe, name, source.folder, made)


def _find_folder_faults(
    root: Path, recipe: Recipe, name: str, folder: str, made: set[str]
) -> Iterator[tuple[str, str]]:
    """What is wrong with a model's folder, found without loading it."""
    from flows.models import find_model_faults
    from tasks.kd.data.local_files import require_inside
    from tasks.kd.data.sources import MODEL_FILES

    place, path = f"fetch_sources.{name}.folder", root / folder
    if (path / "config.json").exists():
        read = [file for file in path.iterdir() if any(map(file.match, MODEL_FILES))]
        outside = [f for each in (path, *read) for f in _tell(place, require_inside, root, each)]
        yield from outside or find_model_faults(root, recipe, name, folder)
    elif not _comes_by_dvc(root, folder, made):
        yield place, _absent("model" if path.is_dir() else "folder", folder)


def _tell(place: str, require: Callable[..., None], *given: object) -> Iterator[tuple[str, str]]:
    """The fault that a requirement finds, if it does."""
    try:
        require(*given)
    except DataError as error:
        yield place, str(error)


def _find_split_faults(
    root: Path, recipe: Recipe, data: PathData, split: str, made: set[str]
) -> Iterator[tuple[str, str]]:
    """What is wrong with the files of a split, by their heads alone."""
    from tasks.kd.data.formats import Columns, Part, read_header, require_same_columns
    from tasks.kd.data.local_files import find_parts

    named, place = getattr(data, split), f"fetch_sources.data.{split}"
    columns = Columns(recipe.prepare_data.text_column, recipe.prepare_data.label_column)
    try:
        paths = find_parts(root, named, data.format.kind)
        parts = [Part(path, path.relative_to(root).as_posix()) for path in paths]
        if not parts:
            if not _comes_by_dvc(root, named, made):
                yield place, _absent("file", named)
            return
        header = read_header(parts[0], data.format, columns)
        require_same_columns(parts, data.format, columns)
    except DataError as error:
        yield place, str(error)
        return
    for column, field in zip(columns, ("text_column", "label_column"), strict=True):
        if column not in header.names:
            found = list_names(header.names)
            yield f"prepare_data.{field}", f"no column {column!r} in {parts[0].name}, found {found}"
        elif column in header.faults:
            yield f"prepare_data.{field}", header.faults[column]


def _absent(kind: str, named: str) -> str:
    if kind == "model":
        return f"not a model folder: {named}, which has no config.json"
    return f"no such {kind}, expected {named} or {named.rstrip('/')}.dvc, found neither"


def _comes_by_dvc(root: Path, named: str, made: set[str]) -> bool:
    """Whether the path, its parts or a folder that it lies in is DVC's, or made by a stage."""
    places = [Path(named), *list(Path(named).parents)[:-1]]
    return bool(tracked_parts(root / named)) or any(
        (root / place.with_name(f"{place.name}.dvc")).is_file() or place.as_posix() in made
        for place in places
    )


def _list_made(root: Path) -> set[str]:
    """The outs of stages that the user added to dvc.yaml; the recipes' own have other places."""
    from tasks.kd.recipe.document import read_yaml

    stages: Any = read_yaml(root / "dvc.yaml").get("stages") or {}
    outs = [out for stage in stages.values() for out in stage.get("outs", ())]
    return {out if isinstance(out, str) else next(iter(out)) for out in outs}
