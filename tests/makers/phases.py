"""Phases as most tests want them."""

from __future__ import annotations

from typing import Any

from tasks.kd.recipe.phases import Phase


def one_phase(levels: Any, **changes: Any) -> Phase:
    """A phase of one epoch in which all is trained; `levels` as models or as fields."""
    fields = {
        "name": "only",
        "epochs": 1,
        "learning_rate": 1e-3,
        "optimizer": "anew",
        "trained_layers": "all",
        "balance_every": None,
    }
    return Phase(**{**fields, **changes}, levels=levels)
