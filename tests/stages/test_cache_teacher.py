from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tasks.kd.digests import read_json, sha256_file, write_json


def entries_of(manifest: Any) -> dict[str, Any]:
    return {**manifest["streams"], **manifest["pieces"]}


def shards_in(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.rglob("shard*")}


def test_its_out_is_the_manifest_alone_and_the_shards_are_in_the_store(finished: Any) -> None:
    manifest = finished.json("cache_teacher", "manifest.json")
    assert [path.name for path in finished.out("cache_teacher").iterdir()] == ["manifest.json"]
    for stream in manifest["streams"].values():
        for shard in stream["shards"]:
            path = finished.root / ".store" / stream["fingerprint"] / shard["name"]
            assert path.stat().st_size == shard["bytes"]
    assert set(manifest["streams"]) == {"logits", "hidden.1", "hidden.2", "hidden.3", "hidden.4"}
    assert set(manifest["computed"]) == {"hidden.0", "attention.2", "relation.4"}
    assert set(manifest["pieces"]) == {"embeddings", "layer.2", "layer.4"}


def test_a_second_run_writes_nothing_and_ends_with_the_same_manifest(broken: Any) -> None:
    before = broken.json("cache_teacher", "manifest.json")
    shards = shards_in(broken.root / ".store")
    assert broken.run("cache_teacher").returncode == 0
    assert broken.json("cache_teacher", "manifest.json") == before
    assert shards == shards_in(broken.root / ".store")


def test_the_store_knows_who_needs_it(finished: Any) -> None:
    manifest = finished.json("cache_teacher", "manifest.json")
    (note,) = (finished.root / ".store" / "users").glob("*.json")
    said = read_json(note)
    names = {entry["fingerprint"] for entry in entries_of(manifest).values()}
    assert set(said["entries"]) == names | {manifest["fingerprint"]}
    assert said["root"] == str(finished.root.resolve())


def test_a_killed_writer_has_said_what_it_was_writing(broken: Any, tmp_path: Any) -> None:
    before = broken.json("cache_teacher", "manifest.json")
    place = str(tmp_path / "elsewhere")
    assert broken.run("cache_teacher", largest_file_kib=16, STILLHOUSE_STORE=place).returncode == 1
    (note,) = (tmp_path / "elsewhere" / "users").glob("*.json")
    assert before["fingerprint"] in read_json(note)["entries"]


def test_a_codec_that_is_too_coarse_for_what_is_computed_is_warned_of_by_name(broken: Any) -> None:
    errors = broken.json("cache_teacher", "manifest.json")["computed"]
    bound = errors["attention.2"] * 0.99
    broken.change(lambda recipe: recipe["cache_teacher"].update(max_relative_error=bound))
    done = broken.run("cache_teacher")
    assert done.returncode == 0, done.stderr
    assert "warning: hidden.1 is kept in float32: " in done.stderr
    manifest = broken.json("cache_teacher", "manifest.json")
    assert manifest["streams"]["hidden.1"]["codec"] == "float32"
    assert manifest["computed"]["attention.2"] < bound


def test_the_store_can_be_moved(broken: Any, tmp_path: Any) -> None:
    done = broken.run("cache_teacher", STILLHOUSE_STORE=str(tmp_path / "elsewhere"))
    assert done.returncode == 0, done.stderr
    for entry in entries_of(broken.json("cache_teacher", "manifest.json")).values():
        assert (tmp_path / "elsewhere" / entry["fingerprint"] / "manifest.json").exists()


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


def test_two_processes_write_the_same_cache(broken: Any) -> None:
    before = broken.json("cache_teacher", "manifest.json")
    broken.change(lambda recipe: recipe["compute"].update(processes=2))
    done = broken.run("cache_teacher", STILLHOUSE_STORE=str(broken.root / "elsewhere"))
    assert done.returncode == 0, done.stderr
    assert broken.json("cache_teacher", "manifest.json") == before


def test_one_stream_more_is_added_and_the_others_are_left_alone(broken: Any) -> None:
    shards = shards_in(broken.root / ".store")
    broken.change(lambda recipe: recipe["cache_teacher"]["streams"].append("relation.3"))
    broken.change(lambda recipe: recipe["cache_teacher"]["streams"].append("attention.1"))
    assert broken.run("cache_teacher").returncode == 0
    assert shards_in(broken.root / ".store") == shards  # hidden.2 is there, hidden.0 is computed
    broken.change(lambda recipe: recipe["cache_teacher"].update(codec="int8"))
    assert broken.run("cache_teacher").returncode == 0
    more = shards_in(broken.root / ".store")
    assert {path: more[path] for path in shards} == shards
    manifest = broken.json("cache_teacher", "manifest.json")
    logits = broken.root / ".store" / manifest["streams"]["logits"]["fingerprint"]
    assert not [path for path in more if path not in shards and path.parent == logits]


def test_a_recipe_may_run_the_teacher_instead(broken: Any) -> None:
    broken.change(lambda recipe: recipe["cache_teacher"].update(mode="live"))
    done = broken.run("cache_teacher", STILLHOUSE_STORE=str(broken.root / "elsewhere"))
    assert done.returncode == 0, done.stderr
    assert not (broken.root / "elsewhere").exists()
    assert broken.json("cache_teacher", "manifest.json")["kind"] == "live"
    done = broken.run("train_student", STILLHOUSE_STORE=str(broken.root / "elsewhere"))
    assert done.returncode == 0, done.stderr
    assert "the teacher itself is run: the recipe says so" in done.stderr
    broken.tune_teacher_further()
    done = broken.run("train_student")
    assert done.returncode == 1
    assert broken.error("train_student")["type"] == "CacheStaleError"


def test_auto_measures_and_says_what_it_chose_and_why(broken: Any) -> None:
    broken.change(lambda recipe: recipe["cache_teacher"].update(mode="auto"))
    done = broken.run("cache_teacher")
    assert done.returncode == 0, done.stderr
    kind = broken.json("cache_teacher", "manifest.json")["kind"]
    said = next(line for line in done.stderr.splitlines() if "a pass of the teacher takes" in line)
    assert said.startswith(f"cache_teacher: {kind}: ")
    assert broken.run("train_student").returncode == 0
    assert not list((broken.root / ".store").glob("trial-*"))


def test_a_cache_that_fails_its_audit_is_discarded_and_made_anew(broken: Any) -> None:
    before = broken.json("cache_teacher", "manifest.json")
    stream = before["streams"]["hidden.2"]
    folder = broken.root / ".store" / stream["fingerprint"]
    for shard in folder.glob("shard-*.safetensors"):  # wrong values under the right digests
        tensors = load_file(shard)
        tensors["values"] = -tensors["values"]
        save_file(tensors, shard)
        note = read_json(shard.with_suffix(".json"))
        note.update(sha256=sha256_file(shard), bytes=shard.stat().st_size)
        write_json(shard.with_suffix(".json"), note)
    (folder / "manifest.json").unlink()
    done = broken.run("cache_teacher")
    assert done.returncode == 1
    assert "hidden.2 is not what the teacher says" in done.stderr
    assert "The cache was discarded" in done.stderr
    assert broken.run("cache_teacher").returncode == 0
    assert broken.json("cache_teacher", "manifest.json") == before
