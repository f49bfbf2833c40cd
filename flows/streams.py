"""The streams in a recipe's document: those that its levels read of the teacher."""

from __future__ import annotations

import json
from typing import Any


def fit_streams(data: Any) -> tuple[str, ...]:
    """Write the streams that the levels read into a recipe's `cache_teacher`, and return them.

    If no level reads the teacher, `logits` is written, since a recipe must name a stream. Raises
    KeyError, TypeError or ValueError for a document whose levels can't be read.
    """
    from tasks.kd.recipe.document import replace_list
    from tasks.kd.recipe.phases import streams_read
    from tasks.kd.recipe.training import TrainStudent

    taught = TrainStudent.model_validate_json(json.dumps(data["train_student"]))
    depth = int(data["train_teacher"]["layers"])
    read = streams_read(taught.phases, taught.student.layers, depth)
    replace_list(data["cache_teacher"], "streams", read or ("logits",))
    return read
