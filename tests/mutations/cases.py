"""What a mutation is given to change, and what it must state of the answer that is right."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.mutations.task import LABELS, Table

Verdict = Literal["harmless", "either", "fatal"]
View = Literal["good", "folder"]
FAMILIES = (
    *("bert", "roberta", "distilbert", "electra", "mpnet", "deberta-v2", "xlm-roberta"),
    "modernbert",
)
FORMATS = ("csv", "tsv", "jsonl", "parquet")
_STRICTNESS: tuple[Verdict, ...] = ("harmless", "either", "fatal")


@dataclass(frozen=True)
class Expected:
    """What the product must do with a mutated input.

    harmless: right figures. fatal: exit 2. either: the one or the other. A refusal's message must
    match one of `says`. Figures are right if rows, tokens, labels and accuracy are those of the
    owner, whose tokens and weights are the good ones or what the mutated folder holds.
    """

    verdict: Verdict
    says: tuple[str, ...] = ()
    tokens: View = "good"
    weights: View = "good"
    names: tuple[str, ...] = LABELS  # what the teacher's numbers are called in the data
    table: Table | None = None  # the rows, where they are not those of the good table
    or_else: Table | None = None  # the rows in another spelling that is as good
    sampled: bool = False  # some of the training rows will do

    def and_also(self, other: Expected) -> Expected:
        """What must be of an input that both mutations changed."""
        return Expected(
            max(self.verdict, other.verdict, key=_STRICTNESS.index),
            (*self.says, *other.says),
            "folder" if "folder" in (self.tokens, other.tokens) else "good",
            "folder" if "folder" in (self.weights, other.weights) else "good",
            self.names if self.names != LABELS else other.names,
            self.table or other.table,
            self.or_else or other.or_else,
            self.sampled or other.sampled,
        )


def harmless(*says: str, **more: Any) -> Expected:
    return Expected("harmless", says, **more)


def either(*says: str, **more: Any) -> Expected:
    return Expected("either", says, **more)


def fatal(*says: str, **more: Any) -> Expected:
    return Expected("fatal", says, **more)


@dataclass
class Case:
    """A small project with one good teacher and one good table, for a mutation to change."""

    root: Path
    family: str
    format: str
    table: Table
    recipe: dict[str, Any]
    models: Path  # the good teachers of all families
    random: np.random.Generator

    @property
    def teacher(self) -> Path:
        return self.root / "models" / "given"

    def split(self, name: str) -> Path:
        return self.root / "data" / f"{name}.{self.format}"

    def one_of(self, values: Any) -> Any:
        """A seeded choice."""
        values = list(values)
        return values[int(self.random.integers(len(values)))]

    def read_json(self, name: str) -> Any:
        return json.loads((self.teacher / name).read_text(encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.teacher / name, value)

    def change_json(self, name: str, **fields: Any) -> None:
        """Set fields of one of the teacher's files."""
        self.write_json(name, self.read_json(name) | fields)


Change = Callable[[Case], Expected]


@dataclass(frozen=True)
class Mutation:
    """A way to change a case. `needs`: of what it can be made, by family or format."""

    kind: str
    name: str
    apply: Change
    needs: tuple[str, ...] = ()

    def fits(self, family: str, table: str) -> bool:
        families = [x for x in self.needs if x in FAMILIES]
        formats = [x for x in self.needs if x in FORMATS]
        return (not families or family in families) and (not formats or table in formats)

    def of(self, *needs: str) -> Mutation:
        return replace(self, needs=needs)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def write_yaml(path: Path, value: Any) -> None:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(value, stream)
    path.write_text(stream.getvalue(), encoding="utf-8")
