"""The picture of the codecs: bytes, error and accuracy, one panel each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tasks.kd.evaluation.plots import _STYLE as STYLE
from tasks.kd.evaluation.plots import LEVELS, MUTED, PAPER, STUDENT, TEACHER

_NOTHING = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Point:
    """What a codec costs: errors and divergences by stream, an accuracy per seed."""

    bytes_per_token: float
    errors: Mapping[str, float]
    attention_kl: Mapping[str, float]
    accuracies: tuple[float, ...]


def draw_codecs(points: Mapping[str, Point], teacher: float, path: Path) -> None:
    """Write the three panels as one SVG on white."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "codecs"}):
        figure = Figure(figsize=(9.2, 2.9))
        size, error, accuracy = figure.subplots(1, 3)
        for axes in (size, error, accuracy):
            axes.set_xticks(range(len(points)), list(points))
            axes.set_xlim(-0.6, len(points) - 0.4)
            axes.grid(visible=False, axis="x")
        _draw_sizes(size, points)
        _draw_errors(error, points)
        _draw_accuracies(accuracy, points, teacher)
        figure.savefig(path, format="svg", facecolor=PAPER, metadata=_NOTHING)


def _draw_sizes(axes: Axes, points: Mapping[str, Point]) -> None:
    axes.set_title("Bytes per token")
    for place, point in enumerate(points.values()):
        axes.bar(place, point.bytes_per_token, 0.6, color=TEACHER)
        text = f"{point.bytes_per_token:.0f}"
        axes.annotate(text, (place, point.bytes_per_token), ha="center", va="bottom", color=MUTED)
    axes.margins(y=0.12)


def _draw_errors(axes: Axes, points: Mapping[str, Point]) -> None:
    """On a log scale, where an error of 0 has no place."""
    axes.set_title("Error of what is read back")
    for values, colour, label in (
        ([p.errors for p in points.values()], LEVELS[0], "relative error of a layer"),
        ([p.attention_kl for p in points.values()], LEVELS[1], "attention KL, nats"),
    ):
        dots = [(x, y) for x, own in enumerate(values) for y in own.values() if y > 0]
        if dots:
            xs, ys = zip(*dots, strict=True)
            axes.scatter(xs, ys, s=18, color=colour, label=label, lw=0)
    axes.set_yscale("log")
    axes.legend(loc="best")
    for place, point in enumerate(points.values()):
        if not any(point.errors.values()):
            across = axes.get_xaxis_transform()
            axes.text(place, 0.03, "exact", ha="center", color=MUTED, transform=across)


def _draw_accuracies(axes: Axes, points: Mapping[str, Point], teacher: float) -> None:
    axes.set_title("Student’s test accuracy")
    axes.axhline(teacher, color=TEACHER, linewidth=0.8, linestyle=(0, (2, 3)), label="teacher")
    for place, point in enumerate(points.values()):
        values, label = point.accuracies, None if place else "students, by seed"
        axes.scatter([place] * len(values), values, s=18, color=STUDENT, lw=0, label=label)
        axes.hlines(statistics.mean(values), place - 0.25, place + 0.25, color=STUDENT)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.margins(y=0.25)
    axes.legend(loc="best")
