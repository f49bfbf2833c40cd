"""The report of an evaluation: one self-contained HTML file, and its plots as PNG.

The page depends on `Contents` alone: no file, clock or network is read, so that equal figures give
equal pages. The template engine escapes all text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks.kd.digests import write_bytes
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.evaluation import Figure, Metrics
from tasks.kd.evaluation.figures import Bin
from tasks.kd.evaluation.plots import (
    History,
    Plot,
    as_svg,
    draw_accuracy,
    draw_confusion,
    draw_level,
    draw_losses,
    draw_reliability,
    draw_similarity,
    level_names,
    save_png,
)

_TEXT_LENGTH = 320
_THIN = "\u202f"  # narrow space that does not break: between a number and its unit


@dataclass(frozen=True)
class Mistake:
    """A test text that the teacher gets right and the student wrong; scores are softmax."""

    text: str
    label: str
    answer: str
    student_score: float
    teacher_score: float


@dataclass(frozen=True)
class Contents:
    """All that a report shows; `lineage` is (name, value) pairs."""

    metrics: Metrics
    data_card: DataCard
    confidence: float
    teacher_bins: Sequence[Bin]
    student_bins: Sequence[Bin]
    teacher_history: History
    student_history: History
    mistakes: Sequence[Mistake]
    lineage: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Row:
    """A row of the table of teacher and student; `spans` are for the drawing of intervals."""

    name: str
    teacher: str
    student: str
    teacher_interval: str = ""
    student_interval: str = ""
    ratio: str = ""
    spans: tuple[tuple[float, float, float], ...] = ()


def write_report(contents: Contents, out: Path) -> None:
    """Write report.html and plots/*.png."""
    plots = draw_plots(contents)
    # The page comes first: drawing at a PNG's resolution moves a figure's layout slightly.
    write_bytes(out / "report.html", render_report(contents, plots).encode())
    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    for plot in plots.values():
        save_png(plot, folder)


def draw_plots(contents: Contents) -> dict[str, Plot]:
    """Every plot by its name, in the order of the report."""
    metrics, history = contents.metrics, contents.student_history
    plots = [draw_accuracy(history, contents.teacher_history)]
    if levels := level_names(history):
        plots.append(draw_losses(history))
        plots.extend(draw_level(history, level) for level in levels)
    plots += [
        draw_confusion("teacher", metrics.confusion.teacher, metrics.labels),
        draw_confusion("student", metrics.confusion.student, metrics.labels),
        draw_reliability(contents.teacher_bins, contents.student_bins),
        draw_similarity(metrics.similarity.cka),
    ]
    return {plot.name: plot for plot in plots}


def render_report(contents: Contents, plots: Mapping[str, Plot]) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("tasks.kd.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, count=count, cut=cut, difference=difference)
    metrics = contents.metrics
    return environment.get_template("report.html.j2").render(
        contents=contents,
        metrics=metrics,
        headline=summarise(metrics),
        confidence=percent(contents.confidence, 0),
        quality=_quality_rows(metrics),
        cost=_cost_rows(metrics),
        classes=sorted(metrics.per_class, key=lambda row: (-row.support, row.label)),
        widest=max(0.05, *(abs(c.student_f1 - c.teacher_f1) for c in metrics.per_class)),
        ratios=_ratios(metrics),
        plots=plots,
        svg={name: as_svg(plot) for name, plot in plots.items()},
        left_out=list_left_out(contents.data_card.dropped),
        learning=[name for name in plots if name.startswith("learning-")],
    )


def list_left_out(dropped: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons why rows were left out, in words, and how many rows; zero counts are omitted."""
    return [(reason.replace("_", " "), rows) for reason, rows in dropped.items() if rows]


def summarise(metrics: Metrics) -> str:
    """The result in one sentence."""
    ratios = _ratios(metrics)
    return (
        f"The student keeps {percent(metrics.retention.value)} of its teacher’s accuracy, "
        f"in {percent(ratios['size'], 0)} of the space "
        f"and {percent(ratios['time'], 0)} of the time."
    )


def _ratios(metrics: Metrics) -> dict[str, float]:
    teacher, student = metrics.teacher, metrics.student
    return {
        "size": student.size_bytes / teacher.size_bytes,
        "time": student.latency_ms.p50 / teacher.latency_ms.p50,
        "speed": teacher.latency_ms.p50 / student.latency_ms.p50,
    }


def _quality_rows(metrics: Metrics) -> list[Row]:
    teacher, student = metrics.teacher, metrics.student
    pairs = {
        "Accuracy": (teacher.accuracy, student.accuracy),
        "Lead over the best constant answer": (teacher.lead, student.lead),
        "Macro-F1": (teacher.macro_f1, student.macro_f1),
        "Calibration error (ECE)": (teacher.ece, student.ece),
    }
    return [
        Row(
            name,
            percent(before.value),
            percent(after.value),
            teacher_interval=interval(before),
            student_interval=interval(after),
            spans=_place((before, after)),
        )
        for name, (before, after) in pairs.items()
        if before is not None and after is not None  # no lead on a test split of one label
    ]


def _cost_rows(metrics: Metrics) -> list[Row]:
    teacher, student = metrics.teacher, metrics.student
    before, after = teacher.latency_ms, student.latency_ms
    measured = [
        ("Latency, median", before.p50, after.p50, _as_ms),
        ("Latency, 95th percentile", before.p95, after.p95, _as_ms),
        ("Latency, mean", before.mean, after.mean, _as_ms),
        ("Size of the ONNX file", teacher.size_bytes, student.size_bytes, _as_megabytes),
        ("Parameters", teacher.parameters, student.parameters, _as_millions),
        ("Layers", teacher.layers, student.layers, count),
    ]
    return [
        Row(name, show(old), show(new), ratio=f"{new / old:.2f}{_THIN}×")
        for name, old, new, show in measured
    ]


def _place(pair: Sequence[Figure]) -> tuple[tuple[float, float, float], ...]:
    """Each figure's (low, value, high) on a common scale from 0 to 100."""
    ends = [(min(f.low, f.value), f.value, max(f.high, f.value)) for f in pair]
    least, most = min(low for low, _, _ in ends), max(high for _, _, high in ends)
    scale = 100 / ((most - least) or 1.0)
    return tuple(
        (scale * (low - least), scale * (value - least), scale * (high - least))
        for low, value, high in ends
    )


# --- numbers and texts as people read them -------------------------------------------------------


def percent(share: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f}{_THIN}%"


def interval(figure: Figure) -> str:
    """A figure's interval in percent."""
    return f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"


def difference(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def count(value: float) -> str:
    """A rounded number with its thousands separated."""
    return f"{round(value):,}".replace(",", _THIN)


def cut(text: str, length: int = _TEXT_LENGTH) -> str:
    """A text's beginning, cut at the end of a word."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + "\u00a0…"


def _as_ms(value: float) -> str:
    return f"{value:.2f}{_THIN}ms"


def _as_megabytes(value: float) -> str:
    return f"{value / 1e6:.1f}{_THIN}MB"


def _as_millions(value: float) -> str:
    return f"{value / 1e6:.1f}{_THIN}M"
