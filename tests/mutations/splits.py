"""Mutations of what stands in which split, and of how labels are spelt there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

from tests.mutations.cases import Case, Change, Expected, Mutation, either, fatal, harmless
from tests.mutations.labels import rename
from tests.mutations.task import LABELS, Rows, Table
from tests.mutations.written import write_table


def mutations() -> Iterator[Mutation]:
    for name, spell in _SPELLINGS.items():
        for where in ("everywhere", "train", "test"):
            yield Mutation("label spelling", f"{name}, {where}", _spelling(spell, where))
    for name, split in _SPLITS.items():
        yield Mutation("splits", name, split)


# --- labels --------------------------------------------------------------------------------------

_SPELLINGS: dict[str, Callable[[str], str]] = {
    "in capitals": str.upper,
    "a capital first": str.capitalize,
    "blanks around": lambda label: f"  {label} ",
    "a tab before": lambda label: f"\t{label}",
    "a hard blank behind": lambda label: f"{label}\u00a0",
    "a zero-width blank behind": lambda label: f"{label}\u200b",
    "quoted": lambda label: f'"{label}"',
    "in brackets": lambda label: f"['{label}']",
    "with its number": lambda label: f"{LABELS.index(label)}: {label}",
    "as numbers": lambda label: str(LABELS.index(label)),
    "as numbers with a point": lambda label: f"{LABELS.index(label)}.0",
    "as LABEL_": lambda label: f"LABEL_{LABELS.index(label)}",
    "another language": lambda label: {"billing": "Rechnung", "delivery": "Lieferung"}.get(
        label, "Zugang"
    ),
}


def _spelling(spell: Callable[[str], str], where: str) -> Change:
    def apply(case: Case) -> Expected:
        names = {label: spell(label) for label in LABELS}
        if case.format == "tsv" and any("\t" in name for name in names.values()):
            return harmless()  # cells of a tsv have no tabs
        good = case.table
        spelt = rename(case, names)
        table = Table(
            good.train if where == "test" else spelt.train,
            good.test if where == "train" else spelt.test,
        )
        case.table = good
        write_table(case.root / "data", case.format, table)
        if all(name.strip() == label for label, name in names.items()):
            return harmless()
        return fatal("label")

    return apply


# --- splits --------------------------------------------------------------------------------------


def _swapped(case: Case) -> Expected:
    train, test = case.split("train"), case.split("test")
    other = train.with_name("other")
    train.rename(other)
    test.rename(train)
    other.rename(test)
    return harmless(table=Table(case.table.test, case.table.train))


def _equal(case: Case) -> Expected:
    shutil.copyfile(case.split("train"), case.split("test"))
    return fatal("on_overlap", "test split", "train", "min_train_examples")


def _rewritten(case: Case, table: Table, expected: Callable[..., Expected], *says: str) -> Expected:
    write_table(case.root / "data", case.format, table)
    return expected(*says, table=table)


def _keep(rows: Rows, wanted: Callable[[int, str, str], bool]) -> Rows:
    kept = [pair for i, pair in enumerate(rows.pairs()) if wanted(i, *pair)]
    return Rows(tuple(text for text, _ in kept), tuple(label for _, label in kept))


def _plus(rows: Rows, more: list[tuple[str, str]]) -> Rows:
    pairs = [*rows.pairs(), *more]
    return Rows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))


def _overlapping(mode: str) -> Change:
    def apply(case: Case) -> Expected:
        case.recipe["prepare_data"]["on_overlap"] = mode
        train = _plus(case.table.train, case.table.test.pairs()[:9])
        expected = fatal if mode == "refuse" else harmless
        return _rewritten(case, Table(train, case.table.test), expected, "on_overlap")

    return apply


def _few(count: int) -> Change:
    def apply(case: Case) -> Expected:
        train = _keep(case.table.train, lambda i, text, label: i < count)
        expected = fatal if count < 30 else harmless
        return _rewritten(case, Table(train, case.table.test), expected, "min_train_examples")

    return apply


def _without(split: str) -> Change:
    def apply(case: Case) -> Expected:
        label = case.one_of(LABELS)
        rows = _keep(getattr(case.table, split), lambda i, text, found: found != label)
        table = Table(rows, case.table.test) if split == "train" else Table(case.table.train, rows)
        if split == "test":
            return _rewritten(case, table, harmless)
        return _rewritten(case, table, either, "label")  # the test split has it still

    return apply


def _without_in_both(case: Case) -> Expected:
    """The teacher knows the class: kept, with a warning."""
    label = case.one_of(LABELS)
    rows = [
        _keep(x, lambda i, text, found: found != label) for x in (case.table.train, case.table.test)
    ]
    return _rewritten(case, Table(*rows), either, "label")


def _one_label(case: Case) -> Expected:
    rows = [
        _keep(x, lambda i, text, found: found == "login")
        for x in (case.table.train, case.table.test)
    ]
    return _rewritten(case, Table(*rows), either, "label")


def _more_label(split: str) -> Change:
    def apply(case: Case) -> Expected:
        rows = _plus(
            getattr(case.table, split), [(f"sudden desk {i}", "returns") for i in range(4)]
        )
        table = Table(rows, case.table.test) if split == "train" else Table(case.table.train, rows)
        return _rewritten(case, table, fatal, "label")

    return apply


def _repeated(case: Case) -> Expected:
    train = _plus(case.table.train, case.table.train.pairs()[:20])
    return _rewritten(case, Table(train, case.table.test), harmless)


def _contradicting(case: Case) -> Expected:
    more = [
        (text, "login" if label != "login" else "billing")
        for text, label in case.table.train.pairs()[:9]
    ]
    return _rewritten(case, Table(_plus(case.table.train, more), case.table.test), harmless)


def _linked_out(case: Case) -> Expected:
    path = case.split("train")
    outside = case.root.with_name(f"{case.root.name}-outside.{case.format}")
    path.rename(outside)
    path.symlink_to(outside)
    return fatal(r"train\.", "outside", "link")


_SPLITS: dict[str, Change] = {
    "exchanged": _swapped,
    "equal": _equal,
    "overlap, dropped": _overlapping("drop_from_train"),
    "overlap, refused": _overlapping("refuse"),
    "40 rows": _few(40),
    "12 rows": _few(12),
    "2 rows": _few(2),
    "a class without training rows": _without("train"),
    "a class without test rows": _without("test"),
    "a class without rows": _without_in_both,
    "one class": _one_label,
    "a class more in train": _more_label("train"),
    "a class more in test": _more_label("test"),
    "rows repeated": _repeated,
    "rows that contradict": _contradicting,
    "a link that leads out": _linked_out,
}
