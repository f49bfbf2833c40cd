"""Measure the cache and the training: `python -m bench [part ...]`, without a part all.

Ratios within one run, as medians over rounds in which the ways take turns, so that a noisy machine
hits all alike. Each part leaves a JSON file in `results/`; the tables of all are `cache.md` and
`training.md`. The first run makes the material, with the stages themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bench.caches import Bench
    from bench.figures import Findings

CACHE = (
    "material",
    "writing",
    "reading",
    "steps",
    "bytes",
    "memory",
    "opening",
    "codecs",
    "adapters",
)
TRAINING = ("levels", "rivals", "bare", "scaling", "start", "agreement")
PARTS = (*CACHE, *TRAINING)
RESULTS = Path(__file__).with_name("results")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS), metavar="[PART]...")
@click.option("--quick", is_flag=True, help="Try the programs; what they say means nothing.")
def main(parts: tuple[str, ...], *, quick: bool) -> None:
    """Measure parts of the teacher cache and of the student's training, or all.

    The cache: material, writing, reading, steps, bytes, memory, opening, codecs, adapters.

    The training: levels, rivals, bare, scaling, start, agreement.
    """
    from rich.console import Console

    from bench import results
    from bench.caches import Bench
    from bench.material import FOLDER, make_material
    from bench.watch import watching
    from tasks.kd.cache.store.store import Store

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log is read in wider lines than 80
    quieten()
    # Figures of a trial never come to stand beside real ones.
    folder = FOLDER / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    material = make_material(quick=quick, say=lambda text: console.print(f"material: {text}"))
    with TemporaryDirectory(dir=FOLDER, prefix="store-") as store:
        for part in [part for part in PARTS if part in parts] or PARTS:
            machine, began = results.machine(), time.monotonic()
            with watching(part, console) as watch:
                bench = Bench(quick, material, FOLDER, Store(Path(store)), watch)
                findings = measure(part, bench, folder)
            seconds = time.monotonic() - began
            results.write_part(folder, part, findings, machine, seconds)
            console.print(f"{part}: done in {seconds:.0f} s", highlight=False)
    results.write_table(folder, CACHE, console, page=results.CACHE)
    results.write_table(folder, TRAINING, console, page=results.TRAINING)


def measure(part: str, bench: Bench, folder: Path) -> Findings:
    """Run one part; its pictures go to the folder."""
    from bench import (
        adapters,
        agreement,
        bare_loop,
        by_codec,
        levels,
        material,
        memory,
        on_disk,
        opening,
        reading,
        rivals,
        scaling,
        start,
        steps,
        writing,
    )

    parts: dict[str, Callable[[], Findings]] = {
        "material": lambda: material.measure(bench.material),
        "writing": lambda: writing.measure(bench),
        "reading": lambda: reading.measure(bench),
        "steps": lambda: steps.measure(bench),
        "bytes": lambda: on_disk.measure(bench),
        "memory": lambda: memory.measure(bench),
        "opening": lambda: opening.measure(bench),
        "codecs": lambda: by_codec.measure(bench, folder),
        "adapters": lambda: adapters.measure(bench),
        "levels": lambda: levels.measure(bench),
        "rivals": lambda: rivals.measure(bench),
        "bare": lambda: bare_loop.measure(bench),
        "scaling": lambda: scaling.measure(bench),
        "start": lambda: start.measure(bench),
        "agreement": lambda: agreement.measure(bench),
    }
    return parts[part]()


def quieten() -> None:
    """No advice and no bars from transformers between our own lines."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    main()
