"""`stillhouse lineage`: a version's origins, and which of them can still be found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lineage(root: Path, uri: str) -> dict[str, Any]:
    """The registry's account of a version, and whether each stage's outs are still here.

    `found` says that the workspace or DVC's cache holds all their files, `current` that dvc.lock
    names them.
    """
    from tasks.registry import open_registry
    from tasks.versioning.asking import find_outs, out_hashes

    lineage = open_registry(root).lineage(uri)
    recipe, stages = lineage["recipe"] or "", lineage["dvc"]
    made = {stage: _list_md5s(entry["md5"]) for stage, entry in stages.items()}
    here = find_outs(root, recipe, set().union(*made.values()))
    now = out_hashes(root, recipe)
    for stage, entry in stages.items():
        entry["found"] = bool(made[stage]) and made[stage] <= here
        entry["current"] = bool(made[stage]) and made[stage] == set(now.get(stage, {}).values())
    return lineage


def _list_md5s(tag: str | None) -> set[str]:
    """The hashes in a version's tag, which holds one hash or a JSON object of hashes by path."""
    if tag is None:
        return set()
    return set(json.loads(tag).values()) if tag.startswith("{") else {tag}
