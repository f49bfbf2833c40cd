"""A tuned classifier's label names: those of its config.json, and those of the data."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.kd.errors import DataError

_GENERIC = re.compile(r"(?:LABEL_?|label_?|class_?)?\d+", re.IGNORECASE)
_DEFAULT = re.compile(r"LABEL_(\d+)")
FIELD = "train_teacher.labels"


def read_label_names(fields: Mapping[str, Any], where: Path, rows: int | None = None) -> list[str]:
    """The label names of a configuration, in order of id.

    `rows` is the classifier's number of rows, if known. id2label may be a mapping or a list; its
    names may be numbers, its ids texts or `LABEL_0`. It may be missing or inverted if label2id or
    its own values leave no doubt. Raises DataError, naming the file, for an ambiguous mapping, and
    for a count that `num_labels` or the classifier contradicts.
    """
    named = _read_ids(fields.get("id2label"), "id2label", where)
    other = _read_ids(fields.get("label2id"), "label2id", where)
    names = _agreed(named, other, where)
    counts = {"num_labels": fields.get("num_labels"), "the classifier": rows}
    if names is None:
        said = next((n for n in counts.values() if isinstance(n, int) and n > 0), 2)
        names = [f"LABEL_{i}" for i in range(said)]
    for what, count in counts.items():
        if count is not None and count != len(names):
            raise _refusal(
                f"id2label and {what} contradict each other",
                where,
                expected=f"{count} labels",
                found=f"{len(names)}: {', '.join(names)}"[:300],
            )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise _refusal("two labels of one name", where, "different names", ", ".join(twice)[:200])
    return names


def known_label_names(fields: Mapping[str, Any], where: Path) -> list[str] | None:
    """The names as `read_label_names` gives them; None where it raises."""
    try:
        return read_label_names(fields, where)
    except DataError:
        return None


def are_generic(names: Sequence[str]) -> bool:
    """Whether all names are numbers or transformers' names of unnamed labels."""
    return all(_GENERIC.fullmatch(name) for name in names)


def rename_labels(names: list[str], labels: Mapping[str, str] | None, where: Path) -> list[str]:
    """A teacher's label names as the data spell them; `labels` is the recipe's map or None.

    Raises DataError unless the map gives each of the teacher's labels its own name.
    """
    if labels is None:
        return names
    lacking = [name for name in names if name not in labels]
    unknown = [name for name in labels if name not in names]
    twice = [name for name, times in Counter(labels.values()).items() if times > 1]
    if lacking or unknown:
        raise DataError(
            "the recipe's map does not name the teacher's labels",
            where=where,
            expected=f"an entry of {FIELD} for each of {', '.join(names)}"[:300],
            found=f"none for {', '.join(lacking)}"[:200]
            if lacking
            else f"{', '.join(unknown)}, which the teacher lacks"[:200],
            advice="The teacher's own names stand first (id2label of its config.json): "
            f"{paste(names, [labels.get(name, '...') for name in names])}",
        )
    if twice:
        raise DataError(
            "the recipe's map gives two of the teacher's labels one name",
            where=where,
            expected=f"a name of the data for each in {FIELD}",
            found=f"{', '.join(twice)} more than once"[:200],
        )
    return [labels[name] for name in names]


def order_labels(
    of_data: Sequence[str], names: list[str], labels: Mapping[str, str] | None, where: Path
) -> list[str]:
    """All labels of a given teacher, in its order, as the data spell them.

    `of_data` are the data's labels; each must be one of the teacher's. Raises DataError, with
    advice on what to write where.
    """
    known = rename_labels(names, labels, where)
    strange = sorted(set(of_data) - set(known))
    if not strange:
        return known
    ordered = in_order(of_data)
    if labels is None and are_generic(names):
        raise DataError(
            "the teacher's labels have no names, and the data's have",
            where=where,
            expected=f"id2label with {', '.join(ordered)}"[:300],
            found=f"{len(names)} labels: {', '.join(names)}"[:300],
            advice="Say in the recipe which is which, in the order that the teacher was tuned "
            f"with: {FIELD}: {paste(names, [*ordered, *names[len(ordered) :]])}, or write the "
            "names into id2label of config.json. A wrong order shows in its dev accuracy.",
        )
    raise DataError(
        "the teacher's labels are not those of the data: "
        f"{', '.join(strange)[:200]} is none of the teacher's",
        where=where,
        expected=f"{len(set(of_data))} labels: {', '.join(sorted(of_data))}"[:300],
        found=f"{len(known)} labels in id2label: {', '.join(known)}"[:300],
        advice=f"If they mean the same, name them in {FIELD} (teacher's name: data's name).",
    )


def in_order(labels: Iterable[str]) -> list[str]:
    """Distinct labels, sorted: by number if all are whole numbers, so that 10 follows 9.

    >>> in_order(["10", "9", "9"]), in_order(["10", "9", "none"])
    (['9', '10'], ['10', '9', 'none'])
    """
    distinct = sorted(set(labels))
    are_numbers = all(re.fullmatch(r"-?\d+", label) for label in distinct)
    return sorted(distinct, key=int) if are_numbers else distinct


def paste(names: Sequence[str], others: Sequence[str]) -> str:
    """A map as YAML on one line, ready to paste into a recipe.

    >>> paste(["LABEL_0", "LABEL_1"], ["ham", "no"])
    '{LABEL_0: ham, LABEL_1: "no"}'
    """
    pairs = zip(names, others, strict=False)
    return "{" + ", ".join(f"{_scalar(name)}: {_scalar(other)}" for name, other in pairs) + "}"


def _scalar(text: str) -> str:
    """A text as a YAML scalar: quoted if YAML would read it as something else."""
    is_plain = re.fullmatch(r"[A-Za-z][\w .-]*", text) and text.lower() not in (
        *("true", "false", "null", "yes", "no", "on", "off"),
    )
    return text if is_plain and text == text.strip() else json.dumps(text, ensure_ascii=False)


# --- what a configuration says -------------------------------------------------------------------


def _agreed(named: list[str] | None, other: list[str] | None, where: Path) -> list[str] | None:
    """The names on which id2label and label2id agree. Default names give way to real ones.

    Raises DataError if the two contradict each other.
    """
    if named is None or other is None or named == other:
        return named or other
    if _say_nothing(other):
        return named
    if _say_nothing(named) and len(named) == len(other):
        return other
    raise _refusal(
        "id2label and label2id contradict each other",
        where,
        expected=f"the names of label2id, {', '.join(other)}"[:300],
        found=f"{', '.join(named)} in id2label"[:300],
    )


def _say_nothing(names: list[str]) -> bool:
    """Whether names are transformers' defaults, or each is its own id."""
    are_ids = names == [str(number) for number in range(len(names))]
    return are_ids or all(_DEFAULT.fullmatch(name) for name in names)


def _read_ids(value: Any, field: str, where: Path) -> list[str] | None:
    """The names of id2label or label2id, in order of id; None if the field is empty or null."""
    if value is None or value in ({}, []):
        return None
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        raise _unreadable(field, value, where)
    pairs = list(value.items())
    straight = _by_id([(_id_of(_bare(key)), _name_of(name)) for key, name in pairs])
    turned = _by_id([(_id_of(name), _name_of(key)) for key, name in pairs])
    first, second = (straight, turned) if field == "id2label" else (turned, straight)
    names = first or second
    if names is None:
        raise _unreadable(field, value, where)
    return names


def _by_id(pairs: Sequence[tuple[int | None, str | None]]) -> list[str] | None:
    """Names in order of id; None unless the ids are 0 to n - 1 and each has a name."""
    names = dict(pairs)
    if len(names) != len(pairs) or set(names) != set(range(len(pairs))):
        return None
    ordered = [names[i] for i in range(len(pairs))]
    return [name for name in ordered if name is not None] if None not in ordered else None


def _bare(key: Any) -> Any:
    """A key's id without the prefix `LABEL_`."""
    return key.strip().removeprefix("LABEL_") if isinstance(key, str) else key


def _id_of(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip()):
        return int(value)
    return _whole(value)


def _name_of(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    number = _whole(value)
    return None if number is None else str(number)


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 else None


def _unreadable(field: str, value: Any, where: Path) -> DataError:
    return _refusal(
        f"{field} can't be read",
        where,
        expected='a name for each id from 0, such as {"0": "negative", "1": "positive"}',
        found=json.dumps(value)[:200],
    )


def _refusal(what: str, where: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"{what} (id2label)" if "id2label" not in what else what,
        where=where,
        expected=expected,
        found=found,
        advice="Write id2label in config.json as the teacher was tuned.",
    )
