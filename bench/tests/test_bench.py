"""What a result says is what was measured: rounds, goals, naive bytes, the table, the recipe."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from ruamel.yaml import YAML

from bench import caches, results
from bench.figures import Figure, Findings, Way, paragraphs, ratio, take_turns, turns
from bench.material import QUICKSTART, RECIPE, replace
from bench.memory import anonymous_mib
from bench.on_disk import TINYBERT, naive_content
from bench.plot import Point, draw_codecs
from tasks.kd.digests import read_json
from tasks.kd.recipe.recipe import Recipe


def test_the_ways_take_turns_and_the_first_round_is_not_counted() -> None:
    called: list[tuple[str, int]] = []
    advanced: list[None] = []

    def way(name: str) -> Way:
        def run(number: int) -> float:
            called.append((name, number))
            return 10.0 * number

        return run

    ways = {name: way(name) for name in "abc"}
    found = take_turns(ways, 2, advance=lambda: advanced.append(None))
    assert found == {name: [10.0, 20.0] for name in "abc"}
    assert [name for name, number in called if number == 1] == ["b", "c", "a"]
    assert len(advanced) == len(called) == turns(ways, 2)


def test_a_ratio_is_taken_within_each_round() -> None:
    figure = ratio("x", [2.0, 30.0, 4.0], [1.0, 10.0, 4.0], at_most=2.0)
    assert figure.values == (2.0, 3.0, 1.0)
    assert figure.median == 2.0


@pytest.mark.parametrize(
    ("at_most", "at_least", "met"),
    [
        (2.0, None, True),
        (1.9, None, False),
        (None, 2.0, True),
        (None, 2.1, False),
        (None, None, None),
    ],
)
def test_the_median_decides_whether_a_goal_is_met(
    at_most: float | None, at_least: float | None, met: bool | None
) -> None:
    assert Figure("x", (1.0, 2.0, 9.0), "", at_most, at_least).met is met


def test_naive_content_is_what_float32_arrays_would_take() -> None:
    width, heads, lengths = 8, 2, [3, 5, 10]
    texts = [np.zeros(length, dtype=np.int32) for length in lengths]
    arrays = 0
    for length in lengths:
        arrays += 4 * np.zeros((length, width), dtype=np.float32).nbytes
        arrays += 3 * np.zeros((heads, length, length), dtype=np.float32).nbytes
    found = naive_content(TINYBERT, texts, width, heads)
    assert found.exact == round(arrays / sum(lengths))
    assert found.of_mean_length < found.exact


def test_the_recipe_is_the_quickstarts_with_another_data_set() -> None:
    recipe = YAML().load(QUICKSTART.read_text(encoding="utf-8"))
    before = copy.deepcopy(recipe)
    replace(recipe, YAML().load(RECIPE.read_text(encoding="utf-8")))
    Recipe.model_validate_json(json.dumps(recipe))
    assert "r52" in recipe["fetch_sources"]["data"]["train"]
    assert recipe["train_student"] == before["train_student"]
    assert recipe["fetch_sources"]["teacher"] == before["fetch_sources"]["teacher"]


def test_a_field_that_the_quickstart_lacks_is_refused() -> None:
    with pytest.raises(SystemExit, match="has no epoch there"):
        replace({"train_teacher": {"epochs": 2}}, {"train_teacher": {"epoch": 3}})


def test_a_cache_in_another_codec_than_asked_for_is_not_measured() -> None:
    manifest: Any = SimpleNamespace(coarser={"hidden.2": "float32"})
    nothing: Any = None
    with pytest.raises(SystemExit, match="another codec"):
        caches.opened(nothing, manifest, nothing)


def test_anonymous_memory_is_read_from_a_status_file() -> None:
    assert anonymous_mib("VmRSS:\t 9 kB\nRssAnon:\t    2048 kB\nRssFile:\t 1 kB\n") == 2.0
    assert anonymous_mib("State:\tZ (zombie)\n") == 0.0
    with pytest.raises(SystemExit, match="RssAnon"):
        anonymous_mib("State:\tR (running)\nVmRSS:\t 9 kB\n")


def test_results_hold_every_round_and_the_table_says_which_goals_are_missed(
    tmp_path: Path,
) -> None:
    figures = (
        Figure("fast", (1.0, 1.1, 1.3), at_most=1.15),
        Figure("slow", (0.5,), "s", at_least=0.95),
        Figure("size", (1234567.0,), "B"),
    )
    findings = Findings(figures, {"rounds": 3}, paragraphs("One {n}.\n\nTwo\nlines.", n=1))
    results.write_part(tmp_path, "writing", findings, results.machine(), 2.0)
    results.write_table(tmp_path, ("writing", "steps"), Console(quiet=True))
    written = read_json(tmp_path / "writing.json")
    assert written["figures"][0]["rounds"] == [1.0, 1.1, 1.3]
    assert [figure["met"] for figure in written["figures"]] == [True, False, None]
    assert written["machine"]["cores"] > 0
    table = (tmp_path / "cache.md").read_text(encoding="utf-8")
    assert "| writing | fast | ≤ 1.15 | 1.1 (1 to 1.3) | yes |" in table
    assert "| writing | slow | ≥ 0.95 | 0.5 s | NO |" in table
    assert "| writing | size |  | 1 234 567 B |  |" in table
    assert "- **writing**: Two lines." in table


def test_the_picture_says_which_codec_is_exact(tmp_path: Path) -> None:
    exact = Point(8.0, {"hidden.2": 0.0}, {"hidden.2": 0.0}, (0.9, 0.91))
    coarse = Point(2.0, {"hidden.2": 1e-3}, {"hidden.2": 1e-5}, (0.89, 0.9))
    draw_codecs({"float32": exact, "int8": coarse}, 0.92, tmp_path / "a.svg")
    draw_codecs({"float32": exact, "int8": coarse}, 0.92, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.count(">exact<") == 1
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
