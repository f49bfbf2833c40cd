"""Arms: what is taught, and when. The student, its rate and the number of steps are the study's.

An arm is a file of `arms/` or a preset of `params/presets/`: both hold `phases` in the schema of a
recipe's `train_student`, the latter among settings that the study has its own of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from ruamel.yaml import YAML

from study.settings import HERE, ROOT
from tasks.kd.recipe.fields import NotNegative, Positive, Section
from tasks.kd.recipe.losses import loss_of
from tasks.kd.recipe.phases import Phase

ARMS = HERE / "arms"
PRESETS = ROOT / "params" / "presets"
BASELINE = "prediction_only"


class DoesNotFitError(Exception):
    """An arm asks for more epochs than its student has."""


class Transfer(Section):
    """The first so many phases read other texts, and so no labels."""

    phases: Positive
    corpora: tuple[str, ...] = Field(min_length=1)
    own: bool  # whether the data set's own texts are among them


class Arm(Section):
    """Phases, and what they are of."""

    name: str
    description: str
    phases: tuple[Phase, ...] = Field(min_length=1)
    transfer: Transfer | None
    random_texts: NotNegative  # as in `prepare_data`


def names() -> list[str]:
    """All arms that there are, the baselines first."""
    found = {path.stem for folder in (ARMS, PRESETS) for path in folder.glob("*.yaml")}
    first = [name for name in ("labels_only", BASELINE) if name in found]
    return first + sorted(found - set(first))


def read_arm(name: str) -> Arm:
    """The arm of that name; a file of the study's own goes before a preset."""
    for folder in (ARMS, PRESETS):
        path = folder / f"{name}.yaml"
        if path.exists():
            values: Any = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
            section = values.get("train_student", values)
            arm = {
                "name": name,
                "description": str(values.get("description", name)),
                "phases": section["phases"],
                "transfer": values.get("transfer"),
                "random_texts": values.get("prepare_data", {}).get("random_texts", 0),
            }
            return _checked(Arm.model_validate_json(json.dumps(arm)))
    raise SystemExit(f"no arm or preset {name}; there are {', '.join(names())}")


def fitted(arm: Arm, epochs: int, learning_rate: float) -> tuple[Phase, ...]:
    """The arm's phases over that many epochs in all, shares kept; the highest rate becomes that.

    An epoch is here as many steps as a pass over the labelled texts. Every phase keeps one. Raises
    DoesNotFitError where there are fewer, or no room for random texts beside the labelled ones.
    """
    phases = arm.phases
    if len(phases) > epochs:
        raise DoesNotFitError(f"{len(phases)} phases do not fit into {epochs} epochs")
    shares = apportioned([phase.passes(arm.random_texts) for phase in phases], epochs)
    pairs = zip(phases, shares, strict=True)
    if arm.random_texts and any(x.reads_unlabelled and share < 2 for x, share in pairs):
        raise DoesNotFitError(f"{epochs} epochs leave no room for random texts")
    highest = max(phase.learning_rate for phase in phases)
    return tuple(
        phase.model_copy(
            update={
                "epochs": share,
                "learning_rate": learning_rate * (phase.learning_rate / highest),
            }
        )
        for phase, share in zip(phases, shares, strict=True)
    )


def apportioned(weights: Sequence[int], total: int) -> list[int]:
    """Integers of that sum, in the weights' shares by largest remainder, none below 1.

    Of equal remainders the later one is rounded up."""
    exact = [weight * total / sum(weights) for weight in weights]
    found = [max(1, int(share)) for share in exact]
    while sum(found) < total:
        place = max(range(len(found)), key=lambda i: (exact[i] - found[i], i))
        found[place] += 1
    while sum(found) > total:
        able = [i for i in range(len(found)) if found[i] > 1]
        place = max(able, key=lambda i: (found[i] - exact[i], i))
        found[place] -= 1
    return found


def reads_labels(phase: Phase) -> bool:
    """Whether a phase can't be had without labels."""
    return any(loss_of(level).takes_labels for level in phase.levels)


def _checked(arm: Arm) -> Arm:
    """Raise SystemExit for labels where there are none, and for nothing left afterwards."""
    if arm.transfer is not None:
        if arm.transfer.phases >= len(arm.phases):
            raise SystemExit(f"{arm.name}: no phase is left for the data set's own texts")
        if any(map(reads_labels, arm.phases[: arm.transfer.phases])):
            raise SystemExit(f"{arm.name}: a phase on transfer text reads labels")
    unlabelled = sum(phase.reads_unlabelled for phase in arm.phases)
    if arm.random_texts and (arm.transfer is not None or unlabelled != 1):
        raise SystemExit(f"{arm.name}: random texts are for one phase, without transfer")
    return arm
