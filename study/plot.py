"""The picture of the study: each arm against predictions alone, on its own data and unseen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.intervals import Interval
from tasks.kd.evaluation.plots import _STYLE as STYLE
from tasks.kd.evaluation.plots import MUTED, PAPER, STUDENT, TEACHER

if TYPE_CHECKING:
    from study.report import Row, Table

_NOTHING = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_ARM_INCHES, _REST_INCHES = 0.27, 0.9


def draw(tables: Sequence[Table], path: Path) -> None:
    """Write one panel per student and teacher as an SVG on white."""
    rows, columns = -(-len(tables) // 2), min(2, len(tables))
    height = sum(_ARM_INCHES * most + _REST_INCHES for most in _heights(tables))
    with mpl.rc_context({**STYLE, "svg.hashsalt": "study"}):
        figure = Figure(figsize=(9.2, height), layout="constrained")
        panels = list(
            figure.subplots(rows, columns, squeeze=False, height_ratios=_heights(tables)).flat
        )
        for axes, table in zip(panels, tables, strict=False):
            _panel(axes, table)
        for axes in panels[len(tables) :]:
            axes.set_visible(False)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(path, format="svg", facecolor=PAPER, metadata=_NOTHING)


def _heights(tables: Sequence[Table]) -> list[int]:
    """The most arms in each pair of panels."""
    return [
        max(len(table.rows) for table in tables[start : start + 2])
        for start in range(0, len(tables), 2)
    ]


def _panel(axes: Axes, table: Table) -> None:
    ordered: list[Row] = sorted(table.rows, key=lambda row: row.delta.value)
    axes.set_title(f"{table.student}, teacher {table.teacher.name}")
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for shift, colour, label, found in (
        (0.16, STUDENT, "own test split", [row.delta for row in ordered]),
        (-0.16, TEACHER, "unseen, mean of probes", [row.unseen_mean for row in ordered]),
    ):
        _dots(axes, found, shift, colour, label)
    axes.set_yticks(range(len(ordered)), [row.arm for row in ordered])
    axes.set_xlabel("points against prediction_only")


def _dots(axes: Axes, found: Sequence[Interval], shift: float, colour: str, label: str) -> None:
    places = [place + shift for place in range(len(found))]
    values = [100 * each.value for each in found]
    axes.hlines(
        places,
        [100 * each.low for each in found],
        [100 * each.high for each in found],
        color=colour,
        linewidth=1.2,
    )
    axes.scatter(values, places, s=18, color=colour, lw=0, label=label)
