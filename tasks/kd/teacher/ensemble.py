"""Several tuned classifiers as one teacher: their logits together, the layers of one of them.

An ensemble is a model like any other to whatever asks a teacher for streams. Its logits are
combined as it runs, so that a cache holds them combined, and no level knows of its members.

B examples, C classes, M members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from tasks.kd.digests import read_json, sha256_json, write_json
from tasks.kd.encoders.loading import load_classifier, model_sha256
from tasks.kd.recipe.teachers import MAIN, EnsembleRule, WeightedLogits

_FILE = "ensemble.json"


@dataclass(frozen=True)
class Output:
    """The part of a classifier's output that a teacher is asked for."""

    logits: torch.Tensor


class Ensemble(torch.nn.Module):
    """Classifiers of one vocabulary and one list of labels; hidden states are the named one's."""

    def __init__(self, members: Mapping[str, torch.nn.Module], rule: EnsembleRule) -> None:
        super().__init__()
        self.members = torch.nn.ModuleDict(dict(members))
        self.rule = rule

    @property
    def named(self) -> torch.nn.Module:
        """The member whose layers are matched."""
        return self.members[self.rule.layers]

    @property
    def config(self) -> Any:
        """The named member's configuration."""
        return self.named.config

    @property
    def base_model(self) -> torch.nn.Module:
        """The named member's encoder."""
        base = self.named.base_model
        assert isinstance(base, torch.nn.Module)
        return base

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Output:
        """The combined logits of all members on the same texts."""
        logits_MBC = torch.stack(
            [
                member(input_ids=input_ids, attention_mask=attention_mask).logits
                for member in self.members.values()
            ]
        )
        return Output(combine(logits_MBC, list(self.members), self.rule))


def combine(logits_MBC: torch.Tensor, names: list[str], rule: EnsembleRule) -> torch.Tensor:
    """[B, C]: the members' logits, each by its share.

    `mean`: equal shares. `weighted`: those of the recipe, divided by their sum. `confidence`: for
    each example, a member's highest probability among its classes, divided by the sum of all
    members', so that one which knows nothing of a text has little to say of it.
    """
    if rule.logits == "mean":
        return logits_MBC.mean(0)
    if isinstance(rule, WeightedLogits):
        shares_M = torch.tensor([rule.weights[name] for name in names], device=logits_MBC.device)
        return torch.einsum("m,mbc->bc", shares_M / shares_M.sum(), logits_MBC)
    highest_MB = logits_MBC.softmax(-1).max(-1).values
    return torch.einsum("mb,mbc->bc", highest_MB / highest_MB.sum(0), logits_MBC)


def classifiers_of(teacher: torch.nn.Module) -> list[torch.nn.Module]:
    """All members of an ensemble, or the one classifier."""
    return list(teacher.members.values()) if isinstance(teacher, Ensemble) else [teacher]


def named_member(teacher: torch.nn.Module) -> torch.nn.Module:
    """The classifier whose layers are matched: an ensemble's named member, or the model itself."""
    return teacher.named if isinstance(teacher, Ensemble) else teacher


def load_teacher(folder: Path) -> torch.nn.Module:
    """What the stage `train_teacher` left: a classifier, or an ensemble of several; in eval mode.

    Raises DataError as `load_classifier`.
    """
    main = load_classifier(folder / "model")
    rule = _rule_of(folder)
    if rule is None:
        return main
    others = {path.name: load_classifier(path) for path in _members_of(folder)}
    return Ensemble({MAIN: main, **others}, rule).eval()


def save_rule(folder: Path, rule: EnsembleRule) -> None:
    """Write how the members of a teacher's folder are combined."""
    write_json(folder / _FILE, rule.model_dump(mode="json"))


def teacher_sha256(folder: Path) -> str:
    """Digest of all that decides what a teacher's folder answers: every member, and the rule."""
    main = model_sha256(folder / "model")
    rule = _rule_of(folder)
    if rule is None:
        return main
    others = {path.name: model_sha256(path) for path in _members_of(folder)}
    return sha256_json([main, others, rule.model_dump(mode="json")])


def _members_of(folder: Path) -> list[Path]:
    return sorted((folder / "members").iterdir())


def _rule_of(folder: Path) -> EnsembleRule | None:
    if not (folder / _FILE).exists():
        return None
    return parse_rule(read_json(folder / _FILE))


def parse_rule(fields: Any) -> EnsembleRule:
    """A rule from what `save_rule` wrote."""
    rule: EnsembleRule = TypeAdapter(EnsembleRule).validate_python(fields)
    return rule
