"""Running drawn cases one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.cases import FAMILIES, Case, Expected, harmless
from tests.mutations.draw import Drawn
from tests.mutations.harness import Outcome, clean, remember_yaml, run_case
from tests.mutations.projects import Material, make_material, write_recipe


@dataclass(frozen=True)
class Run:
    """A case and how it ended."""

    drawn: Drawn
    expected: Expected
    outcome: Outcome


def run_all(drawn: Sequence[Drawn], folder: Path, *, keep: Path | None = None) -> Iterator[Run]:
    """Make the material, then each case; `keep` is where the last one's folder is left."""
    import_all()
    material = make_material(folder / "good", FAMILIES)
    for each in drawn:
        yield run(each, material, folder, keep=keep)


def import_all() -> None:
    """What every case needs, once, before the forks."""
    import torch

    import tasks.stages.fetch_sources
    import tasks.stages.prepare_data
    import tasks.stages.train_teacher  # noqa: F401

    torch.set_num_threads(1)


def run(drawn: Drawn, material: Material, folder: Path, *, keep: Path | None = None) -> Run:
    """One case."""
    try:
        case, expected = make(drawn, material, folder)
    except Exception as error:
        error.add_note(f"case {drawn.number}: {drawn.title}")
        raise
    outcome = run_case(case, expected, material.models[drawn.family])
    if keep is not None:
        shutil.copytree(case.root, keep, dirs_exist_ok=True, symlinks=True)
    clean(case)
    return Run(drawn, expected, outcome)


def make(drawn: Drawn, material: Material, folder: Path) -> tuple[Case, Expected]:
    """The case's project, mutated, and what must come of it."""
    root = folder / f"case{drawn.number}"
    case = material.new_case(root, drawn.family, drawn.format, drawn.generator())
    expected = harmless()
    for mutation in reversed(drawn.mutations):  # what may break a file last
        expected = expected.and_also(mutation.apply(case))
    write_recipe(case)
    remember_yaml(case)
    return case, expected
