"""What the runs that are there say: `study.json`, `study.md` and `study.svg`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.kd.digests import read_json, write_bytes, write_json
from tests.bench.results import versions
from tests.study import arms, intervals
from tests.study.intervals import Floats, Interval
from tests.study.runs import Key
from tests.study.selection import open_run
from tests.study.settings import FOLDER, Study
from tests.study.teachers import Teacher

HEAD = """\
# Which levels pay, at equal steps

Written by `make study`; `study.json` beside this page holds every seed. All arms of a table have
the same student, the same texts, the same number of steps and the same highest learning rate; what
differs is what is taught, and when. Δ is an arm minus *prediction_only* (labels and softened
predictions), in points, with a {confidence:.0f} % interval from a bootstrap over seeds and
examples at once, in pairs; **bold** where it excludes zero. Unseen corpora are read by a frozen
encoder and a linear probe on the mean of its last hidden states; *gap* is the share of the way
from *prediction_only*'s probe to the teacher's.
"""

NOTES = """\
## How to read this

- The intervals are of one comparison each. Many arms are compared with the same baseline on the
  same test split, so that the best of a table is a little flattered; *dev* is there to choose by.
- {seeds} seeds say little of how much seeds differ: intervals over so few are too narrow rather
  than too wide.
- The rate is chosen per student and data set, not per arm: an arm's highest rate becomes the
  student's, the ratios between its phases stay. A paper's preset is thus run at a small fraction of
  its steps and not at its own rate; what it shows here is not what it can do.
- One rate for all arms is not as kind to each. On R52, at half of it and with one seed,
  *prediction_only* rose from 78.1 to 81.0 % (narrow) and from 81.8 to 87.2 % (narrow_pca, whose
  probes then read 71.3, 50.4, 88.7 and 60.7 %), while *stillhouse* fell from 92.6 to 85.2 %
  (narrow_pca). Each at its better rate, *stillhouse* is ahead by some 9 and 5 points on R52, and
  with embeddings carried over it is not ahead on unseen corpora. Rates per arm are to be measured.
- An epoch of transfer text is as many steps as an epoch of the data set's own; it is text that the
  other arms do not see.
- A probe's texts are unseen by the student, but the teacher's base encoder was trained by others on
  text that we do not know.
- A student's best epoch of its last phase is chosen on dev, as the product does.
"""


@dataclass(frozen=True)
class Row:
    """An arm's outcome for one data set and student."""

    arm: str
    accuracies: tuple[float, ...]
    dev: tuple[float, ...]
    seconds: tuple[float, ...]
    steps: int
    delta: Interval
    retention: Interval
    unseen: dict[str, Interval]
    gaps: dict[str, Interval | None]
    unseen_mean: Interval
    probes: dict[str, tuple[float, ...]]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        gaps = {name: gap.as_json() if gap else None for name, gap in self.gaps.items()}
        return vars(self) | {
            "delta": self.delta.as_json(),
            "retention": self.retention.as_json(),
            "unseen": {name: found.as_json() for name, found in self.unseen.items()},
            "gaps": gaps,
            "unseen_mean": self.unseen_mean.as_json(),
        }


@dataclass(frozen=True)
class Table:
    """All arms of one data set and student."""

    data: str
    student: str
    teacher: Teacher
    rows: tuple[Row, ...]
    lacking: tuple[str, ...]


def write_report(study: Study, out: Path, *, seeds: int, folder: Path = FOLDER) -> None:
    """Write all three files. Raises SystemExit where no table has its baseline."""
    from tests.study.plot import draw

    tables = [
        found
        for data in study.data
        for student in study.students
        if (found := table(study, data, student, seeds=seeds, folder=folder)) is not None
    ]
    if not tables:
        raise SystemExit("no runs to report: python -m tests.study run")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "study.json", _document(study, tables, folder))
    write_bytes(out / "study.md", markdown(study, tables, seeds=seeds).encode())
    draw(tables, out / "study.svg")


def table(
    study: Study, data: str, student: str, *, seeds: int, folder: Path = FOLDER
) -> Table | None:
    """The arms of which all seeds are there, or None without the baseline."""
    found: dict[str, list[dict[str, Any]]] = {}
    lacking = []
    for arm in arms.names():
        try:
            runs = [
                open_run(study, Key(data, student, arm, seed), print, folder)
                for seed in range(seeds)
            ]
            paths = [run.path for run in runs]
        except arms.DoesNotFitError:
            continue
        there = [path for path in paths if path.exists()]
        if len(there) == seeds:
            found[arm] = [read_json(path) for path in there]
        elif there:
            lacking.append(f"{arm} ({len(there)} of {seeds} seeds)")
    if arms.BASELINE not in found:
        return None
    teacher = runs[0].teacher
    base = found[arms.BASELINE]
    rows = [row(arm, results, base, teacher, study) for arm, results in found.items()]
    return Table(data, student, teacher, tuple(rows), tuple(lacking))


def row(
    arm: str,
    results: Sequence[dict[str, Any]],
    base: Sequence[dict[str, Any]],
    teacher: Teacher,
    study: Study,
) -> Row:
    """One arm, in pairs with the baseline's seeds."""
    how, told = study.statistics, teacher.report
    own_SN, base_SN = correct(results), correct(base)
    unseen = list(told["probes"])
    pairs = {name: (correct(results, name), correct(base, name)) for name in unseen}
    return Row(
        arm=arm,
        accuracies=tuple(result["accuracy"] for result in results),
        dev=tuple(result["dev_accuracy"] for result in results),
        seconds=tuple(result["seconds"] for result in results),
        steps=results[0]["steps"],
        delta=intervals.difference(own_SN, base_SN, how),
        retention=intervals.ratio(own_SN, bools(told["correct"]), how),
        unseen={name: intervals.difference(*pair, how) for name, pair in pairs.items()},
        gaps={
            name: intervals.gap_closed(*pair, bools(told["probes"][name]["correct"]), how)
            for name, pair in pairs.items()
        },
        unseen_mean=intervals.mean_difference(list(pairs.values()), how),
        probes={
            name: tuple(result["probes"][name]["accuracy"] for result in results) for name in unseen
        },
    )


def correct(results: Sequence[dict[str, Any]], probe: str | None = None) -> Floats:
    """What was right, `[S, N]`: of the test split, or of a probe."""
    return np.stack(
        [bools((result["probes"][probe] if probe else result)["correct"]) for result in results]
    )


def bools(text: str) -> Floats:
    """A text of 1 and 0 as numbers `[N]`."""
    return np.asarray([letter == "1" for letter in text], dtype=np.float64)


def markdown(study: Study, tables: Sequence[Table], *, seeds: int) -> str:
    """The page."""
    parts = [HEAD.format(confidence=100 * study.statistics.confidence), "![](study.svg)", ""]
    for found in tables:
        parts += _section(study, found)
    return "\n".join([*parts, NOTES.format(seeds=seeds)])


def _section(study: Study, found: Table) -> list[str]:
    shape, told = study.students[found.student].shape, found.teacher.report
    unseen = list(told["probes"])
    lines = [
        f"## {found.data}, {found.student} ({shape.layers}×{shape.hidden_size})",
        "",
        f"{study.data[found.data].examples} texts, {found.rows[0].steps} steps. Teacher: "
        f"{100 * told['accuracy']:.1f} % on the test split; probes "
        + ", ".join(f"{name} {100 * told['probes'][name]['accuracy']:.1f} %" for name in unseen)
        + ".",
        "",
        _line(["arm", "dev %", "test %", "Δ test", "of teacher"]),
        _line(["---"] * 5),
    ]
    ordered = sorted(found.rows, key=lambda row: -statistics.mean(row.accuracies))
    for row in ordered:
        measured = [_mean(row.dev), _mean(row.accuracies), points(row.delta)]
        lines.append(_line([row.arm, *measured, _share(row.retention)]))
    lines += ["", _line(["arm", "Δ unseen, mean", *(f"Δ {name}, gap" for name in unseen)])]
    lines += [_line(["---"] * (2 + len(unseen)))]
    for row in sorted(found.rows, key=lambda row: -row.unseen_mean.value):
        cells = [f"{points(row.unseen[name])}{_gap(row.gaps[name])}" for name in unseen]
        lines.append(_line([row.arm, points(row.unseen_mean), *cells]))
    if found.lacking:
        lines += ["", f"Not yet whole: {', '.join(found.lacking)}."]
    return [*lines, ""]


def points(found: Interval) -> str:
    """A difference in points, bold where it excludes zero."""
    text = f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"**{text}**" if found.excludes_zero else text


def _gap(found: Interval | None) -> str:
    return f", {100 * found.value:.0f} %" if found else ""


def _share(found: Interval) -> str:
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _document(study: Study, tables: Sequence[Table], folder: Path) -> dict[str, Any]:
    results = [read_json(path) for path in sorted((folder / "runs").glob("*.json"))]
    return {
        "settings": study.model_dump(mode="json"),
        "versions": versions(),
        "versions_of_the_code": len({result["code_sha256"] for result in results}),
        "tables": [
            {
                "data": found.data,
                "student": found.student,
                "teacher": {
                    "accuracy": found.teacher.report["accuracy"],
                    "dev_accuracy": found.teacher.report["dev_accuracy"],
                    "learning_rate": found.teacher.report["learning_rate"],
                    "probes": {
                        name: probe["accuracy"]
                        for name, probe in found.teacher.report["probes"].items()
                    },
                },
                "arms": {row.arm: row.as_json() for row in found.rows},
                "lacking": found.lacking,
            }
            for found in tables
        ],
    }
