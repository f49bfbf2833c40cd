"""`stillhouse status`: every recipe with its stages, every model with its champion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.kd.errors import KDError

if TYPE_CHECKING:
    from tasks.registry.store import Store


def read_status(root: Path) -> dict[str, Any]:
    """`recipes`, each with its stages, reasons and model's versions, or its fault.

    `registry_fault` says why models are unknown if MLflow can't be asked.
    """
    from tasks.kd.recipe.files import list_recipes
    from tasks.registry import open_registry

    registry, fault = open_registry(root), None
    recipes = [_read_recipe(root, name) for name in list_recipes(root)]
    named = [recipe for recipe in recipes if recipe["model"] is not None]
    try:
        # Asking a missing MLflow of our own would make it, which takes seconds.
        for recipe in named if _exists(registry.store) else []:
            versions = registry.status(recipe["model"])
            recipe.update({alias: versions[alias] for alias in ("champion", "candidate")})
    except KDError as error:
        fault = str(error)
    return {
        "recipes": recipes,
        "registry": registry.store.shown_registry_uri,
        "registry_fault": fault,
    }


def _exists(store: Store) -> bool:
    return not store.local or store.divided or (store.folder / "mlflow.db").exists()


def _read_recipe(root: Path, name: str) -> dict[str, Any]:
    from flows.job import read_job
    from tasks.versioning.asking import plan

    entry: dict[str, Any] = {"recipe": name, "description": "", "fault": None, "stages": []}
    entry |= {"model": None, "champion": None, "candidate": None}
    try:
        job = read_job(name, root)
        entry["description"] = job.recipe.description
        entry["model"] = job.recipe.register_.model
        entry["stages"] = [
            {"stage": stage.name, "reasons": list(stage.reasons)} for stage in plan(root, name)
        ]
    except KDError as error:
        entry["fault"] = str(error)
    return entry
