"""Outcomes in the repository: one compressed file per data set, so that no checkout starts anew.

It holds what runs and teachers came to, as JSON values by their path under the study's folder, and
no weights: those are made again where a run is still to be done.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from study.settings import HERE
from tasks.kd.digests import canonical_json, write_bytes, write_json

RESULTS = HERE / "results"


def kept_file(data: str, results: Path = RESULTS) -> Path:
    """Where the outcomes of a data set are kept."""
    return results / f"{data}.outcomes.gz"


def keep(paths: Iterable[Path], folder: Path, out: Path) -> None:
    """Write the JSON files of a folder into one; the same files give the same bytes."""
    found = {str(path.relative_to(folder)): json.loads(path.read_bytes()) for path in paths}
    write_bytes(out, gzip.compress(canonical_json(found).encode(), mtime=0))


def restore(kept: Path, folder: Path) -> int:
    """Write into a folder those files that it lacks; how many that were."""
    if not kept.exists():
        return 0
    outcomes = json.loads(gzip.decompress(kept.read_bytes()))
    lacking = {folder / name: value for name, value in outcomes.items()}
    lacking = {path: value for path, value in lacking.items() if not path.exists()}
    for path, value in lacking.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    return len(lacking)
