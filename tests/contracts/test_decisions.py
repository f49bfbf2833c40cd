"""DECISIONS.md and its pages: they name the same entries, and every entry says why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from docs.pages import slug

ROW = re.compile(
    r"^\| (?P<number>\d+) \| (?P<date>\d{4}-\d\d-\d\d) \| "
    r"\[(?P<title>.+)\]\(docs/decisions/(?P<room>\w+)\.md#(?P<anchor>\S+)\) "
    r"\| (?P<shown>\w+) \| (?P<state>stands|overruled by (?P<later>\d+)) \|$"
)
ENTRY = re.compile(
    r"^## (?P<number>\d+)\. (?P<title>.+)\n(?P<body>(?:(?!^## ).*\n?)*)", re.MULTILINE
)
PARTS = ("Decided", "Because", "Price", "Instead of")


def find_faults(index: str, pages: Mapping[str, str]) -> list[str]:
    """Where the index and the pages of the rooms, by name, contradict each other."""
    lines = [line for line in index.splitlines() if re.match(r"\| \d", line)]
    rows = [match for line in lines if (match := ROW.match(line))]
    faults = [f"not a row: {line}" for line in lines if not ROW.match(line)]
    numbers = [int(row["number"]) for row in rows]
    if numbers != list(range(1, len(numbers) + 1)):
        faults.append("numbers are not consecutive")
    dates = [row["date"] for row in rows]
    if dates != sorted(dates):
        faults.append("dates go back")
    listed = {(row["room"], int(row["number"]), row["title"]): row for row in rows}
    entries = {
        (room, int(entry["number"]), entry["title"]): entry["body"]
        for room, page in pages.items()
        for entry in ENTRY.finditer(page)
    }
    faults += [f"in the index alone: {key}" for key in sorted(listed.keys() - entries.keys())]
    faults += [f"on a page alone: {key}" for key in sorted(entries.keys() - listed.keys())]
    for key in sorted(listed.keys() & entries.keys()):
        faults += find_entry_faults(listed[key], entries[key])
    return faults


def find_entry_faults(row: re.Match[str], body: str) -> list[str]:
    """What is wrong with one entry, given its row of the index."""
    number = row["number"]
    faults = []
    if row["anchor"] != slug(f"{number}. {row['title']}") or row["shown"] != row["room"]:
        faults.append(f"{number}: the row's link, room and title differ")
    parts = re.findall(r"^- \*\*(.+?):\*\* \S", body, re.MULTILINE)
    if parts[:2] != ["Decided", "Because"] or parts != [part for part in PARTS if part in parts]:
        faults.append(f"{number}: its parts are {parts}")
    later = re.findall(r"^\*Overruled by (\d+)\.\*$", body, re.MULTILINE)
    if later != ([row["later"]] if row["later"] else []):
        faults.append(f"{number}: overruled by {later}, the index says {row['state']}")
    if row["later"] and int(row["later"]) <= int(number):
        faults.append(f"{number}: overruled by an earlier entry")
    return faults


def read_pages(root: Path) -> dict[str, str]:
    """The page of every room, by the room's name."""
    return {path.stem: path.read_text("utf-8") for path in (root / "docs/decisions").glob("*.md")}


def test_the_index_and_the_pages_of_decisions_agree(root: Path) -> None:
    index = (root / "DECISIONS.md").read_text(encoding="utf-8")
    pages = read_pages(root)
    assert len(pages) > 10
    assert find_faults(index, pages) == []


def test_what_cites_trials_has_a_table_of_them(root: Path) -> None:
    for room, page in read_pages(root).items():
        cited = {
            int(number)
            for span in re.findall(r"\[trials? (\d+(?: to \d+)?)\]\(#trials\)", page)
            for number in re.findall(r"\d+", span)
        }
        there = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
        assert cited <= there, room


INDEX = """\
| 1 | 2026-11-22 | [One `out`](docs/decisions/cache.md#1-one-out) | cache | overruled by 2 |
| 2 | 2026-11-23 | [Two](docs/decisions/data.md#2-two) | data | stands |
"""
PAGES = {
    "cache": "# Cache\n\n## 1. One `out`\n\n*Overruled by 2.*\n\n"
    "- **Decided:** a\n- **Because:** b\n- **Price:** c\n",
    "data": "# Data\n\n## 2. Two\n\n- **Decided:** a\n- **Because:** b\n\n## Trials\n\n| 1 |\n",
}


@pytest.mark.parametrize(
    ("page", "old", "new", "fault"),
    [
        ("index", "", "", None),
        ("index", "| 2 | 2026", "| 3 | 2026", "numbers are not consecutive"),
        ("index", "2026-11-23", "2026-11-21", "dates go back"),
        ("index", "| stands |", "| falls |", "not a row"),
        ("index", "#2-two", "#2-too", "2: the row's link, room and title differ"),
        (
            "index",
            "| data | stands",
            "| cache | stands",
            "2: the row's link, room and title differ",
        ),
        ("index", "overruled by 2", "stands", "1: overruled by ['2'], the index says stands"),
        ("cache", "*Overruled by 2.*", "", "1: overruled by [], the index says overruled by 2"),
        ("cache", "## 1. One `out`", "## One `out`", "in the index alone"),
        ("cache", "- **Because:** b\n", "", "1: its parts are ['Decided', 'Price']"),
        ("cache", "- **Decided:** a\n", "", "1: its parts are ['Because', 'Price']"),
        ("cache", "**Price:**", "**Cost:**", "1: its parts are"),
        (
            "data",
            "## Trials",
            "## 3. Three\n\n- **Decided:** a\n- **Because:** b",
            "on a page alone",
        ),
    ],
)
def test_an_index_that_contradicts_its_pages_is_found(
    page: str, old: str, new: str, fault: str | None
) -> None:
    texts = {"index": INDEX, **PAGES}
    assert old in texts[page]
    texts[page] = texts[page].replace(old, new)
    index = texts.pop("index")
    faults = find_faults(index, texts)
    assert bool(faults) is (fault is not None)
    assert fault is None or any(found.startswith(fault) for found in faults)
