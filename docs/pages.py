"""What a page of Markdown has to link to: headings, and the anchors that GitHub makes of them."""

from __future__ import annotations

import re

HEADING = re.compile(r"^#{1,6} (?P<text>.+?)\s*$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INNER_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def list_headings(page: str) -> list[str]:
    """The headings of a page as they are written, without those in fenced code."""
    return [match["text"] for match in HEADING.finditer(FENCED.sub("", page))]


def slug(heading: str) -> str:
    """The anchor of a heading: `How a run ends` is `how-a-run-ends`."""
    text = INNER_LINK.sub(r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def list_anchors(page: str) -> list[str]:
    """The anchors of a page's headings; of two equal headings both have the first's."""
    return [slug(heading) for heading in list_headings(page)]
