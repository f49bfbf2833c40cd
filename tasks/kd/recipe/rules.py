"""What must hold between the sections of a recipe.

A rule is a function that yields the faults it finds, each with its field. Its arguments are named
after the sections that it needs, so that it can run although other sections are wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping

from tasks.kd.encoders.files.architectures import ATTENTION_FAMILIES
from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.faults import Fault, Place
from tasks.kd.recipe.fields import Section
from tasks.kd.recipe.phases import (
    Phase,
    layer_levels,
    layers_reached,
    levels_inside_layers,
    streams_read,
)
from tasks.kd.recipe.sections import FetchSources, PrepareData
from tasks.kd.recipe.sizes import INITIAL, PHASES, SIZE_RULES, STREAMS, STUDENT
from tasks.kd.recipe.streams import in_order
from tasks.kd.recipe.student import (
    InitialCheckpoint,
    InitialRandom,
)
from tasks.kd.recipe.teachers import MAIN, WeightedLogits
from tasks.kd.recipe.training import CacheTeacher, TrainStudent, TrainTeacher

_ENSEMBLE: Place = ("train_teacher", "ensemble")


def broken_rules(sections: Mapping[str, Section]) -> Iterator[Fault]:
    """The faults that the rules find between these sections.

    A rule that needs a section which is not given is passed over.
    """
    for rule in RULES:
        names = inspect.signature(rule).parameters
        if all(name in sections for name in names):
            yield from rule(**{name: sections[name] for name in names})


# --- phases --------------------------------------------------------------------------------------


def _the_first_phase_has_no_moments(train_student: TrainStudent) -> Iterator[Fault]:
    if train_student.phases[0].optimizer == "continued":
        yield Fault(
            (*PHASES, 0, "optimizer"),
            "the first phase has no optimizer to go on with; write `anew`",
        )


def _predictions_are_taught(train_student: TrainStudent) -> Iterator[Fault]:
    """The last phase teaches predictions, and some phase that does so trains a new head."""
    phases, initial = train_student.phases, train_student.student.initial
    last = len(phases) - 1
    if phases[-1].reads_unlabelled:
        yield Fault(
            (*PHASES, last, "levels"),
            f"the last phase is judged by its predictions on dev, and {phases[-1].name} teaches "
            "none; give it a prediction level",
        )
    elif isinstance(initial, InitialRandom | InitialCheckpoint) and not any(
        phase.trains("head") for phase in phases if not phase.reads_unlabelled
    ):
        yield Fault(
            (*PHASES, last, "trained_layers"),
            f"a student of initial.kind {initial.kind} has a new head, and no phase with a "
            "prediction level trains it; name `head` here",
        )


def _trained_layers_are_taught(
    train_teacher: TrainTeacher, train_student: TrainStudent
) -> Iterator[Fault]:
    """A phase trains layers that are there, at least one of which its levels reach."""
    for number, phase in enumerate(train_student.phases):
        if phase.trained_layers != "all":
            for text in _faults_of_training(phase, train_student.student.layers, train_teacher):
                yield Fault((*PHASES, number, "trained_layers"), text)


def _faults_of_training(phase: Phase, depth: int, teacher: TrainTeacher) -> Iterator[str]:
    own = [layer for layer in phase.trained_layers if isinstance(layer, int)]
    if missing := [layer for layer in own if layer > depth]:
        yield f"{_list(missing)}, but the student has layers 0 to {depth}"
        return
    try:
        reached = layers_reached(phase, depth, teacher.layers)
    except ValueError:  # a layer that is not there: told at its level
        return
    if not any(phase.trains(layer) for layer in reached):
        yield (
            f"{phase.name} trains {_list(phase.trained_layers)}, but its levels reach the "
            f"student's layers up to {reached[-1]} alone"
        )


def _random_texts_are_read(
    prepare_data: PrepareData, train_student: TrainStudent
) -> Iterator[Fault]:
    if prepare_data.random_texts and not any(
        phase.reads_unlabelled for phase in train_student.phases
    ):
        yield Fault(
            ("prepare_data", "random_texts"),
            "only a phase without a prediction level reads them, and train_student.phases has "
            "none; write 0, or add such a phase",
        )


# --- teachers ------------------------------------------------------------------------------------


def _teachers_teach_together(
    fetch_sources: FetchSources, train_teacher: TrainTeacher
) -> Iterator[Fault]:
    """Several teachers have a rule, and the rule is about these teachers."""
    more, rule = ("fetch_sources", "more_teachers"), train_teacher.ensemble
    if MAIN in fetch_sources.more_teachers:
        yield Fault((*more, MAIN), f"{MAIN} is the name of fetch_sources.teacher")
        return
    names = {MAIN, *fetch_sources.more_teachers}
    known = f"the teachers are {', '.join(sorted(names))}"
    if rule is None:
        if len(names) > 1:
            yield Fault(more, "several teachers need a rule in train_teacher.ensemble, found null")
    elif len(names) == 1:
        yield Fault(_ENSEMBLE, "needs fetch_sources.more_teachers, found none; or write null")
    else:
        if rule.layers not in names:
            yield Fault((*_ENSEMBLE, "layers"), f"no {rule.layers}; {known}")
        if isinstance(rule, WeightedLogits) and set(rule.weights) != names:
            weights = ", ".join(sorted(rule.weights))
            yield Fault((*_ENSEMBLE, "weights"), f"of {weights or 'none'}; {known}")


# --- streams and codecs --------------------------------------------------------------------------


def _streams_are_those_read(
    train_teacher: TrainTeacher, cache_teacher: CacheTeacher, train_student: TrainStudent
) -> Iterator[Fault]:
    """The cache has what the levels read; a level that can't be matched is told elsewhere."""
    read = set[str]()
    for phase in train_student.phases:
        for level in phase.levels:
            alone = phase.model_copy(update={"levels": (level,)})
            try:
                depths = train_student.student.layers, train_teacher.layers
                read.update(streams_read((alone,), *depths))
            except ValueError:
                continue
    if missing := in_order(read - set(cache_teacher.streams)):
        yield Fault(
            STREAMS,
            f"lacks {_list(missing)}, read by a level; the levels read [{_list(in_order(read))}]",
        )


def _mixtures_are_of_fine_states(
    cache_teacher: CacheTeacher, train_student: TrainStudent
) -> Iterator[Fault]:
    if cache_teacher.mode == "live" or cache_teacher.codec in ("float32", "float16"):
        return
    if any(level.layer_map == "mixture" for level in layer_levels(train_student.phases)):
        yield Fault(
            ("cache_teacher", "codec"),
            "the states themselves weigh a mixture of layers, and int8 moved its gradients by 9 %; "
            "write float32, or float16 (1.7 %)",
        )


# --- the student's start, and the machine --------------------------------------------------------


def _a_checkpoint_has_its_source(
    fetch_sources: FetchSources, train_student: TrainStudent
) -> Iterator[Fault]:
    kind, given = train_student.student.initial.kind, fetch_sources.student
    if kind == "checkpoint" and given is None:
        yield Fault(
            (*INITIAL, "kind"),
            "a checkpoint needs its source in fetch_sources.student, found null",
        )
    if kind != "checkpoint" and given is not None:
        yield Fault(
            ("fetch_sources", "student"),
            f"a model that initial.kind {kind} makes no use of; write null here, or "
            "`kind: checkpoint` in train_student.student.initial",
        )


def _the_family_has_what_levels_read(train_student: TrainStudent) -> Iterator[Fault]:
    family = train_student.student.family
    if family in (None, *ATTENTION_FAMILIES):
        return
    if levels_inside_layers(train_student.phases):
        yield Fault(
            (*STUDENT, "family"),
            f"{family} has no attention that the levels attention and relation could read; use "
            "prediction and hidden",
        )


def _compiled_layers_are_not_looked_into(
    train_student: TrainStudent, compute: Compute
) -> Iterator[Fault]:
    if compute.compile and (inside := levels_inside_layers(train_student.phases)):
        yield Fault(
            ("compute", "compile"),
            "what a compiled layer computes inside can't be compared, and levels "
            f"{', '.join(inside)} do; write false",
        )


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


RULES: tuple[Callable[..., Iterator[Fault]], ...] = (
    *SIZE_RULES,
    _the_first_phase_has_no_moments,
    _predictions_are_taught,
    _trained_layers_are_taught,
    _random_texts_are_read,
    _teachers_teach_together,
    _streams_are_those_read,
    _mixtures_are_of_fine_states,
    _a_checkpoint_has_its_source,
    _the_family_has_what_levels_read,
    _compiled_layers_are_not_looked_into,
)
