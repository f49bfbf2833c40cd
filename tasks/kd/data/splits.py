"""A recipe's two raw splits: read, freed of repeats and described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.kd.data.formats import Columns, Part
from tasks.kd.data.formats.cells import list_names, spell_label
from tasks.kd.data.tables import Rows, Table, drop_repeats, find_similar_labels, read_table
from tasks.kd.encoders.files.folder import read_config
from tasks.kd.encoders.files.label_names import read_label_names
from tasks.kd.errors import DataError
from tasks.kd.recipe.sections import PrepareData
from tasks.kd.recipe.sources import FileFormat

FEW_ROWS = 5
_REASONS = {"in_test_split": "in the test split"}  # the other reasons read as they are


@dataclass(frozen=True)
class RawSplits:
    """The usable rows of both splits, and the tables that they were read from."""

    train: Rows
    test: Rows
    tables: dict[str, Table]
    dropped: dict[str, int]  # of the training split: reason to rows

    def describe_losses(self) -> str:
        """A sentence about rows left out or changed; empty if all rows are used as they were."""
        left_out = {"train": self.dropped, "test": self.tables["test"].dropped}
        told = [
            f"left out of {split}: {words}"
            for split, reasons in left_out.items()
            if (words := _describe(reasons))
        ]
        told += [
            f"U+FFFD put into {table.replaced} texts of {split}"
            for split, table in self.tables.items()
            if table.replaced
        ]
        return "; ".join(told)

    def require_enough(self, least: int) -> None:
        """Raise DataError if the training file has fewer than `least` usable rows."""
        read = len(self.tables["train"].rows)
        if self.dropped["in_test_split"] == read:
            raise DataError(
                "all training texts are in the test split as well",
                where="fetch_sources.data.train",
                expected="texts that are not in the test split",
                found=f"{read} of {read} rows in both",
                advice="Name another training file: what is tested on must not be learnt.",
            )
        if len(self.train) < least:
            losses = _describe(self.dropped)
            raise DataError(
                "the training file has fewer usable rows than it must have",
                where="prepare_data.min_train_examples",
                expected=f"at least {least}",
                found=f"{len(self.train)} of {read} rows read"
                + (f", left out: {losses}" if losses else ""),
                advice="Mend the file, or lower the number if so few are right.",
            )

    def list_warnings(self) -> list[str]:
        """A sentence for each oddity that does not stop the run."""
        labels = {*self.tables["train"].rows.labels, *self.tables["test"].rows.labels}
        of_tables = [warning for table in self.tables.values() for warning in table.warnings]
        return [*of_tables, *find_similar_labels(labels)]


def read_splits(
    parts: Mapping[str, Sequence[Part]], layout: FileFormat, params: PrepareData, teacher: Path
) -> RawSplits:
    """The rows of `train` and `test`, with labels spelled as the tuned teacher spells them.

    Raises DataError for a table that is not as the recipe says.
    """
    columns = Columns(params.text_column, params.label_column)
    tables = {
        split: read_table(parts[split], layout, columns, on_unreadable=params.on_unreadable)
        for split in ("train", "test")
    }
    spelled = _teacher_spellings(teacher)
    train, test = (tables[split].rows.rename(spelled) for split in ("train", "test"))
    kept, dropped = drop_repeats(train, test, on_overlap=params.on_overlap)
    return RawSplits(kept, test, tables, {**dropped, **tables["train"].dropped})


def warn_of_classes(labels: Sequence[str], train: Rows, test: Rows) -> list[str]:
    """A sentence for the classes without test rows, and one for those with few training rows."""
    learnt, tested = Counter(train.labels), Counter(test.labels)
    untested = [label for label in labels if not tested[label]]
    rare = [f"{label} ({learnt[label]})" for label in labels if 0 < learnt[label] < FEW_ROWS]
    told = []
    if untested:
        told.append(f"classes without test rows: {list_names(untested)}")
    if rare:
        told.append(f"classes with fewer than {FEW_ROWS} training rows: {list_names(rare)}")
    return told


def _describe(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {_REASONS.get(reason, reason)}" for reason, n in reasons.items() if n)


def _teacher_spellings(teacher: Path) -> dict[str, str]:
    """Map each label's one spelling to the teacher's own, such as `True` or `1.0`."""
    try:
        names = read_label_names(read_config(teacher), teacher / "config.json")
    except DataError:  # the code that needs the names reports what is wrong with them
        return {}
    own = {spell_label(name): name for name in names}
    return own if len(own) == len(names) else {}
