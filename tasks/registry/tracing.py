"""Lineage: a version's origins and which of them can still be found; a model's status."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.kd.cache.format.manifest import MANIFEST, Manifest
from tasks.kd.cache.format.parsing import read_document
from tasks.kd.cache.store import store as caches
from tasks.kd.errors import CacheError, RegistryError
from tasks.registry.judging import read_record
from tasks.registry.produced import STAGES
from tasks.registry.store import Store
from tasks.registry.versions import (
    CANDIDATE,
    CHAMPION,
    PREVIOUS,
    Version,
    find_alias,
    find_model,
    list_versions,
)

_PROMOTION_TAGS = (
    "promoted_at",
    "promoted_reason",
    "promoted_override",
    "previous_version",
    "rolled_back_at",
    "rolled_back_reason",
    "restored_at",
    "restored_reason",
)


def trace(store: Store, version: Version) -> dict[str, Any]:
    """The chain from a version to its run, commit, DVC hashes, teacher, cache, recipe, decision.

    Each `found` says whether the part exists now, in this checkout and this MLflow. DVC is not
    asked.
    """
    tags = version.tags
    record = read_record(version)
    commit = tags.get("git.commit", "none")
    cache = tags.get("cache.fingerprint", "")
    return {
        **_summarise(version),
        "aliases": list(version.aliases),
        "recipe": tags.get("recipe"),
        "run": {"id": version.run_id, **_look_up_run(store, version.run_id)},
        "git": {
            "commit": commit,
            "dirty": tags.get("git.dirty") == "true",
            "found": _has_commit(store.root, commit),
        },
        "dvc": {stage: {"md5": tags.get(f"dvc.{stage}")} for stage in STAGES},
        "teacher": {"sha256": tags.get("teacher.sha256")},
        "student": {"sha256": tags.get("student.sha256")},
        "cache": {"fingerprint": cache, "found": _has_cache(store.root, cache)},
        "evaluation": {"fingerprint": tags.get("evaluation.fingerprint")},
        "content": {"sha256": tags.get("content.sha256")},
        "gate": record.as_json() if record else None,
        "promotion": {name: tags[name] for name in _PROMOTION_TAGS if name in tags},
        "prefect": {"flow_run_id": tags.get("prefect.flow_run_id")},
    }


def describe(store: Store, model: str) -> dict[str, Any]:
    """A model's three aliased versions, each of them or None, and its number of versions."""
    known = find_model(store, model) is not None
    count = len(list_versions(store, model)) if known else 0
    status: dict[str, Any] = {
        "model": model,
        "registry": store.shown_registry_uri,
        "versions": count,
    }
    for alias in (CHAMPION, PREVIOUS, CANDIDATE):
        version = find_alias(store, model, alias) if known else None
        status[alias] = None if version is None else _summarise(version)
    return status


def _summarise(version: Version) -> dict[str, Any]:
    made = datetime.fromtimestamp(version.created_ms / 1000, UTC)
    return {
        "model": version.model,
        "version": version.version,
        "uri": version.uri,
        "registered_at": made.isoformat(timespec="seconds"),
        "verdict": version.tags.get("gate.verdict"),
        "promoted_at": version.tags.get("promoted_at"),
        "reason": version.tags.get("promoted_reason"),
    }


def _look_up_run(store: Store, run_id: str) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {"found": False, "status": None}
    is_active = run.info.lifecycle_stage == "active"
    return {"found": is_active, "status": run.info.status, "experiment_id": run.info.experiment_id}


def _has_commit(root: Path, commit: str) -> bool:
    if commit == "none":
        return False
    command = ["git", "-C", str(root), "cat-file", "-e", f"{commit}^{{commit}}"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError as error:
        raise RegistryError("git can't be run", where="git", found=error.strerror) from error


def _has_cache(root: Path, fingerprint: str) -> bool:
    """Whether a whole cache is on this machine."""
    place, local = caches.store_place(os.environ, root)
    store = caches.Store(local if "://" in place else Path(place))
    try:
        manifest = read_document(store.entry(fingerprint) / MANIFEST)
    except CacheError:
        return False
    return isinstance(manifest, Manifest) and all(map(store.holds, manifest.entries))
