"""One level between layers: which states meet, through which projection, in which loss.

B examples, T tokens, D width, H heads, S student layers, L teacher layers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tasks.kd.encoders.families import QKV, Captured, scores
from tasks.kd.levels import losses
from tasks.kd.levels.losses import attention, geometry, hidden, relation
from tasks.kd.levels.losses.numerics import pool
from tasks.kd.levels.plans import mixture, shares
from tasks.kd.recipe.levels import (
    AttentionLevel,
    ContrastiveLevel,
    GramLevel,
    HiddenLevel,
    LayerLevel,
    Level,
    Matching,
    ProjectedLevel,
    RelationLevel,
)
from tasks.kd.recipe.maps import Pairs
from tasks.kd.recipe.schedules import value_at
from tasks.kd.totals import Total

_NOT_THE_LOSS_S = (
    *("level", "loss", "weight", "layer_map", "standardise", "projection", "negatives"),
    *("relations", "relation_heads", "temperature"),
)
_ATTENTION = {"mse": attention.scores_mse, "kl": attention.attention_kl}
# Where a relation stands in the stream `relation.<l>` [B, T, 3, D].
_RELATIONS = {"queries": 0, "keys": 1, "values": 2}
# The cosine from which on a negative is the example itself, or a copy of its text.
_ITSELF = 1 - 1e-4


@dataclass(frozen=True)
class Seen:
    """A micro-batch as both models saw it, a share `done` into the phase, in that epoch."""

    student: torch.nn.Module
    captured: Captured
    targets: Mapping[str, torch.Tensor]
    mask_BT: torch.Tensor
    epoch: int
    done: float


@dataclass(frozen=True)
class Comparison:
    """A level with its layers; `projections` by name, `constants` gives a tensor by name."""

    level: LayerLevel
    matching: Matching
    projections: torch.nn.ModuleDict
    constants: Callable[[str], torch.Tensor]
    seed: int

    def total(self, seen: Seen) -> Total:
        """Over all that the level compares."""
        if self.matching.layer_map in ("transport", "nearest"):
            return self._planned(seen)
        if self.matching.layer_map == "mixture":
            every_BTLD = torch.stack([self._theirs(seen, x) for x in self.matching.theirs], dim=2)
            states = (self._own(seen, own) for own in self.matching.own)
            return _merged(
                self._lose(seen, own_BTD, mixture(own_BTD, every_BTLD), {}) for own_BTD in states
            )
        pairs = self.matching.pairs(seed=self.seed, epoch=seen.epoch)
        if isinstance(self.level, GramLevel):
            return self._gram(seen, pairs)
        return _merged(self._pair(seen, own, theirs) for own, theirs in pairs)

    def _planned(self, seen: Seen) -> Total:
        """All pairs of layers, each example by its own plan."""
        sides = [self._side(seen, own) for own in self.matching.own]
        totals = [
            [self._against(seen, side, theirs, each=True) for theirs in self.matching.theirs]
            for side in sides
        ]
        costs_BSL = torch.stack([torch.stack([x.sum for x in row], -1) for row in totals], 1)
        layer_map = self.matching.layer_map
        assert layer_map is not None
        total = (shares(layer_map, costs_BSL) * costs_BSL).sum()
        return Total(total, totals[0][0].count * self.matching.parts)

    def _gram(self, seen: Seen, pairs: Pairs) -> Total:
        """Between each pair of layers and the next one."""
        states = [(self._own(seen, *pair), self._theirs(seen, pair[1])) for pair in pairs]
        return _merged(
            geometry.gram((own, own_next), (theirs, theirs_next), seen.mask_BT)
            for (own, theirs), (own_next, theirs_next) in itertools.pairwise(states)
        )

    def _pair(self, seen: Seen, own: int, theirs: int) -> Total:
        """One student layer against one teacher layer."""
        return self._against(seen, self._side(seen, own, theirs), theirs)

    def _side(self, seen: Seen, own: int, theirs: int = 0) -> Any:
        """What of a student layer is compared: a state, scores, or queries, keys and values."""
        if self.level.level == "hidden":
            return self._own(seen, own, theirs)
        qkv = _float(seen.captured.qkv[own])
        if isinstance(self.level, RelationLevel):
            return qkv
        return scores(seen.student, own, qkv, seen.mask_BT)

    def _against(self, seen: Seen, side: Any, theirs: int, *, each: bool = False) -> Total:
        """A student's side against a teacher layer; with `each`, every example's own sum."""
        options: dict[str, Any] = {"each": True} if each else {}
        target = self._theirs(seen, theirs)
        if isinstance(self.level, RelationLevel):
            return _relate(self.level, side, target, seen.mask_BT)
        if isinstance(self.level, ContrastiveLevel):
            return self._contrast(seen, side, target, self.constants(f"bank_{theirs}"))
        if isinstance(self.level, HiddenLevel) and self.level.standardise:
            options["deviation_D"] = self.constants(f"deviation_{theirs}")
        return self._lose(seen, side, target, options)

    def _contrast(
        self, seen: Seen, student_BTD: torch.Tensor, target_BTD: torch.Tensor, bank: torch.Tensor
    ) -> Total:
        assert isinstance(self.level, ContrastiveLevel)
        own_BD, theirs_BD = (pool(states, seen.mask_BT) for states in (student_BTD, target_BTD))
        negatives_ND = bank[: self.level.negatives]
        cosines_BN = torch.nn.functional.cosine_similarity(
            theirs_BD[:, None], negatives_ND[None], dim=-1
        )
        return hidden.contrastive(
            own_BD,
            theirs_BD,
            negatives_ND,
            temperature=value_at(self.level.temperature, seen.done),
            excluded_BN=cosines_BN > _ITSELF,
        )

    def _lose(
        self, seen: Seen, own: torch.Tensor, theirs: torch.Tensor, options: dict[str, Any]
    ) -> Total:
        loss = losses.FUNCTIONS[loss_name(self.level)]
        total: Total = loss(own, theirs, seen.mask_BT, **options_of(self.level), **options)
        return total

    def _own(self, seen: Seen, own: int, theirs: int = 0) -> torch.Tensor:
        """A student layer's state, projected if the level has it so."""
        student_BTD = seen.captured.hidden[own].float()
        if isinstance(self.level, ProjectedLevel) and self.level.projection != "none":
            name = projection_name(self.level, self.matching, own, theirs)
            student_BTD = self.projections[name](student_BTD)
        return student_BTD

    def _theirs(self, seen: Seen, theirs: int) -> torch.Tensor:
        return seen.targets[f"{self.level.level}.{theirs}"]


def projection_name(level: ProjectedLevel, matching: Matching, own: int, theirs: int) -> str:
    """Which projection a pair of layers goes through; levels of one kind have theirs in common."""
    if level.projection == "shared":
        return "shared"
    pair = f"{own}_{theirs}" if matching.layer_map is None else f"{own}"
    return pair if level.projection == "linear" else f"orthogonal_{pair}"


def loss_name(level: Level) -> str:
    """The name of its loss in `losses`."""
    if isinstance(level, RelationLevel):
        return "relation_kl"
    if isinstance(level, AttentionLevel):
        return _ATTENTION[level.loss].__name__
    return level.loss


def options_of(level: Level) -> dict[str, Any]:
    """The settings of a level that its loss takes by the same name."""
    return {name: value for name, value in level if name not in _NOT_THE_LOSS_S}


def _merged(totals: Iterable[Total]) -> Total:
    return functools.reduce(Total.merge, totals)


def _relate(level: RelationLevel, qkv: QKV, target: torch.Tensor, mask_BT: torch.Tensor) -> Total:
    return _merged(
        relation.relation_kl(
            getattr(qkv, f"{name}_BTD"),
            target[:, :, _RELATIONS[name]],
            mask_BT,
            heads=level.relation_heads,
        )
        for name in level.relations
    )


def _float(qkv: QKV) -> QKV:
    return QKV(qkv.queries_BTD.float(), qkv.keys_BTD.float(), qkv.values_BTD.float())
