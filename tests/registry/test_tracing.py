"""Lineage and status."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

from tasks.registry import (
    Registry,
    tracing,
)
from tests.kd.conftest import make_split
from tests.makers.caches import make_job, make_params, write
from tests.makers.documents import make_manifest
from tests.makers.registered import (
    Make,
    put_forward,
    run_gate,
)


def test_lineage_says_what_can_still_be_found(registry: Registry, make: Make) -> None:
    produced = make()
    run_gate(registry, produced)
    lineage = registry.lineage("models:/triage@champion")
    json.dumps(lineage, allow_nan=False)
    assert lineage["run"]["found"] is True
    assert lineage["git"] == {"commit": "1" * 40, "dirty": True, "found": False}
    assert lineage["cache"] == {"fingerprint": make_manifest().fingerprint, "found": False}
    assert lineage["gate"]["verdict"] == "promote"
    hashes = {stage: set(paths.values()) for stage, paths in produced.lineage.dvc.items()}
    assert {stage: {entry["md5"]} for stage, entry in lineage["dvc"].items()} == hashes


def test_a_cache_is_found_where_all_of_it_is(root: Path) -> None:
    manifest = write(make_job(make_split(6), make_params()), root / ".store")
    assert tracing._has_cache(root, manifest.fingerprint)
    assert not tracing._has_cache(root, "cafe" * 8)
    (root / ".store" / manifest.pieces["layer.2"].fingerprint / "manifest.json").unlink()
    assert not tracing._has_cache(root, manifest.fingerprint)


def test_lineage_finds_the_commit_it_was_made_from(
    registry: Registry, make: Make, root: Path
) -> None:
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    produced = make()
    lineage = dataclasses.replace(produced.lineage, git_commit=head.stdout.strip())
    put_forward(registry, dataclasses.replace(produced, lineage=lineage))
    assert registry.lineage("models:/triage/1")["git"]["found"] is True


def test_the_status_of_a_model_that_is_not_there_is_empty(registry: Registry) -> None:
    status = registry.status("nobody")
    assert status["versions"] == 0
    assert status["champion"] is status["previous"] is status["candidate"] is None
