"""The product's figures held against the owner's: rows, token ids, labels, accuracy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.training import TeacherReport
from tests.mutations.cases import Case, Expected
from tests.mutations.owner import Ids, model_of, tokens_of
from tests.mutations.task import Rows, Table
from tests.mutations.teachers import logits_of

Split = dict[str, list[Any]]


def find_difference(case: Case, expected: Expected, model: Any) -> str:
    """What is not as the owner sees it, in a line; empty if all is."""
    made = case.root / "artifacts" / "given"
    labels = DataCard.read(made / "prepare_data").labels
    splits = {name: read_split(made / "prepare_data" / f"{name}.arrow") for name in _NAMES}
    for split in splits.values():
        split["name"] = [labels[i] for i in split["label"]]
    tables = [usable(expected.table or case.table)]
    if expected.or_else is not None:
        tables.append(usable(expected.or_else))
    return (
        _different_labels(list(labels), expected)
        or min(
            (_different_rows(splits, table, sampled=expected.sampled) for table in tables), key=len
        )
        or _different_tokens(splits, case, expected)
        or _different_accuracy(made, splits["dev"], case, expected, model)
    )


_NAMES = ("train", "dev", "test")


def usable(table: Table) -> Table:
    """Training rows as a careful reader keeps them: once each, none of the test split."""
    labels: dict[str, set[str]] = {}
    for text, label in table.train.pairs():
        labels.setdefault(text, set()).add(label)
    kept = [text for text in labels if len(labels[text]) == 1 and text not in table.test.texts]
    return Table(Rows(tuple(kept), tuple(next(iter(labels[text])) for text in kept)), table.test)


def _different_labels(found: list[str], expected: Expected) -> str:
    names = list(expected.names)
    return "" if found == names else f"labels {found} instead of {names}"


def _different_rows(splits: dict[str, Split], table: Table, *, sampled: bool) -> str:
    """Both training splits together, and the test split, have each row as often as the table."""
    of = {
        name: Counter(zip(split["text"], split["name"], strict=True))
        for name, split in splits.items()
    }
    for name, found, rows in (
        ("train", of["train"] + of["dev"], table.train),
        ("test", of["test"], table.test),
    ):
        wanted = Counter(rows.pairs())
        more, less = found - wanted, wanted - found
        if more or (less and not (sampled and name == "train")):
            return (
                f"{name}: {more.total()} rows that should not be there ({_first(more)}), "
                f"{less.total()} missing ({_first(less)})"
            )
    return ""


def _first(rows: Counter[tuple[str, str]]) -> str:
    return repr(next(iter(rows), None))[:120]


def _different_tokens(splits: dict[str, Split], case: Case, expected: Expected) -> str:
    texts = [text for split in splits.values() for text in split["text"]]
    found = [ids for split in splits.values() for ids in split["input_ids"]]
    try:
        views = owners_tokens(case, expected, texts)
    except Exception as error:  # noqa: BLE001 - what the library raises
        return f"read, though the owner's library refuses it: {error}"
    if any(found == view for view in views):
        return ""
    wrong = [i for i, ids in enumerate(found) if ids != views[0][i]]
    first = wrong[0]
    return (
        f"{len(wrong)} of {len(texts)} texts have other tokens: {texts[first]!r} is "
        f"{found[first]} instead of {views[0][first]}"
    )


def owners_tokens(case: Case, expected: Expected, texts: list[str]) -> list[Ids]:
    """The ids that count as right."""
    folder = case.teacher if expected.tokens == "folder" else case.models / case.family
    return tokens_of(folder, texts, case.recipe["prepare_data"]["max_length_tokens"])


def _different_accuracy(made: Path, dev: Split, case: Case, expected: Expected, model: Any) -> str:
    accuracy = TeacherReport.read(made / "train_teacher").dev_accuracy
    if expected.weights == "folder":
        model = model_of(case.teacher)
    answers = []
    for ids in owners_tokens(case, expected, dev["text"]):
        said = logits_of(model, ids).argmax(1).tolist()
        right = [expected.names[i] == name for i, name in zip(said, dev["name"], strict=True)]
        answers.append(sum(right) / len(right))
    if any(abs(accuracy - answer) < 1e-9 for answer in answers):
        return ""
    return f"dev accuracy {accuracy:.4f} instead of {answers[0]:.4f}"


def read_split(path: Path) -> Split:
    with pa.memory_map(str(path)) as file:
        columns: Split = pa.ipc.open_file(file).read_all().to_pydict()
    labelled = [i for i, label in enumerate(columns["label"]) if label >= 0]
    return {name: [values[i] for i in labelled] for name, values in columns.items()}
