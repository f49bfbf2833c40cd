"""A training's state on disk: safetensors and JSON, whole or absent, verified when read.

The last two whole checkpoints are kept. If the machine damages the newest, little time is lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tasks.kd.digests import read_json, replace_folder, sha256_file, write_json

_PREFIX = "checkpoint-"
_KEPT = 2
_TENSORS = ("best", "average")

Tensors = dict[str, torch.Tensor]


@dataclass
class State:
    """Where a training is. All randomness is a function of the seed and the step.

    `best` and `average` are the student's weights: the best so far, and their moving average.
    `micro_batch_tokens` is smaller than the recipe's where memory did not suffice. `factors` are
    those by which a phase that balances its levels multiplies their weights; none are empty.
    """

    step: int = 0
    phase: int = 0
    step_in_phase: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    epochs_without_gain: int = 0
    refused: int = 0
    refused_in_a_row: int = 0
    micro_batch_tokens: int = 0
    loss_scale: float = 1.0
    steps_at_scale: int = 0
    factors: dict[str, float] = field(default_factory=dict)
    best: Tensors = field(default_factory=dict, repr=False)
    average: Tensors = field(default_factory=dict, repr=False)

    @property
    def figures(self) -> dict[str, Any]:
        """Every field but the tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TENSORS}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the state, the objective's weights, the optimizer's tensors."""

    state: State
    weights: Tensors
    optimizer: Tensors

    def flatten(self) -> tuple[dict[str, Any], Tensors]:
        """Its figures, and all its tensors by name."""
        groups = {
            "weights": self.weights,
            "optimizer": self.optimizer,
            "best": self.state.best,
            "average": self.state.average,
        }
        tensors = {
            f"{group}/{name}": value
            for group, named in groups.items()
            for name, value in named.items()
        }
        return self.state.figures, tensors


def unflatten(figures: Mapping[str, Any], tensors: Tensors) -> Checkpoint:
    """A checkpoint from what `Checkpoint.flatten` gave."""
    groups: dict[str, Tensors] = {"weights": {}, "optimizer": {}, "best": {}, "average": {}}
    for path, value in tensors.items():
        group, name = path.split("/", 1)
        groups[group][name] = value
    state = State(**figures, best=groups["best"], average=groups["average"])
    return Checkpoint(state, groups["weights"], groups["optimizer"])


class Checkpoints:
    """The checkpoints of a training, in its folder."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._whole: set[Path] = set()  # verified or written by this process

    def save(
        self, state: State, objective: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write a checkpoint, then drop those before the last two whole ones."""
        draft = self._work / ".checkpoint"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(_contiguous(objective.state_dict()), draft / "objective.safetensors")
        save_file(_contiguous(_flatten(optimizer)), draft / "optimizer.safetensors")
        for name in _TENSORS:
            save_file(_contiguous(getattr(state, name)), draft / f"{name}.safetensors")
        files = {path.name: sha256_file(path) for path in sorted(draft.iterdir())}
        write_json(draft / "state.json", {**state.figures, "files": files})
        folder = self._work / f"{_PREFIX}{state.step:08d}"
        replace_folder(draft, folder)
        self._whole.add(folder)
        self._drop()

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint; None if there is none.

        A checkpoint whose files are not those that it lists (after a power cut) is passed over.
        """
        folder = next((folder for folder in self._newest_first() if self._is_whole(folder)), None)
        if folder is None:
            return None
        figures = read_json(folder / "state.json")
        figures.pop("files")
        best, average, weights, optimizer = (
            load_file(folder / f"{name}.safetensors")
            for name in (*_TENSORS, "objective", "optimizer")
        )
        return Checkpoint(State(**figures, best=best, average=average), weights, optimizer)

    def _drop(self) -> None:
        """Remove checkpoints older than the last two whole ones."""
        kept = 0
        for folder in self._newest_first():
            if kept == _KEPT:
                shutil.rmtree(folder)
                self._whole.discard(folder)
            else:
                kept += self._is_whole(folder)

    def _newest_first(self) -> list[Path]:
        return sorted(self._work.glob(f"{_PREFIX}*"), reverse=True)

    def _is_whole(self, folder: Path) -> bool:
        """Whether its files are those that it lists. Each checkpoint is read at most once."""
        if folder not in self._whole and _is_as_it_says(folder):
            self._whole.add(folder)
        return folder in self._whole


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put a checkpoint's tensors back into a new optimizer over the same weights."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        optimizer.state[parameter][key] = value.to(parameter.device)


def _flatten(optimizer: torch.optim.Optimizer) -> Tensors:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{index}.{key}": value
        for index, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _contiguous(tensors: Tensors) -> Tensors:
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _is_as_it_says(folder: Path) -> bool:
    try:
        files = read_json(folder / "state.json")["files"]
        return all(sha256_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False
