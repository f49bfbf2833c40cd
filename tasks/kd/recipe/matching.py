"""Which layers of either model a level compares. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.kd.recipe.levels import LayerLevel
from tasks.kd.recipe.losses import loss_of
from tasks.kd.recipe.maps import ChosenMap, Pairs, drawn, pairs, uniform


@dataclass(frozen=True)
class Matching:
    """The layers that a level reads, and what its count is multiplied by.

    `fixed` are the pairs of a map that no example and no epoch decides, else none.
    """

    layer_map: ChosenMap | None
    own: tuple[int, ...]
    theirs: tuple[int, ...]
    fixed: Pairs

    @property
    def parts(self) -> int:
        """In how many comparisons each element is counted."""
        if self.layer_map is None:
            return len(self.fixed)
        counted = {"transport": 1, "nearest": len(self.theirs)}
        return counted.get(self.layer_map, len(self.own))

    def pairs(self, *, seed: int, epoch: int) -> Pairs:
        """The pairs of an epoch, for a map of pairs or `random`."""
        if self.layer_map == "random":
            return drawn(len(self.own), len(self.theirs), seed=seed, epoch=epoch)
        return self.fixed


def match(level: LayerLevel, student_layers: int, teacher_layers: int) -> Matching:
    """The layers that a level compares.

    Layer 0, the embedding output, has no attention, and its first token is the same for all texts:
    a named map leaves it out there, and maps that choose leave it out everywhere. Raises
    ValueError, naming the pair, for a layer that is not there, for a student deeper than its
    teacher where the map goes through all layers, and where a loss needs a next layer.
    """
    loss = loss_of(level)
    onward = f"{level.level}.{level.loss} compares a matched layer with the next one"
    if loss.next_layer and level.layer_map == "random" and student_layers < 2:
        raise ValueError(f"{onward}: a student of 1 has none")
    if level.layer_map in ("random", "mixture", "transport", "nearest"):
        return _chosen(level.layer_map, student_layers, teacher_layers)
    matched = pairs(level.layer_map, student_layers, teacher_layers)
    if loss.lacking:
        without = [list(pair) for pair in matched if min(pair) == 0]
        if without and not isinstance(level.layer_map, str):
            raise ValueError(
                f"layer 0, the embeddings, has no {loss.lacking}: layer map pair {without[0]}"
            )
        matched = tuple(pair for pair in matched if min(pair) > 0)
    if loss.next_layer and len(matched) < 2:
        raise ValueError(f"{onward}: {len(matched)} is too few")
    own, theirs = (tuple(sorted(set(side))) for side in zip(*matched, strict=True))
    return Matching(None, own, theirs, matched)


def _chosen(layer_map: ChosenMap, student_layers: int, teacher_layers: int) -> Matching:
    """The layers among which a map chooses: all but the embeddings."""
    within = uniform(student_layers, teacher_layers)[1:]
    own = tuple(range(1, student_layers + 1))
    theirs = tuple(range(1, teacher_layers + 1))
    if layer_map == "nearest":
        theirs = tuple(teacher for _, teacher in within)
    return Matching(layer_map, own, theirs, ())
