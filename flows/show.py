"""Output on the terminal: tables of results, plans, states and findings.

The tables are made of plain rows, which the flow's Prefect artifacts use too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tasks.kd.documents.evaluation import Figure, Metrics
    from tasks.kd.gate.decision import Decision
    from tasks.versioning.asking import PlannedStage

_STATUS_STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def result_rows(metrics: Metrics) -> list[dict[str, str]]:
    """Rows measure / teacher / student of an evaluation."""
    models = metrics.teacher, metrics.student
    return [
        _row("accuracy", *(_interval(model.accuracy) for model in models)),
        _row("macro F1", *(_interval(model.macro_f1) for model in models)),
        _row("retention", "", _interval(metrics.retention)),
        _row("agreement", "", _interval(metrics.agreement)),
        _row("size", *(size(model.size_bytes) for model in models)),
        _row("parameters", *(f"{model.parameters:,}" for model in models)),
        _row("layers", *(str(model.layers) for model in models)),
        _row("latency p50", *(f"{model.latency_ms.p50:.1f} ms" for model in models)),
        _row("latency p95", *(f"{model.latency_ms.p95:.1f} ms" for model in models)),
    ]


def decision_line(decision: Decision) -> str:
    """A decision in one line: for a refusal, each failed rule with its numbers."""
    if decision.verdict == "promote":
        return "every rule of the gate passed"
    return "refused by the gate: " + "; ".join(
        f"{rule.name}, {rule.explanation}" for rule in decision.refused_by
    )


def plan_rows(stages: Iterable[PlannedStage]) -> list[dict[str, str]]:
    """Rows stage / why it runs."""
    return [
        {"stage": stage.name, "why": "\n".join(stage.reasons) or "up to date"} for stage in stages
    ]


def status_rows(recipes: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows recipe / stages / model / champion / candidate; a fault has no room in them."""
    return [
        {
            "recipe": f"{recipe['recipe']}\n{recipe['description']}",
            "stages": "unknown" if recipe["fault"] else _name_stale(recipe["stages"]),
            "model": recipe["model"] or "",
            "champion": _name_version(recipe["champion"]),
            "candidate": _name_version(recipe["candidate"]),
        }
        for recipe in recipes
    ]


def seconds_rows(taken: Mapping[str, float]) -> list[dict[str, str]]:
    """Rows stage / time of the stages that ran."""
    return [{"stage": name, "time": seconds(value)} for name, value in taken.items()]


def value_rows(value: Mapping[str, Any], key: str = "") -> list[dict[str, str]]:
    """Rows what / value of a nested JSON object, one per leaf."""
    rows = []
    for name, part in value.items():
        path = f"{key}.{name}" if key else name
        if isinstance(part, dict) and part:
            rows += value_rows(part, path)
        else:
            rows.append({"what": path, "value": "" if part is None else str(part)})
    return rows


def decision_rows(decision: Decision) -> list[dict[str, str]]:
    """Rows rule / verdict / explanation of a decision."""
    return [
        {
            "rule": rule.name,
            "verdict": "passed" if rule.passed else "refused",
            "explanation": rule.explanation,
        }
        for rule in decision.rules
    ]


def print_rows(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table whose header is the first row's keys; nothing without rows."""
    if rows:
        _console().print(_table(title, rows))


def print_line(text: str, style: str | None = None) -> None:
    """Print one line of plain text; markup in it is not interpreted."""
    _console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_findings(findings: Iterable[Mapping[str, str]]) -> None:
    """Print the doctor's findings, one a line, each fault with its mend below."""
    from rich.text import Text

    console = _console()
    for finding in findings:
        line = Text(f"{finding['status']:>4}  ", style=_STATUS_STYLE[finding["status"]])
        console.print(line.append(f"{finding['name']}: {finding['seen']}", style="default"))
        if finding["status"] != "ok":
            console.print(Text(f"      mend: {finding['mend']}"))
        if finding["status"] != "ok" and finding["more"]:
            console.print(Text(f"      more: {finding['more']}"))


def seconds(value: float) -> str:
    """A duration in words: `4.2 s`, `3 min 05 s`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def size(value: float) -> str:
    """A number of bytes with its unit: `512 bytes`, `1.5 GiB`."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def _name_stale(stages: Iterable[Mapping[str, Any]]) -> str:
    stale = [stage["stage"] for stage in stages if stage["reasons"]]
    return "out of date: " + ", ".join(stale) if stale else "up to date"


def _name_version(version: Mapping[str, Any] | None) -> str:
    return "" if version is None else f"{version['version']} ({version['registered_at']})"


def _row(measure: str, teacher: str, student: str) -> dict[str, str]:
    return {"measure": measure, "teacher": teacher, "student": student}


def _interval(measured: Figure) -> str:
    value, low, high = (100 * end for end in (measured.value, measured.low, measured.high))
    return f"{value:.2f} % [{low:.2f}, {high:.2f}]"


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    return table


def _console() -> Console:
    from rich.console import Console

    return Console()
