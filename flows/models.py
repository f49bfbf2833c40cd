"""Checks of the model folders that a recipe's `path` sources name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.kd.errors import DataError

if TYPE_CHECKING:
    from tasks.kd.recipe.recipe import Recipe


def find_model_faults(
    root: Path, recipe: Recipe, name: str, named: str
) -> Iterator[tuple[str, str]]:
    """Faults of a model folder's files, tokenizer and labels, each with the recipe's field.

    `name` is the source's name in the recipe, `named` the folder as the recipe spells it.
    """
    from tasks.kd.encoders.files.folder import check_model_folder
    from tasks.kd.tokens.files import find_tokenizer

    field = f"fetch_sources.{name}.folder"
    try:
        fields = check_model_folder(root / named)
        find_tokenizer(root / named)
    except DataError as error:
        yield field, str(error)
        return
    if recipe.train_teacher.mode == "given" and name != "student":
        yield from _find_label_faults(root / named, fields, recipe, name)


def _find_label_faults(
    folder: Path, fields: Mapping[str, Any], recipe: Recipe, name: str
) -> Iterator[tuple[str, str]]:
    from tasks.kd.encoders.files.label_names import read_label_names, rename_labels
    from tasks.kd.encoders.files.weights import classifier_rows, read_headers, require_head

    config, field = folder / "config.json", f"fetch_sources.{name}.folder"
    try:
        tensors = read_headers(folder)
        require_head(folder, tensors)
        names = read_label_names(fields, config, classifier_rows(tensors))
        if name == "teacher":
            field = "train_teacher.labels"
            rename_labels(names, recipe.train_teacher.labels, config)
    except DataError as error:
        yield field, str(error)
