"""Layer maps: which teacher layer a student layer is matched with. Integers in, integers out.

Layers are counted from 1; 0 is the embedding output, which both models have.
"""

from __future__ import annotations

from random import Random
from typing import Literal

Pairs = tuple[tuple[int, int], ...]
# Maps that choose: by lot each epoch, or for each example by what its states say.
ChosenMap = Literal["random", "mixture", "transport", "nearest"]


def pairs(layer_map: str | Pairs, student_layers: int, teacher_layers: int) -> Pairs:
    """The (student layer, teacher layer) pairs of a recipe's `layer_map`.

    Raises ValueError, naming the pair, for layers that are not there and for a pair named twice.
    """
    if layer_map in NAMED:
        return NAMED[str(layer_map)](student_layers, teacher_layers)
    if isinstance(layer_map, str):
        raise ValueError(f"unknown layer map {layer_map!r}")
    for student, teacher in layer_map:
        if not (0 <= student <= student_layers and 0 <= teacher <= teacher_layers):
            raise ValueError(
                f"layer map pair [{student}, {teacher}] is out of range: the student has layers "
                f"0 to {student_layers}, the teacher 0 to {teacher_layers}"
            )
        if layer_map.count((student, teacher)) > 1:
            raise ValueError(f"layer map pair [{student}, {teacher}] is named twice")
    return tuple((student, teacher) for student, teacher in layer_map)


def uniform(student_layers: int, teacher_layers: int) -> Pairs:
    """TinyBERT's map (arXiv:1909.10351, section 3.1), 0 to 0 and then evenly up to last to last.

    Differs from the authors' code, which needs depths that divide: i maps to i·L_T/L_S rounded
    half up. A student deeper than its teacher is refused, as two of its layers would share one.

    >>> uniform(4, 12)
    ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))
    """
    if not 0 < student_layers <= teacher_layers:
        raise ValueError(
            f"a student of {student_layers} layers can't be mapped onto {teacher_layers}"
        )
    return tuple(
        (i, (2 * i * teacher_layers + student_layers) // (2 * student_layers))
        for i in range(student_layers + 1)
    )


def last(student_layers: int, teacher_layers: int) -> Pairs:
    """The last layer of either."""
    return ((student_layers, teacher_layers),)


def skip(student_layers: int, teacher_layers: int) -> Pairs:
    """PKD-Skip (arXiv:1908.09355, section 3.2): uniform, without the embeddings and the last layer.

    The last layer is what the predictions see to. A student of one layer is refused.

    >>> skip(4, 12)
    ((1, 3), (2, 6), (3, 9))
    """
    if student_layers < 2:
        raise ValueError("layer map skip leaves nothing to a student of 1 layer")
    return uniform(student_layers, teacher_layers)[1:-1]


def upper_middle(student_layers: int, teacher_layers: int) -> Pairs:
    """The student's last layer and the teacher's at 7/8 of its depth, rounded half up.

    MiniLMv2 (arXiv:2012.15828, section 4.5) takes layer 21 of BERT-large's 24, and the last layer
    of a base-sized teacher (`last`).

    >>> upper_middle(6, 24)
    ((6, 21),)
    """
    return ((student_layers, (7 * teacher_layers + 4) // 8),)


def drawn(student_layers: int, teacher_layers: int, *, seed: int, epoch: int) -> Pairs:
    """RAIL-KD (arXiv:2109.10164): each epoch other teacher layers, drawn at random and in order."""
    random = Random(f"{seed} {epoch}")  # noqa: S311 - not a secret
    chosen_layers = sorted(random.sample(range(1, teacher_layers + 1), student_layers))
    return tuple(enumerate(chosen_layers, start=1))


def chosen(choice: str | tuple[int, ...], student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher layers, 1-based, that a student's layers are copied from.

    >>> chosen("uniform", 3, 12), chosen("last", 3, 12), chosen((1, 2, 12), 3, 12)
    ([4, 8, 12], [10, 11, 12], [1, 2, 12])
    """
    if student_layers > teacher_layers:
        raise ValueError(
            f"{student_layers} layers can't be taken from a teacher of {teacher_layers}"
        )
    if choice == "uniform":
        return [teacher for _, teacher in uniform(student_layers, teacher_layers)[1:]]
    if choice == "first":
        return list(range(1, student_layers + 1))
    if choice == "last":
        return list(range(teacher_layers - student_layers + 1, teacher_layers + 1))
    if isinstance(choice, str):
        raise ValueError(f"unknown choice of layers {choice!r}")
    if len(choice) != student_layers or not all(1 <= i <= teacher_layers for i in choice):
        raise ValueError(
            f"initial layers {list(choice)} must be {student_layers} numbers "
            f"from 1 to {teacher_layers}"
        )
    return list(choice)


NAMED = {"uniform": uniform, "last": last, "skip": skip, "upper_middle": upper_middle}
