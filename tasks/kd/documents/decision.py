"""What the gate decided of a version, as it stands on the version and with its run."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tasks.kd.documents.document import Count, Document, Part, Text


class RuleRecord(Part):
    """One rule's result."""

    name: Text
    passed: bool
    measured: Annotated[
        float | None, Field(description="what was held against the limit; null if nothing was")
    ]
    limit: float | None
    explanation: Text
    outcome: Literal["passed", "worse", "undecided", "not applied"]


class DecisionRecord(Document):
    """A decision: the value of the version's tag."""

    TITLE: ClassVar[str] = "the gate's decision"
    FILE: ClassVar[str] = "decision.json"

    verdict: Literal["promote", "refuse"]
    against: Annotated[
        str | None, Field(description="URI of the champion compared with; null for none")
    ]
    rules: tuple[RuleRecord, ...]


class CandidateRecord(Part):
    """The version that was judged."""

    model: Text
    version: Count


class ChampionRecord(Part):
    """The version that it was compared with, of the same model."""

    version: Count


class GateRecord(DecisionRecord):
    """A decision with what it was made on: the file of the run."""

    candidate: CandidateRecord
    champion: ChampionRecord | None
    gate_params: Annotated[dict[str, Any], Field(description="the recipe's section, as it was")]
