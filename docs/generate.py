"""Write the pages that are generated from the code: `python -m docs.generate [--check]`.

`params/README.md` comes from the typed recipe, `docs/cli.md` from the command line's own help.
With `--check` nothing is written, and a page that differs from its code ends the program with 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs.describe_params import GENERATED, describe_recipe

if TYPE_CHECKING:
    import click

ROOT = Path(__file__).resolve().parents[1]
HELP_COLUMNS = 96


def main() -> None:
    """Write the pages, or with --check compare them."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    arguments = parser.parse_args()
    pages = render_pages()
    stale = find_stale(pages, ROOT)
    if arguments.check:
        for name in stale:
            print(f"{name} differs from what the code generates. Run: make docs", file=sys.stderr)
        sys.exit(1 if stale else 0)
    for name in stale:
        (ROOT / name).write_text(pages[name], encoding="utf-8")
        print(f"wrote {name}")


def render_pages() -> dict[str, str]:
    """Path to text of every generated page."""
    from flows.cli import main as command_line
    from tasks.kd.recipe.recipe import Recipe

    return {
        "docs/cli.md": describe_commands(command_line, "stillhouse"),
        "params/README.md": describe_recipe(Recipe),
    }


def find_stale(pages: dict[str, str], root: Path) -> list[str]:
    """Paths of the pages whose file is not there or says something else."""
    return [
        name
        for name, text in pages.items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != text
    ]


def describe_commands(command: click.Command, name: str) -> str:
    """A page with the help of a command and of every command below it."""
    opening = f"`python -m flows` is `{name}`. A user's error ends with 2, any other with 1."
    commands = [
        f"## {path}\n\n```text\n{text}\n```\n" for path, text in walk_commands(command, name)
    ]
    return "\n".join([f"# The command line\n\n{GENERATED}\n\n{opening}\n", *commands])


def walk_commands(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """(path, help text) of a command and of every command below it that is not hidden."""
    import click

    width: dict[str, int] = {"terminal_width": HELP_COLUMNS, "max_content_width": HELP_COLUMNS}
    settings: dict[str, Any] = {**command.context_settings, **width}
    context = click.Context(command, parent, info_name=name, **settings)
    lines = command.get_help(context).splitlines()
    yield context.command_path, "\n".join(line.rstrip() for line in lines)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from walk_commands(found, child, context)


if __name__ == "__main__":
    main()
