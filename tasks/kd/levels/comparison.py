"""One level between layers: which states meet, through which projection, in which loss.

B examples, T tokens, D width, N negatives, S student layers, L teacher layers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tasks.kd.encoders.running import QKV, scores
from tasks.kd.levels.losses import FUNCTIONS
from tasks.kd.levels.losses.numerics import pool
from tasks.kd.levels.plans import mixture, shares
from tasks.kd.levels.projections import projection_name, projection_of
from tasks.kd.levels.seen import Seen, options_at
from tasks.kd.recipe.levels import LayerLevel
from tasks.kd.recipe.losses import Counts, Loss, constants_of, loss_of
from tasks.kd.recipe.maps import Pairs
from tasks.kd.recipe.matching import Matching
from tasks.kd.totals import Total

# Where a relation stands in the stream `relation.<l>` [B, T, 3, D].
_RELATIONS = {"queries": 0, "keys": 1, "values": 2}
# The cosine from which on a negative is the example itself, or a copy of its text.
_ITSELF = 1 - 1e-4


@dataclass(frozen=True)
class Comparison:
    """A level with its layers; `projections` by name, `constants` gives a tensor by name."""

    level: LayerLevel
    matching: Matching
    projections: torch.nn.ModuleDict
    constants: Callable[[str], torch.Tensor]
    seed: int

    @property
    def loss(self) -> Loss:
        """The row of its loss."""
        return loss_of(self.level)

    def count(self, sizes: Mapping[Counts, int]) -> int:
        """What its sum is over, in a batch of those sizes."""
        # Of n matched layers, n - 1 have a next one.
        times = self.matching.parts - self.loss.next_layer
        if self.loss.repeated:
            times *= len(getattr(self.level, self.loss.repeated))
        return sizes[self.loss.counts] * times

    def total(self, seen: Seen) -> Total:
        """The level's loss on a micro-batch, over all that it compares."""
        if self.matching.layer_map in ("transport", "nearest"):
            return self._planned(seen)
        if self.matching.layer_map == "mixture":
            return self._mixed(seen)
        pairs = self.matching.pairs(seed=self.seed, epoch=seen.epoch)
        if self.loss.next_layer:
            return self._onward(seen, pairs)
        return _merged(
            self._against(seen, self._side(seen, own, theirs), theirs) for own, theirs in pairs
        )

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

    def _mixed(self, seen: Seen) -> Total:
        """Each student layer against all teacher layers, by their likeness."""
        every_BTLD = torch.stack([self._theirs(seen, x) for x in self.matching.theirs], dim=2)
        states = (self._own(seen, own) for own in self.matching.own)
        return _merged(
            self._lose(seen, own_BTD, mixture(own_BTD, every_BTLD)) for own_BTD in states
        )

    def _onward(self, seen: Seen, pairs: Pairs) -> Total:
        """Each pair of layers together with the next one."""
        states = [(self._own(seen, *pair), self._theirs(seen, pair[1])) for pair in pairs]
        return _merged(
            self._lose(seen, (own, own_next), (theirs, theirs_next))
            for (own, theirs), (own_next, theirs_next) in itertools.pairwise(states)
        )

    def _side(self, seen: Seen, own: int, theirs: int = 0) -> Any:
        """What of a student layer is compared: a state, scores, or queries, keys and values."""
        if self.loss.reads == "hidden":
            return self._own(seen, own, theirs)
        qkv = _float(seen.captured.qkv[own])
        return (
            qkv if self.loss.reads == "relation" else scores(seen.student, own, qkv, seen.mask_BT)
        )

    def _against(self, seen: Seen, side: Any, theirs: int, *, each: bool = False) -> Total:
        """A student's side against a teacher layer; with `each`, every example's own sum."""
        kept, target = constants_of(self.level), self._theirs(seen, theirs)
        if self.loss.repeated:
            return self._relate(seen, side, target)
        if "bank" in kept:
            bank_ND = self.constants(f"bank_{theirs}")[: kept["bank"]]
            return self._contrast(seen, side, target, bank_ND)
        options: dict[str, Any] = {"each": True} if each else {}
        if "deviation" in kept:
            options["deviation_D"] = self.constants(f"deviation_{theirs}")
        return self._lose(seen, side, target, **options)

    def _relate(self, seen: Seen, qkv: QKV, target_BT3D: torch.Tensor) -> Total:
        """One relation after another."""
        return _merged(
            self._lose(seen, getattr(qkv, f"{name}_BTD"), target_BT3D[:, :, _RELATIONS[name]])
            for name in getattr(self.level, self.loss.repeated)
        )

    def _contrast(
        self,
        seen: Seen,
        student_BTD: torch.Tensor,
        teacher_BTD: torch.Tensor,
        negatives_ND: torch.Tensor,
    ) -> Total:
        """Pooled states against a bank of others."""
        own_BD, theirs_BD = (pool(states, seen.mask_BT) for states in (student_BTD, teacher_BTD))
        cosines_BN = torch.nn.functional.cosine_similarity(
            theirs_BD[:, None], negatives_ND[None], dim=-1
        )
        return FUNCTIONS[self.loss.function](
            own_BD,
            theirs_BD,
            negatives_ND,
            excluded_BN=cosines_BN > _ITSELF,
            **options_at(self.level, seen.done),
        )

    def _lose(self, seen: Seen, own: Any, theirs: Any, **options: Any) -> Total:
        """The loss of what either side has."""
        options |= options_at(self.level, seen.done)
        return FUNCTIONS[self.loss.function](own, theirs, seen.mask_BT, **options)

    def _own(self, seen: Seen, own: int, theirs: int = 0) -> torch.Tensor:
        """A student layer's state, projected if the level has it so."""
        student_BTD = seen.captured.hidden[own].float()
        kind = projection_of(self.level)
        if kind == "none":
            return student_BTD
        projected: torch.Tensor = self.projections[
            projection_name(kind, self.matching, own, theirs)
        ](student_BTD)
        return projected

    def _theirs(self, seen: Seen, theirs: int) -> torch.Tensor:
        return seen.targets[f"{self.loss.reads}.{theirs}"]


def _merged(totals: Iterable[Total]) -> Total:
    return functools.reduce(Total.merge, totals)


def _float(qkv: QKV) -> QKV:
    return QKV(qkv.queries_BTD.float(), qkv.keys_BTD.float(), qkv.values_BTD.float())
