"""A recipe: the sections of one `params/<recipe>.yaml`, which fit one another."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.fields import Section, Text
from tasks.kd.recipe.rules import broken_rules
from tasks.kd.recipe.sections import (
    EvaluateStudent,
    ExportStudent,
    FetchSources,
    Gate,
    PrepareData,
    Register,
)
from tasks.kd.recipe.training import CacheTeacher, TrainStudent, TrainTeacher


class Recipe(Section):
    """One student, from source text to the gate."""

    form: Annotated[
        Literal[2],
        Field(description="of this file; `stillhouse upgrade` rewrites recipes of older forms"),
    ]
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
        sections = {name: value for name, value in self if isinstance(value, Section)}
        if faults := list(broken_rules(sections)):
            raise ValueError("\n".join(f"{fault.field}: {fault.text}" for fault in faults))
        return self
