"""`stillhouse cache ls`, `verify` and `gc` on a real store: what they print, and how they end."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from flows import care
from flows.cache import cache
from flows.cli import main
from tasks.kd.cache.format.fingerprint import FORMAT_VERSION, fingerprint
from tasks.kd.cache.format.manifest import Live, Manifest
from tasks.kd.cache.store.store import Store, open_cache_store
from tests.isolation import ROOT
from tests.kd.conftest import make_split
from tests.makers.caches import make_job, make_params, write

COMMANDS = ("gc", "ls", "plan", "verify")
LIGHT = ("numpy", "pydantic", "rich", "tqdm")  # not too much for work, but for help
HEAVY = ("accelerate", "dvc", "mlflow", "pandas", "prefect", "torch", "transformers", *LIGHT)
Ask = Callable[..., Result]


@dataclass(frozen=True)
class Place:
    """A repository with two recipes that share a stream, and a cache that none of them needs."""

    root: Path
    triage: Manifest
    mobile: Manifest
    old: Manifest

    @property
    def store(self) -> Path:
        return self.root / ".store"

    def manifest(self, recipe: str) -> Path:
        return self.root / "artifacts" / recipe / "cache_teacher" / "manifest.json"

    def names(self, *manifests: Manifest) -> set[str]:
        return {entry.fingerprint for m in manifests for entry in (m, *m.entries)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root, split = tmp_path_factory.mktemp("made"), make_split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.kd.cache.writing.job.MEBIBYTE", 2**14)
        manifests = [
            write(make_job(split, params), root / ".store")
            for params in (
                make_params(),
                make_params(streams=("hidden.2", "hidden.4")),
                make_params(streams=("hidden.2",), codec="int8"),
            )
        ]
    place = Place(root, *manifests)
    (root / "params").mkdir()
    (root / "dvc.yaml").touch()
    (root / "params" / "recipes.yaml").write_text("recipes: {}")
    for recipe, manifest in (("triage", place.triage), ("mobile", place.mobile)):
        shutil.copy(ROOT / "params" / "quickstart.yaml", root / "params" / f"{recipe}.yaml")
        place.manifest(recipe).parent.mkdir(parents=True)
        manifest.write(place.manifest(recipe))
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    """A copy to break."""
    shutil.copytree(made.root, tmp_path / "repository")
    return Place(tmp_path / "repository", made.triage, made.mobile, made.old)


@pytest.fixture
def ask(place: Place, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run `stillhouse cache` in the repository; in a folder below its root, as anywhere in it."""
    monkeypatch.chdir(place.root / "params")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["cache", *arguments])

    return run


def read(result: Result, code: int = 0) -> Any:
    """The JSON on standard output, which must hold nothing else."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@contextmanager
def used_elsewhere(store: Path, name: str) -> Iterator[None]:
    """Another process reads an entry."""
    code = "import sys; from pathlib import Path; from tasks.kd.cache.store.store import Store; "
    code += f"leave = Store(Path({str(store)!r})).use([{name!r}]); print(flush=True); "
    code += "sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"\n"
        yield
        process.kill()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# --- help and speed ------------------------------------------------------------------------------


def test_every_command_has_help_that_ends_with_its_own_example() -> None:
    assert isinstance(cache, click.Group)
    assert sorted(cache.commands) == list(COMMANDS)
    for path in ([], *([name] for name in COMMANDS)):
        said = CliRunner().invoke(main, ["cache", *path, "--help"]).output
        last = said.rstrip().splitlines()[-1]
        assert last.strip().startswith(" ".join(["Example:  stillhouse cache", *path])), path
        assert said.splitlines()[2].strip().endswith("."), path
    listed = CliRunner().invoke(main, ["cache", "--help"]).output.partition("Commands:")[2]
    assert "..." not in listed  # no first line was cut


def loaded_by(folder: Path, *arguments: str) -> set[str]:
    """Which heavy libraries a command loads."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom flows.cli import main\n"
    code += f"main({['cache', *arguments]!r}, standalone_mode=False)\n"
    code += f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_nothing_at_all(name: str, tmp_path: Path) -> None:
    assert loaded_by(tmp_path, name, "--help") == set()


@pytest.mark.parametrize(
    "arguments", [["ls"], ["verify"], ["gc", "--yes"], ["plan", "triage"]], ids=lambda a: a[0]
)
def test_no_command_loads_torch(place: Place, arguments: list[str]) -> None:
    assert loaded_by(place.root, *arguments) <= set(LIGHT)


# --- ls ------------------------------------------------------------------------------------------


def test_ls_says_of_each_entry_what_it_is_and_who_needs_it(place: Place, ask: Ask) -> None:
    name = place.triage.streams["hidden.2"].fingerprint
    with used_elsewhere(place.store, name):
        found = read(ask("ls", "--json"))
        table = ask("ls").stdout
    entries = {entry["fingerprint"]: entry for entry in found["entries"]}
    assert set(entries) == place.names(place.triage, place.mobile, place.old)
    shared = entries[name]
    assert shared["recipes"] == ["mobile", "triage"]
    assert shared["caches"] == sorted([place.triage.fingerprint, place.mobile.fingerprint])
    assert (shared["kind"], shared["what"], shared["state"]) == (
        "stream", "hidden.2 float16", "finished",
    )  # fmt: skip
    assert (shared["examples"], shared["tokens"]) == (place.triage.examples, place.triage.tokens)
    assert (shared["in_use"], shared["teacher_sha256"]) == (True, "t" * 64)
    assert shared["last_use"].endswith("+00:00")
    assert entries[place.triage.fingerprint]["in_use"]  # as a part of it is
    piece = entries[place.triage.pieces["layer.2"].fingerprint]
    assert (piece["kind"], piece["in_use"], piece["last_use"]) == ("piece", False, None)
    assert found["bytes"] == sum(entry["bytes"] for entry in found["entries"])
    assert found["unneeded_bytes"] == place.old.bytes
    assert found["recipes"]["triage"] == {"mode": "cache", "lacks": [], "fault": None}
    for part in ("in use", "hidden.2", "needed by", "tttttttt", "no recipe", "entries, ", "gc"):
        assert part in table, part
    caches = (place.triage.fingerprint, place.mobile.fingerprint)
    assert min(table.index(cache[:8]) for cache in caches) < table.index(name[:8])


def test_ls_reads_no_shard(place: Place, ask: Ask) -> None:
    before = read(ask("ls", "--json"))["entries"]
    for path in place.store.rglob("*.safetensors"):
        path.unlink()
    assert read(ask("ls", "--json"))["entries"] == before


def test_ls_shows_unfinished_and_damaged_entries_and_what_recipes_lack(
    place: Place, ask: Ask
) -> None:
    gone, edited = (place.triage.streams[s].fingerprint for s in ("logits", "hidden.1"))
    (place.store / gone / "manifest.json").unlink()
    (place.store / edited / "manifest.json").write_text("{}")
    found = read(ask("ls", "--json"))
    states = {entry["fingerprint"]: entry["state"] for entry in found["entries"]}
    assert (states[gone], states[edited]) == ("unfinished", "damaged")
    assert set(found["recipes"]["triage"]["lacks"]) == {gone, edited}
    said = ask("ls").stdout
    lacks = ", ".join(one[:8] for one in found["recipes"]["triage"]["lacks"])
    assert f"triage lacks {lacks}. Run: dvc repro -s -f cache_teacher@triage" in said


def test_ls_without_a_store_and_with_a_recipe_that_stores_nothing(place: Place, ask: Ask) -> None:
    shutil.rmtree(place.store)
    made_of = {**place.mobile.made_of, "mode": "live"}
    Live(
        format_version=FORMAT_VERSION, fingerprint=fingerprint(made_of), made_of=made_of,
        kind="live", why="the recipe says so", layers=4,
    ).write(place.manifest("mobile"))  # fmt: skip
    found = read(ask("ls", "--json"))
    assert (found["entries"], found["bytes"]) == ([], 0)
    assert found["recipes"]["mobile"] == {"mode": "live", "lacks": [], "fault": None}
    assert len(found["recipes"]["triage"]["lacks"]) == len(list(place.triage.entries))
    assert "0 entries" in ask("ls").stdout
    assert not place.store.exists()


def test_a_recipe_whose_file_is_gone_needs_nothing(place: Place, ask: Ask) -> None:
    (place.root / "params" / "mobile.yaml").unlink()
    found = read(ask("ls", "--json"))
    assert set(found["recipes"]) == {"triage"}
    assert {r for entry in found["entries"] for r in entry["recipes"]} == {"triage"}


def test_the_store_may_be_a_folder_from_the_root_or_a_url(
    place: Place, ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = read(ask("ls", "--json"))["entries"]
    place.store.rename(place.root / "elsewhere")
    monkeypatch.setenv("STILLHOUSE_STORE", "elsewhere")
    assert read(ask("ls", "--json"))["entries"] == before
    url = f"file://{tmp_path}/remote"
    open_cache_store(url, place.root / "elsewhere", copies_bytes=2**20).share(place.triage)
    monkeypatch.setenv("STILLHOUSE_STORE", url)
    found = read(ask("ls", "--json"))
    assert {entry["fingerprint"] for entry in found["entries"]} == place.names(place.triage)
    assert all(entry["remote"] for entry in found["entries"])
    assert (found["store"], found["bytes"], found["remote_bytes"]) == (url, 0, place.triage.bytes)
    assert "at the URL" in ask("ls").stdout


# --- verify --------------------------------------------------------------------------------------


def test_verify_of_a_whole_store_exits_0(place: Place, ask: Ask) -> None:
    result = ask("verify")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("no fault in ")
    found = read(ask("verify", "--json"))
    entries = {e.fingerprint: e for m in (place.triage, place.mobile, place.old) for e in m.entries}
    assert found["files"] == sum(len(entry.files) for entry in entries.values())
    assert found["bytes"] == sum(file.bytes for e in entries.values() for file in e.files)
    assert (found["faults"], found["unfinished"]) == ([], [])


def test_verify_tells_all_faults_with_place_and_mend(place: Place, ask: Ask) -> None:
    shared, own = place.triage.streams["hidden.2"], place.triage.streams["logits"]
    lost = next(iter(place.old.streams.values()))
    damage(place.store / shared.fingerprint / shared.shards[0].name)
    damage(place.store / shared.fingerprint / shared.shards[1].name)
    (place.store / own.fingerprint / own.shards[0].name).unlink()
    damage(place.store / lost.fingerprint / lost.shards[0].name)
    found = read(ask("verify", "--json"), 1)["faults"]
    assert {(fault["entry"], tuple(fault["recipes"]), fault["mend"]) for fault in found} == {
        (shared.fingerprint, ("mobile", "triage"), "dvc repro -s -f cache_teacher@mobile"),
        (own.fingerprint, ("triage",), "dvc repro -s -f cache_teacher@triage"),
        (lost.fingerprint, (), "stillhouse cache gc"),
    }
    assert len(found) == 4
    result = ask("verify")
    assert result.exit_code == 1
    for part in (shared.shards[1].name, "is missing", "mend: dvc repro", "4 faults in"):
        assert part in result.stdout
    assert ask("verify", place.triage.pieces["layer.2"].fingerprint[:6]).exit_code == 0
    for chosen in ("mobile", "params/mobile.yaml", shared.fingerprint):
        assert len(read(ask("verify", chosen, "--json"), 1)["faults"]) == 2, chosen


def test_verify_reports_what_is_unfinished_but_needed_by_none(place: Place, ask: Ask) -> None:
    name = next(iter(place.old.streams.values())).fingerprint
    (place.store / name / "manifest.json").unlink()
    result = ask("verify")
    assert result.exit_code == 0
    assert f"{name} is unfinished" in result.stdout
    with Store(place.store).writing([name]):
        assert f"{name} is being written" in ask("verify").stdout
    found = read(ask("verify", "--json"))["unfinished"]
    assert [(one["entry"], one["being_written"]) for one in found] == [(name, False)]


def test_verify_finds_a_recipes_own_manifest_damaged(place: Place, ask: Ask) -> None:
    damage(place.manifest("mobile"))
    place.manifest("mobile").write_text("{")
    (fault,) = read(ask("verify", "--json"), 1)["faults"]
    assert (fault["recipes"], fault["entry"]) == (["mobile"], "")
    assert fault["mend"] == "dvc repro -s -f cache_teacher@mobile"
    assert ask("verify", "triage").exit_code == 0


def test_verify_at_a_url_says_how_to_mend_it(
    place: Place, ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, stream = f"file://{tmp_path}/remote", place.triage.streams["hidden.1"]
    for manifest in (place.triage, place.mobile):
        open_cache_store(url, place.store, copies_bytes=2**20).share(manifest)
    shutil.rmtree(place.store)
    monkeypatch.setenv("STILLHOUSE_STORE", url)
    assert ask("verify").exit_code == 0
    damage(tmp_path / "remote" / stream.fingerprint / stream.shards[0].name)
    (fault,) = read(ask("verify", "--json"), 1)["faults"]
    assert fault["mend"].startswith(f"delete {url}/{stream.fingerprint}, then: dvc repro")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("triag", "'triag' means no recipe and no entry of the store. Expected one of triage"),
        ("zzzzz", "Expected one of mobile, triage"),
    ],
)
def test_verify_names_what_is_near_to_a_name_that_means_nothing(
    ask: Ask, name: str, said: str
) -> None:
    result = ask("verify", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_verify_of_a_recipe_without_a_cache_says_how_to_make_it(place: Place, ask: Ask) -> None:
    place.manifest("mobile").unlink()
    result = ask("verify", "mobile")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Run: dvc repro cache_teacher@mobile" in result.stderr


# --- gc ------------------------------------------------------------------------------------------


def left_in(place: Place) -> set[str]:
    """Entries with anything but locks in them."""
    return {p.parent.name for p in place.store.glob("*/*") if p.name not in ("lock", "use")}


def test_gc_removes_what_no_recipe_needs_and_says_what_it_was(place: Place, ask: Ask) -> None:
    found = read(ask("gc", "--yes", "--json"))
    assert {one["name"] for one in found["removed"]} == place.names(place.old)
    assert found["bytes"] > place.old.bytes  # manifests and notes too
    assert left_in(place) == place.names(place.triage, place.mobile)
    assert ask("verify").exit_code == 0
    assert read(ask("gc", "--yes", "--json"))["removed"] == []
    assert "nothing to remove" in ask("gc").stdout


def test_a_dry_run_lists_and_removes_nothing(place: Place, ask: Ask) -> None:
    before = left_in(place)
    found = read(ask("gc", "--dry-run", "--json"))
    assert (found["removed"], found["dry_run"]) == ([], True)
    assert {one["name"] for one in found["unneeded"]} == place.names(place.old)
    said = ask("gc", "--dry-run", "--yes").stdout
    assert "would remove" in said
    assert place.old.fingerprint in said
    assert left_in(place) == before


def test_gc_refuses_where_there_is_nobody_to_ask(place: Place, ask: Ask) -> None:
    before = left_in(place)
    for arguments in (["gc"], ["gc", "--json"]):
        result = ask(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "there is nobody to ask" in result.stderr
        assert "stillhouse cache gc --yes" in result.stderr
    assert left_in(place) == before


def at_terminal(place: Place, answer: bytes) -> tuple[int, str]:
    """`stillhouse cache gc` with a terminal as its input, and an answer typed there."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        done = subprocess.run(
            [sys.executable, "-m", "flows", "cache", "gc"],
            cwd=place.root,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=theirs,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    return done.returncode, done.stdout


def test_gc_asks_at_a_terminal_and_does_as_it_is_told(place: Place) -> None:
    before = left_in(place)
    code, said = at_terminal(place, b"n\n")
    assert code == 0
    assert "Remove " in said
    assert "removed 0 bytes" in said
    assert left_in(place) == before
    code, said = at_terminal(place, b"y\n")
    assert code == 0, said
    assert left_in(place) == place.names(place.triage, place.mobile)


def test_gc_keeps_what_another_process_uses_and_says_so(place: Place, ask: Ask) -> None:
    name = place.old.streams["hidden.2"].fingerprint
    with used_elsewhere(place.store, name):
        result = ask("gc", "--yes")
        assert result.exit_code == 0
        assert f"{name} stays: in use" in result.stdout
        assert "nothing to remove" in result.stdout
        found = read(ask("gc", "--yes", "--json"))
        assert {one["name"] for one in found["kept"]} == place.names(place.old)
        assert place.names(place.old) <= left_in(place)
    assert len(read(ask("gc", "--yes", "--json"))["removed"]) == 2


def test_gc_looks_again_after_it_was_answered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = care.kept_of(place.root)
    waste = care.find_unneeded(place.root, kept, remote=False)
    place.old.write(place.manifest("mobile"))  # the recipe needs it by now
    done = care.clear(place.root, kept, waste, remote=False)
    assert (done["removed"], done["failed"]) == ([], False)
    assert {one["kept"] for one in done["kept"]} == {"needed by now, or gone"}
    assert place.names(place.old) <= left_in(place)


def test_gc_removes_nothing_while_a_cache_may_be_half_written(place: Place, ask: Ask) -> None:
    before = left_in(place)
    shutil.rmtree(place.manifest("mobile").parent)  # as DVC does before it runs the stage
    (place.root / "artifacts" / "mobile" / "train_teacher").mkdir()
    result = ask("gc", "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "recipe mobile has a teacher and no cache yet" in result.stderr
    assert left_in(place) == before


def test_gc_removes_nothing_while_a_recipes_manifest_cant_be_read(place: Place, ask: Ask) -> None:
    before = left_in(place)
    place.manifest("mobile").write_text("{")
    result = ask("gc", "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "what recipe mobile needs can't be told" in result.stderr
    assert "Run: dvc repro -s -f cache_teacher@mobile" in result.stderr
    assert left_in(place) == before
    found = read(ask("ls", "--json"))
    assert found["unneeded_bytes"] is None
    assert "not JSON" in found["recipes"]["mobile"]["fault"]


def test_gc_goes_on_after_a_refusal_of_the_system_and_exits_1(
    place: Place, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, unlink = place.old.streams["hidden.2"].fingerprint, Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    found = read(ask("gc", "--yes", "--json"), 1)
    assert [one["name"] for one in found["removed"]] == [place.old.fingerprint]
    (kept,) = found["kept"]
    assert "Permission denied" in kept["kept"]


def test_gc_of_a_store_at_a_url_touches_it_only_with_remote(
    place: Place, ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/remote"
    for manifest in (place.triage, place.mobile, place.old):
        open_cache_store(url, place.store, copies_bytes=2**20).share(manifest)
    monkeypatch.setenv("STILLHOUSE_STORE", url)
    there = {path.name for path in (tmp_path / "remote").iterdir()}
    assert {one["kind"] for one in read(ask("gc", "--yes", "--json"))["removed"]} == {"entry"}
    assert {path.name for path in (tmp_path / "remote").iterdir()} == there
    found = read(ask("gc", "--yes", "--remote", "--json"))["removed"]
    assert {(one["kind"], one["name"]) for one in found} == {
        ("remote", name) for name in place.names(place.old)
    }
    left = {path.name for path in (tmp_path / "remote").iterdir()}
    assert left == place.names(place.triage, place.mobile)


def test_remote_is_refused_for_a_store_that_is_none(ask: Ask) -> None:
    result = ask("gc", "--remote", "--yes")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--remote is for a store at a URL" in result.stderr


def test_a_url_that_no_driver_reads_is_the_users_error(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_STORE", "nosuch://user:secret@place/x")
    for command in ("ls", "verify", "gc"):
        result = ask(command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "no driver for nosuch:// is installed" in result.stderr
        assert "secret" not in result.stderr


def test_outside_a_repository_each_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["ls"], ["verify"], ["gc"], ["plan", "x"]):
        result = CliRunner().invoke(main, ["cache", *arguments])
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert "not inside a stillhouse repository" in result.stderr
