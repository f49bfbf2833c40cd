"""How often a training reads its teacher."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.kd.recipe.losses import loss_of
from tasks.kd.recipe.phases import Phase


def epochs_read(phases: Iterable[Phase], random_texts: int) -> float:
    """Passes over all texts of the cache, in phases whose levels read the teacher."""
    passes = sum(
        phase.passes(random_texts)
        for phase in phases
        if any(loss_of(level).reads for level in phase.levels)
    )
    return passes / (1 + random_texts)
