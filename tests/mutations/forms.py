"""Teachers in the forms that people save them in: `python -m tests.mutations.forms`.

Each is measured by the product and by its owner's own tokenizer and weights (`ways`); the
difference must be none, in every token and in the dev accuracy, or the folder be refused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tasks.kd.documents.training import TeacherReport
from tests.mutations.cases import Case
from tests.mutations.figures import read_split
from tests.mutations.harness import message_of, remember_yaml, run_apart
from tests.mutations.projects import new_case, write_recipe
from tests.mutations.task import LABELS, make_table
from tests.mutations.teachers import logits_of
from tests.mutations.ways import Owner, Way, ways

RESULTS = Path(__file__).with_name("results") / "forms.md"
HEAD = "| teacher | texts with other tokens | dev accuracy here | its owner's | difference |\n"


@dataclass(frozen=True)
class Found:
    """Of one form: what the product measured beside what the owner sees, or what it said."""

    way: Way
    others: int = 0  # texts whose tokens differ
    texts: int = 0
    here: float = 0.0
    owners: float = 0.0
    said: str = ""
    code: int | None = 0

    @property
    def right(self) -> bool:
        """Measured as the owner does, or refused for a reason where that is all that can be."""
        if self.code == 0:
            return not self.others and self.here == self.owners
        return self.code == 2

    def line(self) -> str:
        if self.code != 0:
            return f"| {self.way.title} | | | | exit {self.code}: {self.said} |\n"
        return (
            f"| {self.way.title} | {self.others} of {self.texts} | {self.here:.4f} | "
            f"{self.owners:.4f} | {self.here - self.owners:+.4f} |\n"
        )


@click.command()
@click.option("--only", default="", help="Forms with this in their title alone.")
@click.option("--write", is_flag=True, help="Write the table to results/.")
def main(only: str, *, write: bool) -> None:
    """Measure teachers of all forms."""
    from tests.mutations.report import quieten

    quieten()
    with tempfile.TemporaryDirectory(prefix="stillhouse-forms-") as folder:
        chosen = [way for way in ways() if only in way.title]
        found = [measure(way, Path(folder) / str(i)) for i, way in enumerate(chosen)]
    page = describe(found)
    print(page)
    if write:
        RESULTS.write_text(page, encoding="utf-8")
    raise SystemExit(any(not one.right for one in found))


def describe(found: Sequence[Found]) -> str:
    measured = [one for one in found if one.code == 0]
    refused = sum(one.code == 2 for one in found)
    wrong = sum(not one.right for one in found)
    return (
        f"# Teachers of {len(found)} forms\n\n"
        f"{len(measured) - wrong} measured as by their owners, {refused} refused, {wrong} wrong. "
        "Written by `python -m tests.mutations.forms --write`; `tests/mutations/ways.py` says how "
        "each is saved and what its owner's view is.\n\n"
        f"{HEAD}|---|---|---|---|---|\n{''.join(one.line() for one in found)}"
    )


def measure(way: Way, folder: Path) -> Found:
    """Save a teacher so, give it to the product, and hold the figures against the owner's."""
    owner = way.save(folder / "teacher")
    case = _project(way, owner, folder)
    ended = run_apart(case)
    if ended.code != 0:
        said = " ".join(message_of(ended).split()).replace("|", "/").replace(str(folder), "…")
        return Found(way, said=said[:300], code=ended.code)
    made = case.root / "artifacts" / "given"
    splits = {x: read_split(made / "prepare_data" / f"{x}.arrow") for x in ("train", "dev", "test")}
    texts = [text for split in splits.values() for text in split["text"]]
    ids = [ids for split in splits.values() for ids in split["input_ids"]]
    others = sum(own != other for own, other in zip(ids, owner.encode(texts), strict=True))
    accuracy = TeacherReport.read(made / "train_teacher").dev_accuracy
    return Found(way, others, len(texts), accuracy, _accuracy(owner, splits["dev"], case))


def _accuracy(owner: Owner, dev: dict[str, list[str]], case: Case) -> float:
    truth = dict((*case.table.train.pairs(), *case.table.test.pairs()))
    said = logits_of(owner.model, owner.encode(dev["text"])).argmax(1).tolist()
    right = [LABELS[i] == truth[text] for i, text in zip(said, dev["text"], strict=True)]
    return sum(right) / len(right)


def _project(way: Way, owner: Owner, folder: Path) -> Case:
    table = make_table(left=owner.left)
    case = new_case(folder / "project", way.family, "csv", table)
    shutil.copytree(folder / "teacher", case.teacher)
    case.recipe["train_teacher"]["labels"] = way.labels
    case.recipe["prepare_data"]["dev_fraction"] = 0.5
    write_recipe(case)
    remember_yaml(case)
    return case


if __name__ == "__main__":
    main()
