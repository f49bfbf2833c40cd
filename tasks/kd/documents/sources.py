"""What fetch_sources brought."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tasks.kd.documents.document import Document, Sha256


class Sources(Document):
    """The recipe's section as it was followed, and every file that came of it.

    Its sources have the forms of a recipe, which the room `recipe` reads.
    """

    TITLE: ClassVar[str] = "the list of sources"
    FILE: ClassVar[str] = "sources.json"

    data: Annotated[dict[str, Any], Field(description="the labelled text's source")]
    teacher: Annotated[dict[str, Any], Field(description="the source of the teacher's weights")]
    student: Annotated[
        dict[str, Any] | None, Field(description="the source of the student's; null if it has none")
    ]
    more_teachers: Annotated[
        dict[str, dict[str, Any]], Field(description="the sources of other teachers, by name")
    ]
    files: Annotated[
        dict[str, Sha256], Field(description="digest of each file, by its path in the out")
    ]
