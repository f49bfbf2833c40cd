"""Drawing cases: which mutation of which teacher and table the n-th case of a seed is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tests.mutations import (
    cells,
    configs,
    files,
    labels,
    recipes,
    rows,
    sources,
    splits,
    tables,
    tokenizer_settings,
    tokenizers_json,
    vocabulary_entries,
    weight_files,
    weights,
)
from tests.mutations.cases import FAMILIES, FORMATS, Mutation

ON_TEACHERS = (
    *(files, configs, labels, weights, weight_files),
    *(tokenizers_json, vocabulary_entries, tokenizer_settings),
)
ON_DATA = (tables, sources, splits, rows, cells, recipes)
TWO = 0.1  # share of the cases with two mutations
# What says how labels are called, for teacher and data together.
_ALONE = ("id2label", "train_teacher.labels", "label numbers", "label spelling")


@dataclass(frozen=True)
class Drawn:
    """One case, before it is made."""

    number: int
    seed: int
    family: str
    format: str
    mutations: tuple[Mutation, ...]

    @property
    def title(self) -> str:
        each = (f"{mutation.kind}: {mutation.name}" for mutation in self.mutations)
        return f"{self.family}, {self.format}: {' + '.join(each)}"

    @property
    def kind(self) -> str:
        return self.mutations[0].kind if len(self.mutations) == 1 else "two mutations"

    def generator(self) -> np.random.Generator:
        """For the choices that the mutations make."""
        return np.random.default_rng([self.seed, self.number])


def draw(count: int, seed: int, *, families: Sequence[str] = FAMILIES) -> list[Drawn]:
    """So many different cases, the kinds in turn as far as they reach; the same for a seed."""
    random = np.random.default_rng(seed)
    queues = {
        kind: _shuffled(found, random) for kind, found in _by_kind(ON_TEACHERS, ON_DATA).items()
    }
    drawn: dict[str, Drawn] = {}
    while len(drawn) < count:
        for queue in queues.values():
            chosen: tuple[Mutation, ...] = (queue[0],)
            queue.append(queue.pop(0))
            if random.random() < TWO:
                chosen = _two(random)
            case = _place(len(drawn), seed, chosen, families, random)
            if case is not None and len(drawn) < count:
                drawn.setdefault(case.title, case)
    return list(drawn.values())


@cache
def _by_kind(*rooms: tuple[object, ...]) -> dict[str, list[Mutation]]:
    kinds: dict[str, list[Mutation]] = defaultdict(list)
    for room in (module for modules in rooms for module in modules):
        for mutation in room.mutations():  # type: ignore[attr-defined]
            kinds[mutation.kind].append(mutation)
    return kinds


def _shuffled(found: list[Mutation], random: np.random.Generator) -> list[Mutation]:
    return [found[i] for i in random.permutation(len(found))]


def _two(random: np.random.Generator) -> tuple[Mutation, ...]:
    """One of the teacher, one of the data."""
    pair = []
    for rooms in (ON_TEACHERS, ON_DATA):
        kinds = [found for kind, found in _by_kind(rooms).items() if kind not in _ALONE]
        kind = kinds[int(random.integers(len(kinds)))]
        pair.append(kind[int(random.integers(len(kind)))])
    return tuple(pair)


def _place(
    number: int,
    seed: int,
    chosen: tuple[Mutation, ...],
    families: Sequence[str],
    random: np.random.Generator,
) -> Drawn | None:
    """A family and a format that the mutations are made for, or None if there are none such."""
    places = [
        (family, table)
        for family in families
        for table in FORMATS
        if all(mutation.fits(family, table) for mutation in chosen)
    ]
    if not places:
        return None
    family, table = places[int(random.integers(len(places)))]
    return Drawn(number, seed, family, table, chosen)
