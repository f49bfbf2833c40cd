"""Why DVC would run a stage, in plain words.

Works on DVC's own stage objects, and imports nothing of it. DVC answers `modified`; these answer
which field of the recipe changed, from what to what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = {
    "deleted": "missing",
    "modified": "changed",
    "new": "is new",
    "update available": "has an update",
    "not in cache": "is not in DVC's cache",
}


def stem_of(stage: Any) -> str:
    """`train_student` of `train_student@quickstart`."""
    return str(stage.name).partition("@")[0]


def explain(stage: Any, runs: Sequence[Any], missing: Mapping[str, bool]) -> list[str]:
    """Reasons in plain words; none if the stage is up to date.

    `runs` are the upstream stages that run, which name what they will make anew; `missing` is what
    `find_missing` found.
    """
    reasons = [
        f"{path} is tracked by DVC and not here: run dvc pull"
        if tracked
        else f"dependency {path} missing"
        for path, tracked in missing.items()
    ]
    if any(out.hash_info for out in stage.outs):
        pending = {out.fs_path for source in runs for out in source.outs}
        reasons += ["command changed"] if stage.cmd_changed else []
        reasons += ["set to run always"] if stage.always_changed else []
        for dep in _once(stage.deps):
            if dep.fs_path not in pending and _name(dep) not in missing:
                reasons += _explain_dep(dep)
        reasons += [reason for out in stage.outs for reason in _explain_out(out)]
    else:
        reasons.append("never run: dvc.lock has no record of it")
    return reasons + [f"upstream {stem_of(source)} runs" for source in runs]


def _explain_dep(dep: Any) -> list[str]:
    status = next(iter(dep.status().values()), None)
    if isinstance(status, dict):
        old, new = dep.hash_info.value, dep.read_params()
        return [f"{_name(dep)}: {change}" for change in compare(old, new)]
    if status is None:
        return []
    new_here = status == "modified" and not dep.hash_info
    return [f"dependency {_name(dep)} {'is new' if new_here else WORDS.get(status, status)}"]


def _explain_out(out: Any) -> list[str]:
    status = next(iter(out.status().values()), None)
    if status is None:
        return []
    if not out.exists:
        status = "deleted"
    return [f"output {_name(out)} {WORDS.get(status, status)}"]


def compare(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two parameter trees differ: `section.field changed from 1 to 2`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys: list[Any] = [*new, *(key for key in old if key not in new)]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        keys = list(range(len(new)))
    else:
        plain = not isinstance(old, (dict, list)) and not isinstance(new, (dict, list))
        change = f" from {_show(old)} to {_show(new)}" if plain else ""
        return [] if old == new else [f"{name} changed{change}"]
    changes: list[str] = []
    for key in keys:
        field = f"{name}.{key}".lstrip(".")
        if isinstance(new, dict) and key not in old:
            changes.append(f"{field} added")
        elif isinstance(new, dict) and key not in new:
            changes.append(f"{field} removed")
        else:
            changes += compare(old[key], new[key], field)
    return changes


def find_missing(stage: Any, graph: Any, own: Sequence[Any]) -> dict[str, bool]:
    """What the stage reads, no stage of its recipe makes and this copy lacks.

    Each path with whether DVC tracks it.
    """
    outs = [(source, out) for source in graph.successors(stage) for out in source.outs]
    missing: dict[str, bool] = {}
    for dep in _once(stage.deps):
        makers = [s for s, out in outs if dep.fs.isin_or_eq(dep.fs_path, out.fs_path)]
        if not dep.exists and not any(source in own for source in makers):
            missing[_name(dep)] = any(not source.cmd for source in makers)
    return missing


def _show(value: Any) -> str:
    return json.dumps(value, default=str)


def _once(deps: Sequence[Any]) -> list[Any]:
    """A path may stand twice (train and test in one folder)."""
    return list({(type(dep), dep.fs_path): dep for dep in deps}.values())


def _name(output: Any) -> str:
    return str(Path(output.fs_path).relative_to(output.repo.root_dir))
