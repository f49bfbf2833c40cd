from __future__ import annotations

from typing import Any


def test_its_out_is_the_manifest_alone_and_the_shards_are_in_the_store(finished: Any) -> None:
    manifest = finished.json("cache_teacher", "manifest.json")
    assert [path.name for path in finished.out("cache_teacher").iterdir()] == ["manifest.json"]
    folder = finished.root / ".store" / manifest["fingerprint"]
    for shard in manifest["shards"]:
        assert (folder / shard["name"]).stat().st_size == shard["bytes"]
    assert set(manifest["streams"]) == {"logits", "hidden.2", "hidden.4"}
    assert manifest["computed"] == ["hidden.0"]


def test_a_second_run_writes_nothing_and_ends_with_the_same_manifest(broken: Any) -> None:
    before = broken.json("cache_teacher", "manifest.json")
    shards = {path: path.stat().st_mtime_ns for path in (broken.root / ".store").rglob("shard*")}
    assert broken.run("cache_teacher").returncode == 0
    assert broken.json("cache_teacher", "manifest.json") == before
    assert shards == {path: path.stat().st_mtime_ns for path in shards}


def test_the_store_can_be_moved(broken: Any, tmp_path: Any) -> None:
    done = broken.run("cache_teacher", STILLHOUSE_STORE=str(tmp_path / "elsewhere"))
    assert done.returncode == 0, done.stderr
    fingerprint = broken.json("cache_teacher", "manifest.json")["fingerprint"]
    assert (tmp_path / "elsewhere" / fingerprint / "manifest.json").exists()


def test_a_quota_that_is_too_small_is_refused_before_writing(broken: Any) -> None:
    broken.change(lambda recipe: recipe["cache_teacher"].update(quota_gib=1e-6, codec="float32"))
    done = broken.run("cache_teacher")
    assert done.returncode == 2
    assert "pass its quota" in done.stderr
    assert not broken.out("cache_teacher").exists()


def test_a_disk_that_fills_up_is_said_in_one_line_and_loses_nothing(broken: Any) -> None:
    before = broken.json("cache_teacher", "manifest.json")
    elsewhere = str(broken.root / "elsewhere")
    done = broken.run("cache_teacher", largest_file_kib=16, STILLHOUSE_STORE=elsewhere)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the system refused" in done.stderr
    assert not broken.out("cache_teacher").exists()
    assert broken.run("cache_teacher", STILLHOUSE_STORE=elsewhere).returncode == 0
    assert broken.json("cache_teacher", "manifest.json") == before
