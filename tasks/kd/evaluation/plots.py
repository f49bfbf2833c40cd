"""The plots of a report, drawn once: as SVG in the page's colours, and as PNG.

Every colour below is also a CSS variable of the report's page. `as_svg` replaces the colour by the
variable, so that one drawing serves a light page, a dark page and paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from tasks.kd.documents.history import DevRecord, Record, TrainRecord
from tasks.kd.evaluation.figures import Bin

INK, MUTED, LINE, SHADE, PAPER = "#23211e", "#6d6860", "#dcd8d0", "#f1eee8", "#ffffff"
TEACHER, STUDENT = "#2b6195", "#c25a12"  # blue and orange stay apart for colour-blind eyes
LEVELS = ("#8a4f9e", "#1b8a6b", "#b28a00", "#4f9fd8", "#b03060")
COLOURS = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    SHADE: "shade",
    PAPER: "paper",
    TEACHER: "teacher",
    STUDENT: "student",
} | {colour: f"level-{place}" for place, colour in enumerate(LEVELS)}

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.constrained_layout.use": True,
}
_NUMBERED_CLASSES = 16  # more classes than this leave no room for numbers in the cells
_NAMED_CLASSES = 40
_SIZE = (4.4, 2.9)  # inches: small, so that text stays readable on a phone

History = Sequence[Record]


@dataclass(frozen=True)
class Plot:
    """A drawing, its file stem and its caption."""

    name: str
    caption: str
    figure: Figure


def as_svg(plot: Plot) -> str:
    """An `<svg>` element for a page that defines the colours; equal drawings give equal text."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": plot.name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg)
    for colour, name in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()


def save_png(plot: Plot, folder: Path) -> Path:
    """Write `<name>.png` on a white ground and return its path."""
    path = folder / f"{plot.name}.png"
    with mpl.rc_context(_STYLE):
        plot.figure.savefig(path, dpi=160, facecolor=PAPER, metadata={"Software": None})
    return path


@contextmanager
def _axes(title: str, size: tuple[float, float] = _SIZE) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size)
        axes = figure.add_subplot()
        axes.set_title(title)
        yield figure, axes


# --- learning ------------------------------------------------------------------------------------


def draw_losses(history: History) -> Plot:
    """A plot of the student's loss and each level's weighted part, by epoch, on a log scale."""
    steps = _trained(history)
    with _axes("Loss and its weighted levels") as (figure, axes):
        _shade_phases(axes, steps)
        _curve(axes, steps, [step.loss for step in steps], INK, "total")
        for place, level in enumerate(level_names(history)):
            own = [step for step in steps if level in step.levels]
            values = [step.levels[level].weighted for step in own]
            _curve(axes, own, values, LEVELS[place % len(LEVELS)], level)
        axes.set_yscale("log")
        axes.legend(loc="best")
    return Plot("learning-weighted", "What each level adds to the loss.", figure)


def draw_level(history: History, level: str) -> Plot:
    """A plot of one level's unweighted loss by epoch."""
    steps = [step for step in _trained(history) if level in step.levels]
    values = [step.levels[level].raw for step in steps]
    colour = LEVELS[level_names(history).index(level) % len(LEVELS)]
    with _axes(f"{level}, unweighted") as (figure, axes):
        _shade_phases(axes, _trained(history))
        _curve(axes, steps, values, colour, level)
        axes.set_ylim(bottom=0)
    name = "learning-" + re.sub(r"[^a-z0-9]+", "-", level.lower())
    return Plot(name, "The loss of this level alone, before its weight.", figure)


def draw_accuracy(student: History, teacher: History) -> Plot:
    """A plot of both trainings' accuracy on the dev split after each epoch."""
    with _axes("Dev accuracy") as (figure, axes):
        _shade_phases(axes, _trained(student))
        for who, history, colour in (
            ("teacher", teacher, TEACHER),
            ("student", student, STUDENT),
        ):
            points = [(p.epoch, p.accuracy) for p in history if isinstance(p, DevRecord)]
            if points:
                epochs, values = zip(*points, strict=True)
                axes.plot(epochs, values, "o-", color=colour, markersize=4, label=who)
                axes.axhline(max(values), color=colour, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.margins(y=0.1)
        if axes.lines:
            axes.legend(loc="lower right")
    return Plot("learning-accuracy", "Dev accuracy by epoch; dotted: the best of each.", figure)


def level_names(history: History) -> list[str]:
    """The names of all levels in a training's history, sorted."""
    return sorted({level for step in _trained(history) for level in step.levels})


def _trained(history: History) -> list[TrainRecord]:
    return [step for step in history if isinstance(step, TrainRecord)]


def _curve(
    axes: Axes, steps: Sequence[TrainRecord], values: Sequence[float], colour: str, label: str
) -> None:
    """Draw measured values faintly and their running mean strongly."""
    epochs = [step.epoch for step in steps]
    axes.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(epochs, _smooth(values), color=colour, linewidth=1.7, label=label)
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)


def _smooth(values: Sequence[float]) -> list[float]:
    """The running mean over a twentieth of the values on each side; fewer at the ends."""
    reach = max(1, len(values) // 20)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _shade_phases(axes: Axes, steps: Sequence[TrainRecord]) -> None:
    """Shade the ground of every second phase, and write each phase's name at its start."""
    phases = [step.phase for step in steps]
    starts = [0, *(i for i, (a, b) in enumerate(pairwise(phases), 1) if a != b), len(steps)]
    for place, (first, last) in enumerate(pairwise(starts)):
        if first == last or len(starts) < 3:
            continue
        left = steps[first - 1].epoch if first else 0.0
        if place % 2:
            axes.axvspan(left, steps[last - 1].epoch, color=SHADE, zorder=0, lw=0)
        axes.annotate(
            phases[first],
            (left, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, 2),
            textcoords="offset points",
            fontsize=7.5,
            color=MUTED,
        )


# --- answers -------------------------------------------------------------------------------------


def draw_reliability(teacher: Sequence[Bin], student: Sequence[Bin]) -> Plot:
    """A plot of both models' accuracy by confidence, above a histogram of the confidences."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 4.0))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.set_title("Is it as sure as it is right?")
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        for place, (who, bins, colour) in enumerate(
            (("teacher", teacher, TEACHER), ("student", student, STUDENT))
        ):
            shares = [b.examples / max(1, sum(b.examples for b in bins)) for b in bins]
            used = [(b, share) for b, share in zip(bins, shares, strict=True) if share]
            xs, ys = [b.confidence for b, _ in used], [b.accuracy for b, _ in used]
            upper.plot(xs, ys, color=colour, linewidth=1, alpha=0.4)
            areas = [6 + 130 * share for _, share in used]
            upper.scatter(xs, ys, s=areas, color=colour, zorder=3, lw=0, label=who)
            left = [b.low + (0.1 + 0.4 * place) / len(bins) for b in bins]
            lower.bar(left, shares, 0.4 / len(bins), align="edge", color=colour)
        upper.set_ylabel("accuracy")
        upper.set_ylim(-0.03, 1.05)
        upper.yaxis.set_major_formatter(PercentFormatter(1.0))
        for handle in upper.legend(loc="lower right").legend_handles:
            handle.set_sizes([30])
        lower.set(xlabel="confidence", ylabel="examples", xlim=(0, 1.02))
        lower.xaxis.set_major_formatter(PercentFormatter(1.0))
        lower.yaxis.set_major_formatter(PercentFormatter(1.0))
    return Plot(
        "reliability",
        "On the dotted line, confidence equals accuracy. Dots grow with the texts they stand for.",
        figure,
    )


def draw_confusion(who: str, matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Plot:
    """A confusion matrix: shade is the share of the row, numbers count examples."""
    counts = np.asarray(matrix, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    written = [[f"{int(count)}" if count else "" for count in row] for row in counts]
    with _axes(f"{who.capitalize()}’s answers", (4.4, 4.2)) as (figure, axes):
        _draw_cells(axes, shares, written, colour=TEACHER if who == "teacher" else STUDENT)
        shown = [_cut(name) for name in names] if len(names) <= _NAMED_CLASSES else []
        places = range(len(shown))
        axes.set_xticks(places, shown, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, shown)
        axes.set(xlabel="answered", ylabel="true")
    return Plot(
        f"confusion-{who}",
        f"Rows: true label. Columns: the {who}’s answer. Shade: share of the row.",
        figure,
    )


def draw_similarity(cka: Sequence[Sequence[float]]) -> Plot:
    """A plot of the linear CKA of student and teacher layers; each row's best is framed."""
    values = np.asarray(cka, dtype=np.float64)
    rows, columns = values.shape
    written = [[f"{value:.2f}" for value in row] for row in values]
    size = (max(3.6, 0.52 * columns + 1.2), max(2.4, 0.44 * rows + 1.2))
    with _axes("How alike are the layers?", size) as (figure, axes):
        _draw_cells(axes, values, written, colour=LEVELS[1])
        for row, best in enumerate(values.argmax(axis=1)):
            frame = Rectangle((best - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec=INK, lw=1.3)
            axes.add_patch(frame)
        axes.invert_yaxis()
        axes.set_xticks(range(columns), ["emb.", *map(str, range(1, columns))])
        axes.set_yticks(range(rows), ["emb.", *map(str, range(1, rows))])
        axes.set(xlabel="teacher layer", ylabel="student layer")
    return Plot("similarity", "Linear CKA; framed: each student layer’s nearest.", figure)


def _draw_cells(axes: Axes, shares: Any, written: Sequence[Sequence[str]], *, colour: str) -> None:
    """Draw a matrix as cells whose opacity is the share, which suits any ground."""
    rows, columns = shares.shape
    crowded = columns > _NUMBERED_CLASSES
    if crowded:
        axes.add_patch(Rectangle((-0.5, -0.5), columns, rows, fc=SHADE, lw=0))
    for row, column in np.ndindex(rows, columns):
        share = float(shares[row, column])
        corner = (column - 0.47, row - 0.47)
        if not crowded:
            axes.add_patch(Rectangle(corner, 0.94, 0.94, fc=SHADE, lw=0))
        if share > 0:
            alpha = round(min(1.0, 0.06 + 0.94 * share), 3)
            axes.add_patch(Rectangle(corner, 0.94, 0.94, fc=colour, alpha=alpha, lw=0))
        if not crowded and written[row][column]:
            ink = PAPER if share > 0.5 else INK
            text = written[row][column]
            axes.text(column, row, text, ha="center", va="center", color=ink, size=8)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.grid(visible=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _cut(name: str, length: int = 18) -> str:
    """A name cut for an axis, its dollar signs escaped since they would begin a formula."""
    short = name if len(name) <= length else name[: length - 1] + "…"
    return short.replace("$", r"\$")
