"""params/figures/dvc.yaml: the files that `dvc metrics` and `dvc plots` show of each recipe.

DVC has loops for stages but not for metrics and plots, and a file inside a stage's out can't be an
out of its own. So every recipe of params/recipes.yaml is written out here.
"""

from __future__ import annotations

from pathlib import Path

FIGURES_FILE = Path("params/figures/dvc.yaml")
_HEAD = """\
# Written by `stillhouse new` from params/recipes.yaml: what DVC shows of each recipe.
# After a change by hand there: python tests/contracts/test_dvc_yaml.py
"""
_PLOTS = """\
  - learning of {name}:
      template: linear
      x: step
      y:
        {out}/learning_train.csv: loss
        {out}/learning_dev.csv: loss
  - dev accuracy of {name}:
      template: linear
      x: step
      y: {{{out}/learning_dev.csv: accuracy}}
  - confusion of {name}:
      template: confusion
      x: {{{out}/{predictions}: label}}
      y: {{{out}/{predictions}: student}}
"""


def write_figures(root: Path) -> None:
    """Write the file for the recipes in the list."""
    from tasks.kd.digests import write_bytes

    path = root / FIGURES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render_figures(root).encode())


def render_figures(root: Path) -> str:
    """The file's text for the recipes in the list."""
    from tasks.kd.documents.predictions import PREDICTIONS
    from tasks.kd.recipe.files import list_recipes

    outs = {name: f"../../artifacts/{name}/evaluate_student" for name in list_recipes(root)}
    if not outs:
        return _HEAD
    metrics = "".join(f"  - {out}/summary.json\n" for out in outs.values())
    plots = "".join(
        _PLOTS.format(name=name, out=out, predictions=PREDICTIONS) for name, out in outs.items()
    )
    return f"{_HEAD}metrics:\n{metrics}plots:\n{plots}"
