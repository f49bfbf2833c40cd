"""A made-up task that a tiny teacher solves: which of three desks a message is for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LABELS = ("billing", "delivery", "login")
KEYS = {
    "billing": ("refund", "invoice", "charged", "Überweisung"),
    "delivery": ("parcel", "courier", "delayed", "Straßenecke"),
    "login": ("password", "account", "locked", "réinitialiser"),
}
FILLERS = (
    *(
        [
            "the",
            "my",
            "your",
            "this",
            "please",
            "still",
            "was",
            "with",
            "again",
            "number",
            "order",
            "about",
            "when",
            "from",
            "Paris",
        ]
    ),
    *(
        [
            "Hello",
            "café",
            "naïve",
            "can't",
            "won't",
            "e-mail",
            "24",
            "1999",
            "desk",
            "window",
            "yellow",
            "river",
            "signal",
            "sudden",
        ]
    ),
    *(["Thanks", "today", "yesterday", "morning", "quick", "letter"]),
)
MAX_LENGTH = 20
_LONG = 30


@dataclass(frozen=True)
class Rows:
    """Texts and label names, in order."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def pairs(self) -> list[tuple[str, str]]:
        return list(zip(self.texts, self.labels, strict=True))


@dataclass(frozen=True)
class Table:
    """The two splits of the task."""

    train: Rows
    test: Rows


def make_rows(count: int, *, seed: int, left: bool = False) -> Rows:
    """Texts with one key word each, every twelfth too long; `left`: the key is at the end."""
    random = np.random.default_rng(seed)
    texts: dict[str, str] = {}
    while len(texts) < count:
        label = LABELS[len(texts) % len(LABELS)]
        length = _LONG if len(texts) % 12 == 11 else int(random.integers(3, 9))
        words = [str(word) for word in random.choice(FILLERS, length)]
        key = str(random.choice(KEYS[label]))
        place = int(random.integers(0, 4))
        words.insert(len(words) - place if left else place, key)
        end = str(random.choice(["", ".", "!", "?"]))
        texts.setdefault(" ".join(words) + end, label)
    return Rows(tuple(texts), tuple(texts.values()))


def make_table(*, seed: int = 1, left: bool = False) -> Table:
    """Splits without a text in common."""
    rows = make_rows(180, seed=seed, left=left)
    return Table(
        Rows(rows.texts[:120], rows.labels[:120]), Rows(rows.texts[120:], rows.labels[120:])
    )
