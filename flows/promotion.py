"""The champion moved by hand: through the gate, past it, or back."""

from __future__ import annotations

from pathlib import Path

from flows.job import describe, read_job
from tasks.kd.errors import ParamsError, RegistryError
from tasks.kd.gate.decision import Decision
from tasks.registry import Version, open_registry


def override(root: Path, uri: str, reason: str) -> Version:
    """Make a version champion on a person's word, whatever the gate says, and keep the reason."""
    registry = open_registry(root)
    return registry.promote(registry.resolve(uri), None, reason, override=True)


def promote(root: Path, uri: str, reason: str) -> tuple[Version, Decision]:
    """Put a version through its recipe's present gate, and promote it if it passes.

    Raises RegistryError for a version that can't be judged from the artifacts here.
    """
    registry = open_registry(root)
    version = registry.resolve(uri)
    recipe = version.tags.get("recipe")
    if recipe is None:
        raise RegistryError("the version names no recipe, so it has no gate", where=version.uri)
    decision = registry.gate(describe(read_job(recipe, root)), version)
    if decision.verdict == "promote":
        version = registry.promote(version, decision, reason)
    return version, decision


def roll_back(root: Path, model: str, reason: str) -> Version:
    """Make the previous champion of a model, given by name or URI, champion again."""
    uri = model if model.startswith("models:/") else f"models:/{model}@champion"
    if not uri.endswith("@champion"):
        raise ParamsError(
            "only the champion can be rolled back", where=model, expected="models:/<name>@champion"
        )
    registry = open_registry(root)
    return registry.rollback(registry.resolve(uri).model, reason)
