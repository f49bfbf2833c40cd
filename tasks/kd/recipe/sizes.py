"""Rules of a recipe about depths, widths and heads: what the student takes must fit the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tasks.kd.recipe.faults import Fault, Place
from tasks.kd.recipe.levels import LayerLevel
from tasks.kd.recipe.maps import chosen
from tasks.kd.recipe.matching import match
from tasks.kd.recipe.streams import layer_of
from tasks.kd.recipe.student import InitialRandom, InitialTeacherLayers, InitialWidthReduction
from tasks.kd.recipe.training import CacheTeacher, TrainStudent, TrainTeacher

STUDENT: Place = ("train_student", "student")
INITIAL: Place = (*STUDENT, "initial")
PHASES: Place = ("train_student", "phases")
STREAMS: Place = ("cache_teacher", "streams")


def _matched_layers_are_there(
    train_teacher: TrainTeacher, train_student: TrainStudent
) -> Iterator[Fault]:
    for place, level in _placed(train_student):
        try:
            match(level, train_student.student.layers, train_teacher.layers)
        except ValueError as error:
            yield Fault((*place, "layer_map"), str(error))


def _streams_are_there(train_teacher: TrainTeacher, cache_teacher: CacheTeacher) -> Iterator[Fault]:
    """The teacher has the streams, and each is named once."""
    streams = cache_teacher.streams
    for number, stream in enumerate(streams):
        if stream in streams[:number]:
            yield Fault((*STREAMS, number), f"names a stream twice: {stream}")
        elif layer_of(stream) > train_teacher.layers:
            yield Fault(
                (*STREAMS, number), f"{stream}, but the teacher has {train_teacher.layers} layers"
            )


# --- the teacher's weights in the student ---------------------------------------------------------


def _the_teacher_s_weights_fit(
    train_teacher: TrainTeacher, train_student: TrainStudent
) -> Iterator[Fault]:
    """What is copied, narrowed or projected from the teacher is at least as large there."""
    student = train_student.student
    initial, own, theirs = student.initial, student.hidden_size, train_teacher.hidden_size
    if isinstance(initial, InitialRandom):
        if initial.embeddings == "pca" and own > theirs:
            yield Fault(
                (*INITIAL, "embeddings"),
                f"embeddings of width {theirs} have no {own} principal components; use "
                "`embeddings: new` or a hidden_size up to theirs",
            )
    elif isinstance(initial, InitialTeacherLayers | InitialWidthReduction):
        yield from _size_faults(train_teacher, train_student)
        try:
            chosen(initial.layers, student.layers, train_teacher.layers)
        except ValueError as error:
            yield Fault((*INITIAL, "layers"), str(error))


def _size_faults(teacher: TrainTeacher, train_student: TrainStudent) -> Iterator[Fault]:
    student = train_student.student
    for name in ("hidden_size", "attention_heads", "intermediate_size"):
        own, theirs = getattr(student, name), getattr(teacher, name)
        if isinstance(student.initial, InitialTeacherLayers) and own != theirs:
            yield Fault(
                (*STUDENT, name),
                f"layers can be copied from the teacher only at its {name} {theirs}, found {own}",
            )
        elif own > theirs:
            yield Fault((*STUDENT, name), f"{own} can't be reduced from the teacher's {theirs}")
    own, theirs = (m.hidden_size // m.attention_heads for m in (student, teacher))
    if isinstance(student.initial, InitialWidthReduction) and own > theirs:
        yield Fault(
            (*STUDENT, "attention_heads"),
            f"attention heads {own} wide can't be reduced from the teacher's, {theirs} wide; use "
            "more heads or a smaller hidden_size",
        )


# --- levels between widths and heads -------------------------------------------------------------


def _projections_stand_where_widths_differ(
    train_teacher: TrainTeacher, train_student: TrainStudent
) -> Iterator[Fault]:
    own, theirs = train_student.student.hidden_size, train_teacher.hidden_size
    for place, level in _placed(train_student):
        if own != theirs and getattr(level, "projection", "") == "none":
            yield Fault(
                (*place, "projection"), f"from width {own} to {theirs} needs `projection: linear`"
            )


def _relation_heads_divide_both_widths(
    train_teacher: TrainTeacher, train_student: TrainStudent
) -> Iterator[Fault]:
    widths = {"student": train_student.student.hidden_size, "teacher": train_teacher.hidden_size}
    for place, level in _placed(train_student):
        heads = getattr(level, "relation_heads", 1)
        for whose, width in widths.items():
            if width % heads:
                yield Fault(
                    (*place, "relation_heads"),
                    f"{heads} does not divide the {whose}'s width {width}",
                )


def _heads_that_are_compared_are_as_many(
    train_teacher: TrainTeacher, train_student: TrainStudent
) -> Iterator[Fault]:
    own, theirs = train_student.student.attention_heads, train_teacher.attention_heads
    for place, level in _placed(train_student):
        if own != theirs and getattr(level, "heads", "") == "each":
            yield Fault(
                (*place, "heads"),
                f"`each` needs equal attention_heads, the student has {own} and the teacher "
                f"{theirs}; set `average`, or use the relation level",
            )


def _placed(train_student: TrainStudent) -> Iterator[tuple[Place, LayerLevel]]:
    """All levels that compare layers, each with its place."""
    for number, phase in enumerate(train_student.phases):
        for at, level in enumerate(phase.levels):
            if isinstance(level, LayerLevel):
                yield (*PHASES, number, "levels", at), level


SIZE_RULES: tuple[Callable[..., Iterator[Fault]], ...] = (
    _matched_layers_are_there,
    _streams_are_there,
    _the_teacher_s_weights_fit,
    _projections_stand_where_widths_differ,
    _relation_heads_divide_both_widths,
    _heads_that_are_compared_are_as_many,
)
