"""Whether the models that a recipe's `path` sources name are what their files say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.kd.errors import DataError

if TYPE_CHECKING:
    from tasks.kd.recipe import Recipe


def find_model_faults(
    root: Path, recipe: Recipe, name: str, named: str
) -> Iterator[tuple[str, str]]:
    """Each fault of a model's folder, with the field that it is of: its files, a teacher's labels.

    `name` is that of its source in the recipe, `named` the folder as the recipe has it.
    """
    from tasks.kd.label_names import read_label_names, rename_labels
    from tasks.kd.model_folder import check_model_folder, classifier_rows, read_headers

    folder, teacher = root / named, recipe.train_teacher
    field = f"fetch_sources.{name}.folder"
    try:
        fields = check_model_folder(folder)
        if teacher.mode == "fine_tune" or name == "student":
            return
        config = folder / "config.json"
        names = read_label_names(fields, config, classifier_rows(read_headers(folder)))
        if name == "teacher":
            field = "train_teacher.labels"
            rename_labels(names, teacher.labels, config)
    except DataError as error:
        yield field, str(error)
