"""The generated pages are what the code generates, whole, and no page points at nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import click
import pytest
from pydantic import BaseModel, Field

from docs import generate
from docs.describe_params import (
    collect_models,
    describe_model,
    describe_named_type,
    describe_recipe,
    describe_type,
)
from docs.generate import describe_commands, find_stale, render_pages, walk_commands
from docs.named_types import NamedType, collect_named_types, find_narrower
from docs.pages import list_anchors
from flows.cli import main as command_line
from tasks.kd.recipe.recipe import Recipe

LINK = re.compile(r"(?<!`)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
MAKE = re.compile(r"`make (?P<target>[a-z]+)")


# --- up to date ----------------------------------------------------------------------------------


def test_the_generated_pages_are_up_to_date(root: Path) -> None:
    assert find_stale(render_pages(), root) == []


def test_a_page_that_differs_and_one_that_is_missing_are_found(tmp_path: Path) -> None:
    pages = {"a.md": "a", "b.md": "b", "docs/c.md": "c"}
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "b.md").write_text("b, by hand")
    assert find_stale(pages, tmp_path) == ["b.md", "docs/c.md"]


@pytest.fixture
def run_generator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[Path, int]]:
    """Run `python -m docs.generate` on a root of its own: the root, the exit code."""
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "render_pages", lambda: {"docs/cli.md": "now\n"})
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/cli.md").write_text("then\n")

    def run(*arguments: str) -> tuple[Path, int]:
        monkeypatch.setattr(sys, "argv", ["generate", *arguments])
        try:
            generate.main()
        except SystemExit as ended:
            return tmp_path, int(ended.code or 0)
        return tmp_path, 0

    return run


def test_checking_names_the_stale_page_and_its_mend_and_writes_nothing(
    run_generator: Callable[..., tuple[Path, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, code = run_generator("--check")
    assert code == 1
    said = capsys.readouterr().err
    assert said == "docs/cli.md differs from what the code generates. Run: make docs\n"
    assert (folder / "docs/cli.md").read_text() == "then\n"


def test_generating_writes_the_page_and_then_checking_is_content(
    run_generator: Callable[..., tuple[Path, int]],
) -> None:
    folder, code = run_generator()
    assert (code, (folder / "docs/cli.md").read_text()) == (0, "now\n")
    assert run_generator("--check")[1] == 0


def test_the_program_that_make_check_calls_finds_missing_pages(root: Path, tmp_path: Path) -> None:
    for folder in ("docs", "flows", "tasks"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.md"))
    command = [sys.executable, "-m", "docs.generate", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert re.findall(r"^\S+\.md", done.stderr, re.MULTILINE) == ["docs/cli.md", "params/README.md"]


# --- params/README.md ----------------------------------------------------------------------------


def test_the_recipe_page_has_every_field_of_every_model() -> None:
    page = describe_recipe(Recipe)
    models: list[type[BaseModel]] = [Recipe, *collect_models(Recipe, set())]
    assert len(models) > 20
    named = collect_named_types(models, describe_type)
    for model in models:
        for name, field in model.model_fields.items():
            title = field.alias or name
            row = f"| [`{title}`](#{title}) |" if f"\n## {title}\n" in page else f"| `{title}` |"
            assert row in page, f"{model.__name__}.{name}"
        if model is not Recipe:
            assert describe_model(model, named) in page, model.__name__


def test_every_link_within_the_recipe_page_has_its_heading() -> None:
    page = describe_recipe(Recipe)
    headings = {title.lower() for title in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)}
    links = {match["target"] for match in LINK.finditer(page)} | set(
        re.findall(r"\]\((#\w+)\)", page)
    )
    assert len(links) > 20
    assert {link.removeprefix("#") for link in links} - headings == set()


class Inner(BaseModel):
    """An inner section."""

    size: Annotated[int, Field(gt=0, description="a | b")]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Field(ge=1, le=64)], "integer ≥ 1, ≤ 64"),
        (Annotated[float, Field(gt=0, lt=1)], "number > 0, < 1"),
        (Annotated[str, Field(min_length=1)], "text not empty"),
        (Annotated[str, Field(pattern="^(a|b)$")], "text matching `^(a\\|b)$`"),
        (Annotated[int, Field(gt=0)] | None, "integer > 0 or null"),
        (Literal["a", "b"], "`a` or `b`"),
        (bool, "true or false"),
        (tuple[tuple[int, int], ...], "list of \\[integer, integer\\]"),
        (Annotated[tuple[Inner, ...], Field(min_length=1)], "list of [Inner](#inner), at least 1"),
    ],
)
def test_a_type_is_put_in_words(annotation: Any, words: str) -> None:
    assert describe_type(annotation, []) == words


def test_a_type_without_words_is_refused_rather_than_left_out() -> None:
    with pytest.raises(KeyError):
        describe_type(bytes, [])


Shade = Annotated[Literal["light", "dark"], Field(description="how bright")]
Size = Annotated[int, Field(gt=0)] | Inner
Wide = Annotated[Literal["light", "dark"] | tuple[int, ...], Field(description="how bright; or")]


class Lamp(BaseModel):
    """Fields of named types: both alike, one of them with a meaning of its own, one in a list."""

    shade: Shade
    other_shade: Shade
    size: Annotated[Size, Field(description="of the lamp")]
    more: Annotated[tuple[Size, ...], Field(description="of others")]
    foot: Annotated[Size, Field(description="of the foot")]
    base: Annotated[Size, Field(description="of the lamp")]
    door: Annotated[Literal["light", "dark"], Field(description="not how bright")]
    wide: Wide


def test_a_type_that_several_fields_have_is_described_once() -> None:
    named = collect_named_types([Lamp, Inner], describe_type)
    assert [(each.name, each.meaning) for each in named] == [
        ("Shade", "how bright"),
        ("Size", "of the lamp"),
    ]
    assert describe_model(Lamp, named).splitlines()[4:] == [
        "| `shade` | [Shade](#shade) |  |",
        "| `other_shade` | [Shade](#shade) |  |",
        "| `size` | [Size](#size) |  |",
        "| `more` | list of [Size](#size) | of others |",
        "| `foot` | [Size](#size) | of the foot |",
        "| `base` | [Size](#size) |  |",
        "| `door` | `light` or `dark` | not how bright |",
        "| `wide` | `light` or `dark` or list of integer | how bright; or |",
    ]
    shade, size = (describe_named_type(each, named) for each in named)
    assert shade == "`light` or `dark`.\n\nMeaning: how bright.\n"
    assert size == "integer > 0 or [Inner](#inner).\n\nMeaning: of the lamp.\n"


def test_a_type_that_goes_further_than_another_says_what_is_more() -> None:
    shade, wide = (
        NamedType(name, get_args(alias)[0], None, meaning)
        for name, alias, meaning in (("Shade", Shade, "how"), ("Wide", Wide, "how; or many"))
    )
    # A union's first alternative is one type; only whole alternatives are shared.
    assert find_narrower((shade, wide), wide) is None
    narrow = NamedType("Narrow", Literal["light", "dark"] | float, None, "how")
    wider = NamedType("Wider", Literal["light", "dark"] | float | str, None, "how; or many")
    assert describe_named_type(wider, (narrow, wider)) == (
        "[Narrow](#narrow) or text.\n\nMeaning: as there; or many.\n"
    )


def test_no_type_of_the_recipe_page_is_long_and_no_long_cell_stands_three_times() -> None:
    rows = re.findall(r"^\| `.*\|$", describe_recipe(Recipe), re.MULTILINE)
    assert len(rows) > 100
    assert [row for row in rows if len(row.split(" | ")[1]) > 200] == []
    cells = Counter(cell for row in rows for cell in row.split(" | ")[1:] if len(cell) > 60)
    assert {cell: count for cell, count in cells.items() if count > 2} == {}


def test_a_bar_in_a_meaning_does_not_break_the_table() -> None:
    assert "| `size` | integer > 0 | a \\| b |" in describe_model(Inner)


# --- docs/cli.md ---------------------------------------------------------------------------------


def test_every_command_has_help_with_an_example_of_itself() -> None:
    commands = dict(walk_commands(command_line, "stillhouse"))
    assert {f"stillhouse {name}" for name in command_line.commands} <= set(commands)
    bare = [path for path, text in commands.items() if text.count(path) < 2]
    assert bare == []


def test_the_page_of_commands_shows_sub_commands_and_hides_hidden_ones() -> None:
    @click.group()
    def tool() -> None:
        """A tool."""

    @tool.group()
    def part() -> None:
        """A part."""

    @part.command()
    @click.option("--size", help="How big.")
    def make(size: str) -> None:
        """Make one of that SIZE."""
        del size

    @tool.command(hidden=True)
    def secret() -> None:
        """Not shown."""

    page = describe_commands(tool, "tool")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == ["tool", "tool part", "tool part make"]
    assert "--size TEXT" in page
    assert "secret" not in page


# --- every page ----------------------------------------------------------------------------------


def find_dead_ends(text: str, page: Path, targets: set[str]) -> list[str]:
    """Links to files or headings that are not there, and make targets that make does not know."""
    links = [match["target"] for match in LINK.finditer(text)]
    dead = [link for link in links if "://" not in link and not leads_somewhere(link, page)]
    return dead + [f"make {m['target']}" for m in MAKE.finditer(text) if m["target"] not in targets]


def leads_somewhere(link: str, page: Path) -> bool:
    """Whether a link of a page names a file that is there, and of a page also a heading."""
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if link.startswith("mailto:"):
        return True
    if not target.exists() or not anchor or target.suffix != ".md":
        return target.exists()
    return anchor in list_anchors(target.read_text(encoding="utf-8"))


def list_pages(root: Path) -> list[Path]:
    """The pages that people read."""
    return [*root.glob("*.md"), *(page for top in PAGES for page in (root / top).rglob("*.md"))]


PAGES = ("bench", "docs", "flows", "params", "study", "tasks", "tests")


def test_no_page_points_at_nothing(root: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE))
    pages = list_pages(root)
    assert {"README.md", "CONTRIBUTING.md"} <= {page.name for page in pages}
    dead = {
        page.relative_to(root).as_posix(): found
        for page in pages
        if (found := find_dead_ends(page.read_text(encoding="utf-8"), page, targets))
    }
    assert dead == {}


def test_a_dead_link_and_an_unknown_target_are_found(tmp_path: Path) -> None:
    page = tmp_path / "here.md"
    page.write_text("# One `word`\n\n```sh\n# no heading\n```\n", encoding="utf-8")
    text = (
        "[a](here.md) [b](gone.md) [c](https://example.invalid) [d](#one-word) [e](here.md#two)"
        " [f](here.md#no-heading) [g](mailto:a@example.invalid) `make tea` `make docs`"
    )
    dead = ["gone.md", "here.md#two", "here.md#no-heading", "make tea"]
    assert find_dead_ends(text, page, {"docs"}) == dead
