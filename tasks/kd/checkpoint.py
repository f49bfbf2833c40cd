"""A training's state on disk: safetensors and JSON, whole or not there, verified when read."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tasks.kd.digests import read_json, replace_folder, sha256_file, write_json

_PREFIX = "checkpoint-"


@dataclass
class State:
    """Where a training is. All randomness is a function of the seed and the step."""

    step: int = 0
    phase: int = 0
    step_in_phase: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)


def save(
    work: Path, state: State, objective: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint, then drop the ones before it."""
    draft = work / ".checkpoint"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(_contiguous(objective.state_dict()), draft / "objective.safetensors")
    save_file(_contiguous(_flatten(optimizer)), draft / "optimizer.safetensors")
    save_file(_contiguous(state.best), draft / "best.safetensors")
    figures = {f.name: getattr(state, f.name) for f in fields(state) if f.name != "best"}
    files = {path.name: sha256_file(path) for path in sorted(draft.iterdir())}
    write_json(draft / "state.json", {**figures, "files": files})
    kept = work / f"{_PREFIX}{state.step:08d}"
    replace_folder(draft, kept)
    for folder in work.glob(f"{_PREFIX}*"):
        if folder != kept:
            shutil.rmtree(folder)


def load(work: Path, objective: torch.nn.Module) -> tuple[State, dict[str, torch.Tensor]]:
    """The newest whole checkpoint: its state and the optimizer's tensors; a new State if none.

    A checkpoint whose files are not as it says (a machine that went down) is passed over.
    """
    for folder in sorted(work.glob(f"{_PREFIX}*"), reverse=True):
        if not _is_whole(folder):
            continue
        figures = read_json(folder / "state.json")
        figures.pop("files")
        objective.load_state_dict(load_file(folder / "objective.safetensors"))
        best = load_file(folder / "best.safetensors")
        return State(**figures, best=best), load_file(folder / "optimizer.safetensors")
    return State(), {}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put a checkpoint's tensors back into a new optimizer over the same weights."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        optimizer.state[parameter][key] = value.to(parameter.device)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{index}.{key}": value
        for index, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _is_whole(folder: Path) -> bool:
    try:
        files = read_json(folder / "state.json")["files"]
        return all(sha256_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False
