"""Results: one JSON file per part, and the table of all parts that were found."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.figures import Findings
from tasks.kd.digests import read_json, write_bytes, write_json

_LIBRARIES = ("torch", "transformers", "safetensors", "numpy")
_COLUMNS = ("part", "figure", "goal", "median (min to max)", "met")
_HEAD = """\
# {title}, measured

Written by `make bench`; the JSON files beside this one hold every round, the settings and what is
counted. Ratios are taken within a round, in which all ways take turns.
"""


@dataclass(frozen=True)
class Page:
    """A table of some parts: its file, its title."""

    file: str
    title: str


CACHE = Page("cache.md", "The teacher cache")
TRAINING = Page("training.md", "The student's training")


def machine() -> dict[str, Any]:
    """What of the machine decides how fast it is; `load` is how busy it was, over a minute."""
    return {
        "processor": _after("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of Python and of the libraries that do the work."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def write_part(
    folder: Path, part: str, findings: Findings, began: Mapping[str, Any], seconds: float
) -> None:
    """Write `<part>.json`; `began` is the machine as it was when the part began."""
    ended = {"load_at_the_end": machine()["load"]}
    write_json(
        folder / f"{part}.json",
        {
            "part": part,
            "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
            "seconds": round(seconds, 1),
            "machine": {**began, **ended},
            "versions": versions(),
            "settings": dict(findings.settings),
            "notes": list(findings.notes),
            "figures": [figure.as_json() for figure in findings.figures],
        },
    )


def write_table(
    folder: Path, parts: Iterable[str], console: Console, *, page: Page = CACHE
) -> None:
    """Print the table of all parts whose results are there, and write it as Markdown.

    What has a goal comes first. Nothing is written where no part was measured.
    """
    found = [read_json(path) for part in parts if (path := folder / f"{part}.json").exists()]
    if not found:
        return
    rows = [row for result in found for row in _rows(result)]
    goals, rest = [row for row in rows if row[2]], [row for row in rows if not row[2]]
    shown = Table(*_COLUMNS, title=f"{page.title}, measured")
    for row in goals:
        shown.add_row(*row)
    shown.add_section()
    for row in rest:
        shown.add_row(*row)
    console.print(shown)
    lines = [
        _HEAD.format(title=page.title),
        "## Goals",
        "",
        *_markdown(goals),
        "",
        "## All else",
        "",
        *_markdown(rest),
    ]
    lines += ["", "## How", "", *_where_measured(found)]
    for result in found:
        lines += [f"- **{result['part']}**: {note}" for note in result["notes"]]
    write_bytes(folder / page.file, ("\n".join(lines) + "\n").encode())


def goal_of(figure: Mapping[str, Any]) -> str:
    """The goal in words, empty without one."""
    for word, sign in (("at_most", "≤"), ("at_least", "≥")):
        if figure[word] is not None:
            return f"{sign} {_number(figure[word])}"
    return ""


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for figure in result["figures"]:
        median, low, high = (_number(figure[key]) for key in ("median", "min", "max"))
        unit = f" {figure['unit']}" if figure["unit"] else ""
        spread = f" ({low} to {high})" if len(figure["rounds"]) > 1 else ""
        met = {True: "yes", False: "NO", None: ""}[figure["met"]]
        measured = f"{median}{unit}{spread}"
        rows.append((result["part"], figure["name"], goal_of(figure), measured, met))
    return rows


def _number(value: float) -> str:
    """Three digits that count, without an exponent where a person would write none."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1e3 else f"{value:.1e}"


def _markdown(rows: list[tuple[str, ...]]) -> list[str]:
    return [_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _where_measured(found: list[Any]) -> list[str]:
    """One line for each machine and set of versions that the results are of."""
    lines: dict[str, list[str]] = {}
    for result in found:
        facts, used = result["machine"], result["versions"]
        where = (
            f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
            f"{facts['memory_gib']} GiB; " + ", ".join(f"{k} {v}" for k, v in used.items())
        )
        load = f"load {facts['load']} to {facts['load_at_the_end']}"
        lines.setdefault(where, []).append(f"{result['part']} ({load})")
    return [*(f"Measured on {where}: {', '.join(p)}." for where, p in lines.items()), ""]


def _after(path: str, name: str) -> str | None:
    """The first value of that name in a file of `name : value` lines."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return None
    found = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in found if key.strip() == name), None)
