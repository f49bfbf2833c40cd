"""What the runs that are there say: for each data set a page, a picture and every figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.results import versions
from study import arms, intervals
from study.intervals import Floats, Interval
from study.kept import keep, kept_file
from study.runs import Key, Run
from study.selection import at_each_rate, contenders, open_run, winner
from study.settings import FOLDER, Study
from study.teachers import Teacher, known_teachers
from tasks.kd.digests import read_json, write_bytes, write_json

HEAD = """\
# Which levels pay, at equal steps: {data}

Written by `make study`; `{data}.json` beside this page holds every seed. In a table all arms have
the same student, the same texts and the same number of steps, and each has the learning rate that
is best for it on dev: the first seed is run at each rate, all seeds at the best. For {bracketed}
rates are halved or doubled until the first seed's best is none at an end, and where the second
best is within a point, it has all seeds as well; the better mean on dev counts, and the other is
told as *other rate*. What differs is what is taught, and when.
Δ is an arm minus *prediction_only* (labels and softened predictions), in points, with a
{confidence:.0f} % interval from a bootstrap over seeds and examples at once, in pairs; **bold**
where it excludes zero. Unseen corpora are read by a frozen encoder and a linear probe on the mean
of its last hidden states; *gap* is the share of the way from *prediction_only*'s probe to the
teacher's.
"""

NOTES = """\
## How to read this

- The intervals are of one comparison each. Many arms are compared with the same baseline on the
  same test split, so that the best of a table is a little flattered; *dev* is there to choose by.
- {seeds} seeds say little of how much seeds differ: intervals over so few are too narrow rather
  than too wide.
- An arm's rate is the highest of its phases; the ratios between them stay. A paper's preset is thus
  run at a small fraction of its steps and hardly at its own rate; what it shows here is not what it
  can do. *Highest* and *lowest* mark a rate at an end of those tried: one beyond may be better.
- *stillhouse_broad* reads random texts beside the data set's own, each once, in the steps of its
  phase without predictions: text that the other arms do not see.
- An epoch of transfer text is as many steps as an epoch of the data set's own; it is text that the
  other arms do not see.
- A probe's texts are unseen by the student, but the teacher's base encoder was trained by others on
  text that we do not know.
- A teacher is named by the beginning of its digest. Tuned again on another processor it has other
  bits and is another teacher: its students stand in a table of their own, beside their own
  *prediction_only*. Compare within a table, not between two.
- The row *teacher* is the teacher itself, tuned on all training texts with steps of its own: about
  what there is to gain, though a student may pass it. Where its own lead over *prediction_only* is
  not significant, little can be expected of a student's.
- A student's best epoch of its last phase is chosen on dev, as the product does.
"""


@dataclass(frozen=True)
class Outcome:
    """The results of all seeds at an arm's rate, and how the first did on dev at each rate."""

    rate: float
    dev_by_rate: dict[str, float]
    results: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Row:
    """An arm's outcome for one data set and student, in figures."""

    arm: str
    rate: float
    dev_by_rate: dict[str, float]
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
    """All arms of one student, taught by one teacher, and the teacher itself."""

    teacher: Teacher
    student: str
    rows: tuple[Row, ...]
    lacking: tuple[str, ...]


ITSELF = "teacher"  # its row in a table
Firsts = dict[tuple[str, str, str], dict[str, Any]]  # a run's result by teacher, student and arm


def write_report(study: Study, out: Path, *, seeds: int, folder: Path = FOLDER) -> None:
    """Write the files of each data set that has runs; keep their outcomes beside them.

    Raises SystemExit where no table has its baseline.
    """
    from study.plot import draw

    out.mkdir(parents=True, exist_ok=True)
    reported = False
    for data in study.data:
        if not any((folder / "runs").glob(f"{data}.*.json")):
            continue
        known = known_teachers(study, data, folder)
        found = [
            table(study, teacher, kind, seeds=seeds, folder=folder)
            for kind in study.students
            for teacher in known
        ]
        if not (tables := [each for each in found if each is not None]):
            continue
        reported = True
        paths = [path for teacher in known for path in outcomes(teacher, folder)]
        keep(paths, folder, kept_file(data, out))
        write_json(out / f"{data}.json", _document(study, tables, paths))
        firsts = first_seeds(study, known, tables, folder)
        write_bytes(out / f"{data}.md", markdown(study, tables, firsts, seeds=seeds).encode())
        draw(tables, out / f"{data}.svg")
    if not reported:
        raise SystemExit("no runs to report: python -m study run")


def outcomes(teacher: Teacher, folder: Path) -> list[Path]:
    """The files of the runs with that teacher, and of its own figures; none without runs."""
    runs = sorted((folder / "runs").glob(f"{teacher.data}.*.json"))
    own = [path for path in runs if read_json(path)["made_of"]["teacher"] == teacher.sha256]
    if not own:
        return []
    return [*own, teacher.folder / "report.json", *sorted(teacher.folder.glob("probe-*.json"))]


def table(
    study: Study, teacher: Teacher, student: str, *, seeds: int, folder: Path = FOLDER
) -> Table | None:
    """The arms of which all seeds are there, or None without the baseline."""
    found: dict[str, Outcome] = {}
    lacking = []
    for arm in arms.names():
        try:
            tried = at_each_rate(study, teacher, student, arm, folder)
            dev = {f"{run.key.rate:g}": result["dev_accuracy"] for run, result in _there(tried)}
        except arms.DoesNotFitError:
            continue
        contending = contenders(tried, seeds)
        wanted = [run for runs in contending for run in runs]
        there = len(_there(wanted))
        if wanted and there == len(wanted):
            best = winner(contending)
            for runs in contending:
                name = arm if runs is best else f"{arm}, other rate"
                results = tuple(result for _, result in _there(runs))
                found[name] = Outcome(runs[0].key.rate, dev, results)
        elif wanted:
            lacking.append(f"{arm} ({there} of {len(wanted)} runs)")
        elif dev:
            lacking.append(f"{arm} ({len(dev)} of {len(tried)} rates)")
    if arms.BASELINE not in found:
        return None
    base = found[arms.BASELINE]
    found[ITSELF] = Outcome(teacher.report["learning_rate"], {}, (teacher.report,))
    rows = [row(arm, outcome, base, teacher, study) for arm, outcome in found.items()]
    return Table(teacher, student, tuple(rows), tuple(lacking))


def first_seeds(
    study: Study, teachers: Sequence[Teacher], tables: Sequence[Table], folder: Path
) -> Firsts:
    """Of arms that their teacher's table lacks: the first seed at the rate that was best on dev."""
    told = {(found.teacher.name, found.student, row.arm) for found in tables for row in found.rows}
    known = {teacher.sha256: teacher for teacher in teachers}
    found: Firsts = {}
    for path in sorted((folder / "runs").glob(f"{teachers[0].data}.*.json")):
        result = read_json(path)
        key, teacher = Key(**result["key"]), known.get(result["made_of"]["teacher"])
        if key.seed or teacher is None or key.student not in study.students:
            continue
        of = (teacher.name, key.student, key.arm)
        if of in told or key.arm not in arms.names():
            continue
        if not _is_of(study, key, teacher, path, folder):
            continue
        if of not in found or result["dev_accuracy"] > found[of]["dev_accuracy"]:
            found[of] = result
    return found


def _is_of(study: Study, key: Key, teacher: Teacher, path: Path, folder: Path) -> bool:
    """Whether a file is the result of that key under the study's settings as they are now."""
    try:
        return open_run(study, key, teacher, folder).path == path
    except arms.DoesNotFitError:
        return False


def _there(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    """The runs that have been done, with their results."""
    return [(run, read_json(run.path)) for run in runs if run.path.exists()]


def row(
    arm: str,
    outcome: Outcome,
    base: Outcome,
    teacher: Teacher,
    study: Study,
) -> Row:
    """One arm, in pairs with the baseline's seeds."""
    how, told, results = study.statistics, teacher.report, outcome.results
    own_SN, base_SN = correct(results), correct(base.results)
    unseen = list(told["probes"])
    pairs = {name: (correct(results, name), correct(base.results, name)) for name in unseen}
    return Row(
        arm=arm,
        rate=outcome.rate,
        dev_by_rate=outcome.dev_by_rate,
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


def markdown(study: Study, tables: Sequence[Table], firsts: Firsts, *, seeds: int) -> str:
    """The page of one data set's tables, and of what has run with one seed alone."""
    data = tables[0].teacher.data
    head = HEAD.format(
        data=data,
        bracketed=", ".join(f"*{arm}*" for arm in study.bracketed),
        confidence=100 * study.statistics.confidence,
    )
    parts = [head, f"![]({data}.svg)", ""]
    for found in tables:
        parts += _section(study, found)
    if firsts:
        parts += _looked_at(tables, firsts)
    return "\n".join([*parts, NOTES.format(seeds=seeds)])


def _section(study: Study, found: Table) -> list[str]:
    shape, told = study.students[found.student].shape, found.teacher.report
    unseen = list(told["probes"])
    lines = [
        f"## {found.student} ({shape.layers}×{shape.hidden_size}), teacher {found.teacher.name}",
        "",
        f"{study.data[found.teacher.data].examples} texts, {found.rows[0].steps} steps. "
        f"Teacher: {100 * told['accuracy']:.1f} % on the test split; probes "
        + ", ".join(f"{name} {100 * told['probes'][name]['accuracy']:.1f} %" for name in unseen)
        + ".",
        "",
        _line(["arm", "rate", "dev %", "test %", "Δ test", "of teacher"]),
        _line(["---"] * 6),
    ]
    ordered = sorted(found.rows, key=lambda row: -statistics.mean(row.accuracies))
    for row in ordered:
        measured = [_mean(row.dev), _mean(row.accuracies), points(row.delta)]
        lines.append(_line([row.arm, rate(row), *measured, _share(row.retention)]))
    lines += ["", _line(["arm", "Δ unseen, mean", *(f"Δ {name}, gap" for name in unseen)])]
    lines += [_line(["---"] * (2 + len(unseen)))]
    for row in sorted(found.rows, key=lambda row: -row.unseen_mean.value):
        cells = [f"{points(row.unseen[name])}{_gap(row.gaps[name])}" for name in unseen]
        lines.append(_line([row.arm, points(row.unseen_mean), *cells]))
    if found.lacking:
        lines += ["", f"Not whole with this teacher: {', '.join(found.lacking)}."]
    return [*lines, ""]


def _looked_at(tables: Sequence[Table], firsts: Firsts) -> list[str]:
    unseen = list(tables[0].teacher.report["probes"])
    lines = [
        "## First seeds",
        "",
        "Of arms without all their seeds, the first, at the rate that was best on dev; some had",
        "rates that `make study` does not try (`python -m study one --rate`). A point or two",
        "between them say nothing.",
        "",
        _line(["teacher", "student", "arm", "rate", "dev %", "test %", *unseen]),
        _line(["---"] * (6 + len(unseen))),
    ]
    for named, result in firsts.items():
        accuracies = [result["dev_accuracy"], result["accuracy"]]
        accuracies += [result["probes"][name]["accuracy"] for name in unseen]
        measured = [f"{100 * accuracy:.1f}" for accuracy in accuracies]
        lines.append(_line([*named, f"{result['key']['rate']:g}", *measured]))
    return [*lines, ""]


def rate(row: Row) -> str:
    """An arm's rate, and whether it lies at an end of those tried."""
    tried = [float(each) for each in row.dev_by_rate]
    end = {min(tried): " (lowest)", max(tried): " (highest)"} if len(tried) > 1 else {}
    return f"{row.rate:g}{end.get(row.rate, '')}"


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


def _document(study: Study, tables: Sequence[Table], paths: Sequence[Path]) -> dict[str, Any]:
    codes = {code for path in paths if (code := read_json(path).get("code_sha256"))}
    return {
        "settings": study.model_dump(mode="json"),
        "versions": versions(),
        "versions_of_the_code": len(codes),
        "tables": [
            {
                "data": found.teacher.data,
                "student": found.student,
                "teacher": {
                    "sha256": found.teacher.sha256,
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
