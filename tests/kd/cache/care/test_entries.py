"""Caring for a store: what is listed of it, and that no damage to it is called whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.kd.cache.care.checking import Fault, choose, compare, prepare
from tasks.kd.cache.care.entries import Entry, Kept, Needs, open_kept, read_entries, read_needs
from tasks.kd.cache.format.fingerprint import FORMAT_VERSION, fingerprint
from tasks.kd.cache.format.manifest import Live, Manifest
from tasks.kd.cache.store.store import Store, open_cache_store, store_place
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.data.examples.prepared import Split
from tasks.kd.errors import CacheCorruptError, DataError, ParamsError
from tests.makers.caches import make_job, make_params, write

Copied = tuple[CacheJob, Manifest, Path]
NOTHING = Needs({}, {})


def verify(kept: Kept, needs: Needs, *names: str) -> list[Fault]:
    """All faults of what is chosen; progress adds up to all that there is to compare."""
    entries = read_entries(kept, needs)
    check = prepare(entries, needs, choose(entries, needs, names, ["x", "y"]))
    seen: list[int] = []
    faults = [*check.faults, *compare(kept, check, on_bytes=seen.append)]
    assert (len(seen), sum(seen)) == (check.files, check.bytes)
    return faults


def by_name(kept: Kept, needs: Needs) -> dict[str, Entry]:
    return {entry.fingerprint: entry for entry in read_entries(kept, needs)}


# --- where it is ---------------------------------------------------------------------------------


def test_the_store_is_where_the_environment_says(tmp_path: Path) -> None:
    assert store_place({}, tmp_path) == (str(tmp_path / ".store"), tmp_path / ".store")
    assert store_place({"STILLHOUSE_STORE": ""}, tmp_path)[0] == str(tmp_path / ".store")
    # From the root, whatever folder below it a command is given in.
    assert store_place({"STILLHOUSE_STORE": "big/disk"}, tmp_path)[0] == str(tmp_path / "big/disk")
    assert store_place({"STILLHOUSE_STORE": "/big"}, tmp_path)[0] == "/big"
    url = "s3://bucket/prefix"
    assert store_place({"STILLHOUSE_STORE": url}, tmp_path) == (url, tmp_path / ".store")


def test_to_look_makes_nothing(tmp_path: Path) -> None:
    for place in (str(tmp_path / "none"), f"file://{tmp_path}/remote"):
        kept = open_kept(place, tmp_path / "local")
        assert read_entries(kept, NOTHING) == []
    assert list(tmp_path.iterdir()) == []


# --- what lies there -----------------------------------------------------------------------------


def test_entries_say_what_they_are_and_who_needs_them(copied: Copied) -> None:
    _, manifest, store = copied
    needs = Needs({"x": manifest}, {})
    entries = read_entries(Kept(Store(store)), needs)
    assert [entry.fingerprint for entry in entries] == [
        manifest.fingerprint,
        *(manifest.streams[s].fingerprint for s in ("logits", "hidden.1", "hidden.2")),
        *(manifest.streams[s].fingerprint for s in ("hidden.3", "hidden.4")),
        *(manifest.pieces[p].fingerprint for p in ("embeddings", "layer.2", "layer.4")),
    ]
    assert {entry.state for entry in entries} == {"finished"}
    assert {entry.recipes for entry in entries} == {("x",)}
    assert {entry.teacher for entry in entries} == {"t" * 64}
    assert sum(entry.bytes for entry in entries) == manifest.bytes
    found = by_name(Kept(Store(store)), needs)
    stream = manifest.streams["hidden.2"]
    assert found[stream.fingerprint].what == "hidden.2 float16"
    assert found[stream.fingerprint].counts == (manifest.examples, manifest.tokens)
    assert found[manifest.pieces["layer.4"].fingerprint].what == "layer.4"
    assert found[manifest.fingerprint].counts == (manifest.examples, manifest.tokens)


def test_use_is_seen_while_it_lasts_and_remembered_after(copied: Copied) -> None:
    _, manifest, folder = copied
    store, name = Store(folder), manifest.streams["logits"].fingerprint
    before = by_name(Kept(store), NOTHING)[name]
    assert (before.last_use, before.in_use) == (None, False)
    leave = store.use([name])
    assert by_name(Kept(store), NOTHING)[name].in_use
    leave()
    after = by_name(Kept(store), NOTHING)[name]
    assert (after.in_use, after.last_use) == (False, (folder / name / "use").stat().st_mtime)


def test_an_unfinished_entry_is_listed_with_what_it_takes(copied: Copied) -> None:
    _, manifest, store = copied
    name = manifest.streams["hidden.2"].fingerprint
    (store / name / "manifest.json").unlink()
    entry = by_name(Kept(Store(store)), NOTHING)[name]
    there = [path for path in (store / name).iterdir() if path.name != "lock"]
    assert (entry.state, entry.document) == ("unfinished", None)
    assert entry.bytes == sum(path.stat().st_size for path in there)


def test_a_folder_with_locks_alone_is_listed_only_while_somebody_writes(copied: Copied) -> None:
    store, name = Store(copied[2]), "f" * 32
    with store.writing([name]):
        assert by_name(Kept(store), NOTHING)[name].in_use
    assert name not in by_name(Kept(store), NOTHING)


def test_what_is_no_entry_is_not_listed(copied: Copied) -> None:
    _, _, store = copied
    before = len(read_entries(Kept(Store(store)), NOTHING))
    (store / "trial-x").mkdir()
    (store / "notes.txt").touch()
    assert len(read_entries(Kept(Store(store)), NOTHING)) == before


def test_recipes_that_share_a_stream_are_both_named(copied: Copied, split: Split) -> None:
    _, manifest, store = copied
    other = write(make_job(split, make_params(streams=("hidden.2",))), store)
    needs = Needs({"x": manifest, "y": other}, {})
    found = by_name(Kept(Store(store)), needs)
    assert found[manifest.streams["hidden.2"].fingerprint].recipes == ("x", "y")
    assert found[manifest.streams["hidden.4"].fingerprint].recipes == ("x",)


def test_needs_are_read_from_manifests_and_faults_kept_apart(
    copied: Copied, tmp_path: Path
) -> None:
    _, manifest, store = copied
    made_of = {**manifest.made_of, "mode": "live"}
    live = Live(
        format_version=FORMAT_VERSION, fingerprint=fingerprint(made_of), made_of=made_of,
        kind="live", why="the recipe says so", layers=4,
    )  # fmt: skip
    live.write(tmp_path / "live.json")
    (tmp_path / "bad.json").write_text("{}")
    stream = store / manifest.streams["logits"].fingerprint / "manifest.json"
    needs = read_needs(
        {
            "x": store / manifest.fingerprint / "manifest.json",
            "live": tmp_path / "live.json",
            "bad": tmp_path / "bad.json",
            "stream": stream,
        }
    )
    assert needs.manifests == {"x": manifest, "live": live}
    assert set(needs.faults) == {"bad", "stream"}
    assert isinstance(needs.faults["stream"], CacheCorruptError)
    assert needs.read_by("live") == []
    assert needs.recipes[manifest.fingerprint] == ("x",)


# --- whether it is whole -------------------------------------------------------------------------


def test_a_whole_store_has_no_fault(copied: Copied) -> None:
    _, manifest, store = copied
    assert verify(Kept(Store(store)), Needs({"x": manifest}, {})) == []
    assert verify(Kept(Store(store)), NOTHING) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def swap(path: Path) -> None:
    other = path.with_name("shard-00001.safetensors")
    other = other if other.exists() else path.with_name("manifest.json")
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def replace_with_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def edit(path: Path) -> None:
    said = json.loads(path.read_text())
    said["made_of"] |= {"teacher_sha256": "u" * 64}
    path.write_text(json.dumps(said))


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    *(("shard-00000.safetensors", do) for do in (flip, truncate, Path.unlink, swap)),
    ("shard-00000.safetensors", replace_with_folder),
    *(("manifest.json", do) for do in (flip, truncate, Path.unlink, edit)),
]


@pytest.mark.parametrize(("name", "do"), DAMAGE)
def test_damage_is_found_with_its_place_and_its_recipes_and_mended_by_writing_again(
    copied: Copied, name: str, do: Callable[[Path], None]
) -> None:
    job, manifest, store = copied
    entry = manifest.streams["hidden.2"].fingerprint
    needs, kept = Needs({"x": manifest}, {}), Kept(Store(store))
    do(store / entry / name)
    faults = verify(kept, needs)
    assert faults
    assert {(fault.fingerprint, fault.recipes) for fault in faults} == {(entry, ("x",))}
    for chosen in ("x", entry[:8], manifest.fingerprint):
        assert {fault.fingerprint for fault in verify(kept, needs, chosen)} == {entry}
    untouched = manifest.streams["hidden.4"].fingerprint
    assert verify(kept, needs, untouched) == []
    if do is not replace_with_folder:  # which a writer can't write over
        assert write(job, store) == manifest
        assert verify(kept, needs) == []


def test_all_faults_are_told_not_only_the_first(copied: Copied) -> None:
    _, manifest, store = copied
    first, second = manifest.streams["hidden.2"], manifest.pieces["layer.2"]
    for shard in first.shards[:2]:
        flip(store / first.fingerprint / shard.name)
    truncate(store / second.fingerprint / second.weights.name)
    edit(store / manifest.streams["logits"].fingerprint / "manifest.json")
    faults = verify(Kept(Store(store)), Needs({"x": manifest}, {}))
    assert len(faults) == 4
    said = "\n".join(fault.what for fault in faults)
    for part in ("shard-00000", "shard-00001", "weights.safetensors", "manifest was edited"):
        assert part in said


def test_two_entries_in_each_others_place_are_found(copied: Copied) -> None:
    _, manifest, store = copied
    first, second = (store / manifest.streams[s].fingerprint for s in ("hidden.2", "hidden.4"))
    first.rename(store / "aside")
    second.rename(first)
    (store / "aside").rename(second)
    faults = verify(Kept(Store(store)), NOTHING)
    assert {fault.fingerprint for fault in faults} == {first.name, second.name}
    assert "holds the manifest of another" in faults[0].what


def test_what_a_recipe_needs_must_be_there_but_what_none_needs_may_be_unfinished(
    copied: Copied,
) -> None:
    _, manifest, store = copied
    name = manifest.streams["hidden.2"].fingerprint
    (store / name / "manifest.json").unlink()
    kept, needs = Kept(Store(store)), Needs({"x": manifest}, {})
    assert verify(kept, NOTHING) == []
    entries = read_entries(kept, NOTHING)
    unfinished = prepare(entries, NOTHING, (set(), set())).unfinished
    assert [entry.fingerprint for entry in unfinished] == [name]
    (fault,) = verify(kept, needs)
    assert "stream hidden.2 is not there, or not finished" in fault.what
    with kept.store.writing([name]):
        assert verify(kept, needs) == []  # it is on its way
    shutil.rmtree(store / name)
    assert [fault.fingerprint for fault in verify(kept, needs, "x")] == [name]
    shutil.rmtree(store)
    assert len(verify(kept, needs)) == len(list(manifest.entries))


def test_a_stream_written_again_with_other_shards_is_not_the_one_that_a_recipe_trained_on(
    copied: Copied, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest, store = copied
    shutil.rmtree(store / manifest.streams["hidden.2"].fingerprint)
    monkeypatch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", 2**20)
    other = write(make_job(split, make_params(streams=("hidden.2",))), store)
    (fault,) = verify(Kept(Store(store)), Needs({"x": manifest, "y": other}, {}))
    assert fault.recipes == ("x",)
    assert "stream hidden.2 was written again since" in fault.what


def test_a_recipes_manifest_that_cant_be_read_is_a_fault_of_that_recipe(copied: Copied) -> None:
    _, manifest, store = copied
    needs = Needs({"x": manifest}, {"y": CacheCorruptError("the manifest is not JSON")})
    kept = Kept(Store(store))
    assert [fault.recipes for fault in verify(kept, needs)] == [("y",)]
    assert [fault.recipes for fault in verify(kept, needs, "y")] == [("y",)]
    assert verify(kept, needs, "x") == []


def test_names_are_recipes_or_beginnings_of_fingerprints(copied: Copied) -> None:
    _, manifest, store = copied
    needs = Needs({"x": manifest}, {})
    entries = read_entries(Kept(Store(store)), needs)
    name = manifest.fingerprint
    assert choose(entries, needs, ["x", name[:4]], ["x"]) == ({"x"}, {name})
    with pytest.raises(ParamsError, match=f"no recipe and no entry.*one of {name[:8]}"):
        choose(entries, needs, [f"{name[:7]}x"], ["x"])
    with pytest.raises(ParamsError, match="one of triage"):
        choose(entries, needs, ["triag"], ["triage", "mobile"])
    with pytest.raises(ParamsError, match="one of triage, mobile"):
        choose(entries, needs, ["qqqqq"], ["triage", "mobile"])
    with pytest.raises(ParamsError, match="no recipe and no entry"):
        choose(entries, needs, [name[:3]], ["x"])  # too short to mean one for long
    with pytest.raises(DataError, match="dvc repro cache_teacher@y"):
        choose(entries, needs, ["y"], ["x", "y"])


def test_a_beginning_that_several_share_is_refused_with_all_of_them(copied: Copied) -> None:
    _, _, store = copied
    for last in "12":
        folder = store / ("ab" * 15 + f"0{last}")
        folder.mkdir()
        (folder / "shard-00000.safetensors").touch()
    entries = read_entries(Kept(Store(store)), NOTHING)
    with pytest.raises(ParamsError, match=r"several entries.*one of (ab)+01, (ab)+02"):
        choose(entries, NOTHING, ["abab"], [])


# --- a store at a URL ----------------------------------------------------------------------------


@pytest.fixture
def shared(copied: Copied, tmp_path: Path) -> tuple[Kept, Manifest]:
    """The cache at a URL, and nothing of it here."""
    _, manifest, folder = copied
    url = f"file://{tmp_path}/remote"
    open_cache_store(url, folder, copies_bytes=2**20).share(manifest)
    return open_kept(url, tmp_path / "other machine"), manifest


def test_entries_at_a_url_are_listed_and_satisfy_what_recipes_need(
    shared: tuple[Kept, Manifest],
) -> None:
    kept, manifest = shared
    needs = Needs({"x": manifest}, {})
    entries = read_entries(kept, needs)
    assert {entry.remote for entry in entries} == {True}
    assert sum(entry.bytes for entry in entries) == manifest.bytes
    assert verify(kept, needs) == []
    assert list(kept.store.folder.iterdir()) == []  # nothing that was fetched is left


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "manifest.json"])
@pytest.mark.parametrize("do", [flip, truncate, Path.unlink])
def test_damage_at_a_url_is_found(
    shared: tuple[Kept, Manifest], tmp_path: Path, name: str, do: Callable[[Path], None]
) -> None:
    kept, manifest = shared
    entry = manifest.streams["hidden.2"].fingerprint
    do(tmp_path / "remote" / entry / name)
    (fault,) = verify(kept, Needs({"x": manifest}, {}))
    assert (fault.fingerprint, fault.recipes) == (entry, ("x",))
    gone = do is Path.unlink and name == "manifest.json"  # then it is offered nowhere
    assert fault.remote is not gone
