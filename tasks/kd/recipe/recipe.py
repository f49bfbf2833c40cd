"""A recipe: the sections of one `params/<recipe>.yaml`, and what must hold between them.

Whatever is wrong and can be told from the file alone is told here, all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from tasks.kd.encoders.files.architectures import ATTENTION_FAMILIES
from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.fields import Section, Text
from tasks.kd.recipe.levels import RelationLevel
from tasks.kd.recipe.maps import chosen
from tasks.kd.recipe.phases import layer_levels, layers_reached, streams_read
from tasks.kd.recipe.sections import (
    EvaluateStudent,
    ExportStudent,
    FetchSources,
    Gate,
    PrepareData,
    Register,
)
from tasks.kd.recipe.streams import layer_of
from tasks.kd.recipe.student import (
    InitialCheckpoint,
    InitialRandom,
    InitialTeacherLayers,
    InitialWidthReduction,
)
from tasks.kd.recipe.teachers import MAIN, WeightedLogits
from tasks.kd.recipe.training import CacheTeacher, TrainStudent, TrainTeacher


class Recipe(Section):
    """One student, from source text to the gate."""

    description: Annotated[Text, Field(description="one line, shown by `stillhouse status`")]
    fetch_sources: FetchSources
    prepare_data: PrepareData
    train_teacher: TrainTeacher
    cache_teacher: CacheTeacher
    train_student: TrainStudent
    export_student: ExportStudent
    evaluate_student: EvaluateStudent
    register_: Annotated[Register, Field(alias="register")]
    gate: Gate
    compute: Compute

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        faults = [
            *self._phase_faults(),
            *self._text_faults(),
            *self._ensemble_faults(),
            *self._stream_faults(),
            *self._codec_faults(),
            *self._initial_faults(),
            *self._width_faults(),
            *self._compute_faults(),
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _phase_faults(self) -> Iterator[str]:
        """Phases that can't do what they are there for."""
        student, phases = self.train_student.student, self.train_student.phases
        place = "train_student.phases"
        if phases[0].optimizer == "continued":
            yield f"{place}: the first phase has no optimizer to go on with; write `anew`"
        if phases[-1].reads_unlabelled:
            yield (
                f"{place}: the last phase is judged by its predictions on dev, and "
                f"{phases[-1].name} teaches none; give it a prediction level"
            )
        elif isinstance(student.initial, InitialRandom | InitialCheckpoint) and not any(
            phase.trains("head") for phase in phases if not phase.reads_unlabelled
        ):
            yield (
                f"{place}: a student of initial.kind {student.initial.kind} has a new head, and no "
                "phase with a prediction level trains it; name `head` in its trained_layers"
            )
        for phase in phases:
            if phase.trained_layers == "all":
                continue
            own = [layer for layer in phase.trained_layers if layer != "head"]
            if missing := [layer for layer in own if layer > student.layers]:
                yield (
                    f"{place}: {phase.name}, trained_layers: {', '.join(map(str, missing))}, but "
                    f"the student has layers 0 to {student.layers}"
                )
                continue
            try:
                reached = layers_reached(phase, student.layers, self.train_teacher.layers)
            except ValueError:  # a layer that is not there, which is told with the streams
                continue
            if not any(phase.trains(layer) for layer in reached):
                yield (
                    f"{place}: {phase.name} trains {', '.join(map(str, phase.trained_layers))}, "
                    f"but its levels reach the student's layers up to {reached[-1]} alone"
                )

    def _text_faults(self) -> Iterator[str]:
        """Texts that would be made and kept for nobody."""
        if self.prepare_data.random_texts and not any(
            phase.reads_unlabelled for phase in self.train_student.phases
        ):
            yield (
                "prepare_data.random_texts: only a phase without a prediction level reads them, "
                "and train_student.phases has none; write 0, or add such a phase"
            )

    def _ensemble_faults(self) -> Iterator[str]:
        """Teachers that nobody listens to, and rules about teachers that are not there."""
        if MAIN in self.fetch_sources.more_teachers:
            yield f"fetch_sources.more_teachers: {MAIN} is the name of fetch_sources.teacher"
        names, rule = {MAIN, *self.fetch_sources.more_teachers}, self.train_teacher.ensemble
        if rule is None:
            if len(names) > 1:
                yield "fetch_sources.more_teachers needs a rule in train_teacher.ensemble"
            return
        known = f"the teachers are {', '.join(sorted(names))}"
        if len(names) == 1:
            yield "train_teacher.ensemble needs fetch_sources.more_teachers"
        elif rule.layers not in names:
            yield f"train_teacher.ensemble.layers: no {rule.layers}; {known}"
        elif isinstance(rule, WeightedLogits) and set(rule.weights) != names:
            yield f"train_teacher.ensemble.weights: {', '.join(sorted(rule.weights))}; {known}"

    def _stream_faults(self) -> Iterator[str]:
        """What the cache would lack, and what the teacher does."""
        layers, streams = self.train_teacher.layers, self.cache_teacher.streams
        try:
            if missing := [stream for stream in self.streams_read if stream not in streams]:
                yield (
                    f"cache_teacher.streams lacks {', '.join(missing)}, read by a level; "
                    f"the levels read [{', '.join(self.streams_read)}]"
                )
        except ValueError as error:
            yield f"train_student.phases: {error}"
        if len(set(streams)) != len(streams):
            yield "cache_teacher.streams names a stream twice"
        for stream in streams:
            if layer_of(stream) > layers:
                yield f"cache_teacher.streams: {stream}, but the teacher has {layers} layers"

    def _codec_faults(self) -> Iterator[str]:
        """A codec that is too coarse for a level."""
        if self.cache_teacher.mode == "live" or self.cache_teacher.codec in ("float32", "float16"):
            return
        levels = layer_levels(self.train_student.phases)
        if any(level.layer_map == "mixture" for level in levels):
            yield (
                "cache_teacher.codec: the states themselves weigh a mixture of layers, and int8 "
                "moved its gradients by 9 %; write float32, or float16 (1.7 %)"
            )

    def _initial_faults(self) -> Iterator[str]:
        """What keeps the student's weights from starting as the recipe says."""
        student, given = self.train_student.student, self.fetch_sources.student
        place = "train_student.student.initial"
        if isinstance(student.initial, InitialCheckpoint) and given is None:
            yield f"{place}: a checkpoint needs its source in fetch_sources.student, found null"
        if not isinstance(student.initial, InitialCheckpoint) and given is not None:
            yield (
                f"fetch_sources.student: a model that kind {student.initial.kind} makes no use of; "
                f"write null here, or `kind: checkpoint` in {place}"
            )
        yield from (f"{place}: {fault}" for fault in self._size_faults())
        levels = {level.level for level in layer_levels(self.train_student.phases)}
        if student.family not in (None, *ATTENTION_FAMILIES) and (levels - {"hidden"}):
            yield (
                f"train_student.student.family: {student.family} has no attention that the levels "
                "attention and relation could read; use prediction and hidden"
            )

    def _size_faults(self) -> Iterator[str]:
        """Where the teacher's weights don't fit the student that starts from them."""
        teacher, student = self.train_teacher, self.train_student.student
        initial = student.initial
        if isinstance(initial, InitialRandom):
            if initial.embeddings == "pca" and student.hidden_size > teacher.hidden_size:
                yield (
                    f"embeddings of width {teacher.hidden_size} have no {student.hidden_size} "
                    "principal components; use `embeddings: new` or a hidden_size up to theirs"
                )
            return
        if isinstance(initial, InitialCheckpoint):
            return
        for name in ("hidden_size", "attention_heads", "intermediate_size"):
            own, theirs = getattr(student, name), getattr(teacher, name)
            if isinstance(initial, InitialTeacherLayers) and own != theirs:
                yield (
                    f"layers can be copied from the teacher only at its {name} {theirs}, "
                    f"the student's is {own}"
                )
            elif own > theirs:
                yield f"{name} {own} can't be reduced from the teacher's {theirs}"
        own, theirs = (m.hidden_size // m.attention_heads for m in (student, teacher))
        if isinstance(initial, InitialWidthReduction) and own > theirs:
            yield (
                f"attention heads {own} wide can't be reduced from the teacher's, {theirs} wide; "
                "use more heads or a smaller hidden_size"
            )
        try:
            chosen(initial.layers, student.layers, teacher.layers)
        except ValueError as error:
            yield str(error)

    def _width_faults(self) -> Iterator[str]:
        """Levels between widths and heads that do not fit."""
        teacher, student = self.train_teacher, self.train_student.student
        own, theirs = student.hidden_size, teacher.hidden_size
        for level in dict.fromkeys(layer_levels(self.train_student.phases)):
            name = f"train_student.phases: {level.level}.{level.loss}"
            if level.level == "hidden":
                if own != theirs and getattr(level, "projection", "") == "none":
                    yield f"{name} from width {own} to {theirs} needs `projection: linear`"
            elif isinstance(level, RelationLevel):
                for whose, width in (("student", own), ("teacher", theirs)):
                    if width % level.relation_heads:
                        yield (
                            f"{name}: relation_heads {level.relation_heads} does not divide "
                            f"the {whose}'s width {width}"
                        )
            elif (
                getattr(level, "heads", "") == "each"
                and student.attention_heads != teacher.attention_heads
            ):
                yield (
                    f"{name}: heads: each needs equal attention_heads, the student has "
                    f"{student.attention_heads} and the teacher {teacher.attention_heads}; "
                    "set `heads: average` or use the relation level"
                )

    def _compute_faults(self) -> Iterator[str]:
        """What a machine is asked for that the levels don't allow."""
        levels = {level.level for level in layer_levels(self.train_student.phases)}
        if self.compute.compile and (inside := sorted(levels - {"hidden"})):
            yield (
                f"compute.compile: what a compiled layer computes inside can't be compared, and "
                f"levels {', '.join(inside)} do; write false"
            )

    @property
    def epochs_read(self) -> float:
        """Passes over all texts of the cache, in phases whose levels read the teacher."""
        more = self.prepare_data.random_texts
        passes = sum(
            phase.passes(more)
            for phase in self.train_student.phases
            if any(level.loss != "labels" for level in phase.levels)
        )
        return passes / (1 + more)

    @property
    def streams_read(self) -> tuple[str, ...]:
        """The teacher's streams that the levels read. Raises ValueError as `streams_read` does."""
        student = self.train_student
        return streams_read(student.phases, student.student.layers, self.train_teacher.layers)
