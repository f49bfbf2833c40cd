"""`stillhouse cache gc` and `ls` on a folder that several repositories use as their store."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flows import job
from flows.cli import main
from tasks.kd.cache.care.users import register
from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.store.store import Store
from tests.isolation import ROOT
from tests.kd.conftest import make_split
from tests.makers.caches import make_job, make_params, write
from tests.makers.documents import make_data_card, make_split_card

Gc = Callable[..., Result]


class Shared:
    """Two repositories, `own` and `other`, with a recipe each, and one store."""

    def __init__(self, folder: Path) -> None:
        self.store, split = folder / "store", make_split()
        self.roots = {name: folder / name for name in ("own", "other")}
        streams = {"own": ("hidden.2",), "other": ("hidden.2", "hidden.4")}
        self.manifests: dict[str, Manifest] = {}
        for name, root in self.roots.items():
            found = write(make_job(split, make_params(streams=streams[name])), self.store)
            self.manifests[name] = found
            (root / "params").mkdir(parents=True)
            (root / "dvc.yaml").touch()
            (root / "params" / "recipes.yaml").write_text("recipes: {}")
            shutil.copy(ROOT / "params" / "quickstart.yaml", root / "params" / f"{name}.yaml")
            self.path(name).parent.mkdir(parents=True)
            found.write(self.path(name))
            register(Store(self.store), root, name, self.names(name))
        self.old = write(make_job(split, make_params(streams=("hidden.1",))), self.store)

    def path(self, name: str) -> Path:
        return self.roots[name] / "artifacts" / name / "cache_teacher" / "manifest.json"

    def names(self, name: str) -> set[str]:
        manifest = self.manifests[name]
        return {manifest.fingerprint, *(entry.fingerprint for entry in manifest.entries)}

    @property
    def others_alone(self) -> set[str]:
        return self.names("other") - self.names("own")

    @property
    def left(self) -> set[str]:
        return {path.parent.name for path in self.store.glob("*/manifest.json")}

    @property
    def unneeded(self) -> set[str]:
        return {self.old.fingerprint, *(entry.fingerprint for entry in self.old.entries)}


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


@pytest.fixture
def ask(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Gc:
    monkeypatch.chdir(shared.roots["own"])
    monkeypatch.setenv("STILLHOUSE_STORE", str(shared.store))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["cache", *arguments])

    return run


def read(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_gc_keeps_what_another_repository_needs_and_says_whose_it_is(
    shared: Shared, ask: Gc
) -> None:
    assert shared.others_alone
    found = read(ask("gc", "--yes", "--json"))
    assert {one["name"] for one in found["removed"]} == shared.unneeded
    assert {one["name"] for one in found["kept"]} == shared.others_alone
    said = f"needed by other of {shared.roots['other']}"
    assert {one["kept"] for one in found["kept"]} == {said}
    assert shared.left == shared.names("own") | shared.names("other")
    text = " ".join(ask("gc").stdout.split())
    assert said in text
    assert "nothing to remove" in text


def test_without_its_note_what_it_needs_would_go(shared: Shared, ask: Gc) -> None:
    shutil.rmtree(shared.store / "users")
    removed = read(ask("gc", "--yes", "--json"))["removed"]
    assert {one["name"] for one in removed} == shared.unneeded | shared.others_alone


def test_what_a_repository_here_needs_now_counts_not_what_it_once_noted(
    shared: Shared, ask: Gc
) -> None:
    register(Store(shared.store), shared.roots["other"], "other", shared.unneeded)
    removed = read(ask("gc", "--yes", "--json"))["removed"]
    assert {one["name"] for one in removed} == shared.unneeded
    assert shared.left >= shared.others_alone


@pytest.mark.parametrize("state", ["not made yet", "damaged"])
def test_its_note_counts_where_its_manifest_tells_nothing(
    state: str, shared: Shared, ask: Gc
) -> None:
    if state == "damaged":
        shared.path("other").write_text("{")
    else:
        shared.path("other").unlink()
    assert {one["name"] for one in read(ask("gc", "--yes", "--json"))["removed"]} == shared.unneeded


def test_what_a_repository_that_is_gone_needed_goes_with_its_note(shared: Shared, ask: Gc) -> None:
    gone = shared.roots["other"]
    shutil.rmtree(gone)
    found = read(ask("gc", "--dry-run", "--json"))
    assert found["gone"] == [str(gone)]
    assert len(list((shared.store / "users").iterdir())) == 2
    assert f"{gone} is not there any more" in " ".join(ask("gc", "--dry-run").stdout.split())
    removed = read(ask("gc", "--yes", "--json"))["removed"]
    assert {one["name"] for one in removed} == shared.unneeded | shared.others_alone
    assert len(list((shared.store / "users").iterdir())) == 1


def test_what_a_repository_on_another_machine_noted_stays(
    shared: Shared, ask: Gc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.rmtree(shared.roots["other"])
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        register(Store(shared.store), tmp_path / "far", "far", shared.others_alone)
    found = read(ask("gc", "--yes", "--json"))
    assert {one["name"] for one in found["removed"]} == shared.unneeded
    assert {one["kept"] for one in found["kept"]} == {
        f"needed by far of {tmp_path / 'far'} on elsewhere"
    }


def test_a_note_that_can_t_be_read_stops_gc(shared: Shared, ask: Gc) -> None:
    before = shared.left
    for note in (shared.store / "users").iterdir():
        note.write_text("{")
    result = ask("gc", "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "a note of who uses the store can't be read" in result.stderr
    assert shared.left == before


def test_a_note_that_came_since_it_was_listed_is_seen(
    shared: Shared, ask: Gc, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import care

    clear = care.clear

    def late(root: Path, kept: Any, wanted: Any, *, remote: bool) -> Any:
        note = [shared.old.fingerprint]
        shared.path("other").unlink()
        register(Store(shared.store), shared.roots["other"], "other", note)
        return clear(root, kept, wanted, remote=remote)

    monkeypatch.setattr(care, "clear", late)
    found = read(ask("gc", "--yes", "--json"))
    assert shared.old.fingerprint in {one["name"] for one in found["kept"]}
    assert shared.old.fingerprint in shared.left


def test_ls_names_the_other_repositories(shared: Shared, ask: Gc) -> None:
    found = read(ask("ls", "--json"))
    whose = {one["fingerprint"]: one["others"] for one in found["entries"]}
    assert {name for name, others in whose.items() if others} == shared.names("other")
    assert whose[shared.manifests["other"].fingerprint] == [f"other of {shared.roots['other']}"]
    unneeded = sum(
        one["bytes"] for one in found["entries"] if one["fingerprint"] in shared.unneeded
    )
    assert found["unneeded_bytes"] == unneeded
    assert "other of" in ask("ls").stdout


# --- what a recipe's cache will take -------------------------------------------------------------


def test_the_estimate_is_the_plan_s_and_nothing_for_a_live_teacher(
    shared: Shared, ask: Gc, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shared.roots["own"]
    (root / "params" / "recipes.yaml").write_text("recipes:\n  own: {inputs: []}\n")
    monkeypatch.setattr("tasks.kd.recipe.files.check_inputs", lambda *_: None)
    found = job.read_job("own", root)
    assert job.estimate_cache(found) is None
    prepared = found.artifacts / "prepare_data"
    prepared.mkdir(parents=True)
    train = make_split_card(("a", "b"), examples=100, tokens=2000)
    make_data_card(("a", "b"), splits={"train": train}).write(prepared)
    planned = read(ask("plan", "own", "--json"))
    assert planned["bytes"] is not None
    assert job.estimate_cache(found) == planned["bytes"] > 0
    path = root / "params" / "own.yaml"
    text = path.read_text()
    assert text.count("mode: cache") == 1
    path.write_text(text.replace("mode: cache", "mode: live"))
    assert job.estimate_cache(job.read_job("own", root)) == 0
