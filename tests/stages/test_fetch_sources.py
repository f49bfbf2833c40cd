from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.kd.digests import sha256_file


def test_it_leaves_the_sources_with_their_digests(finished: Any) -> None:
    sources = finished.json("fetch_sources", "sources.json")
    out: Path = finished.out("fetch_sources")
    assert {"data/train.csv", "data/test.csv", "teacher/model.safetensors"} <= set(sources["files"])
    for name, digest in sources["files"].items():
        assert sha256_file(out / name) == digest
    assert not list((finished.root / ".work").glob("fetch_sources*"))


def test_a_missing_file_ends_with_2_and_a_record_for_the_flow(bare: Any) -> None:
    (bare.root / "data" / "test.csv").unlink()
    done = bare.run("fetch_sources")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    error = bare.error("fetch_sources")
    assert error["type"] == "DataError"
    assert not error["transient"]
    assert error["message"] in done.stderr
    assert not bare.out("fetch_sources").exists()


def test_the_record_of_a_fault_goes_when_it_is_mended(bare: Any) -> None:
    hidden = bare.root / "test.csv"
    (bare.root / "data" / "test.csv").rename(hidden)
    assert bare.run("fetch_sources").returncode == 2
    hidden.rename(bare.root / "data" / "test.csv")
    assert bare.run("fetch_sources").returncode == 0
    assert not list((bare.root / ".work" / "errors").iterdir())


def test_a_recipe_that_cannot_be_run_is_refused_before_anything_is_written(bare: Any) -> None:
    bare.change(lambda recipe: recipe["prepare_data"].update(seed="x"))
    done = bare.run("fetch_sources")
    assert done.returncode == 2
    assert "params/small.yaml:" in done.stderr
    assert "prepare_data.seed" in done.stderr
    assert not bare.out("fetch_sources").exists()


def test_an_out_that_cannot_be_written_is_said_in_one_line(bare: Any) -> None:
    (bare.root / "artifacts").write_text("in the way")
    done = bare.run("fetch_sources")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the system refused" in done.stderr
