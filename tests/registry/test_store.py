"""Servers, two stores, and stores that do not answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.kd.errors import RegistryError, TransientError
from tasks.registry import (
    Registry,
    open_registry,
)
from tasks.registry.store import import_quietly
from tests.makers.registered import (
    MODEL,
    Make,
    find_closed_port,
    find_rule,
    put_forward,
    run_gate,
)


@pytest.mark.slow
def test_a_server_keeps_runs_versions_and_aliases_as_our_own_store_does(
    root: Path, make: Make, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    registry = open_registry(root)
    run_gate(registry, make(wrong=range(6)))
    produced = make(wrong=range(2, 4), examples=range(250))  # the champion is fetched and asked
    version, decision = run_gate(registry, produced)
    assert "of 250" in find_rule(decision, "champion").explanation
    assert version.aliases == ("candidate", "champion")
    assert put_forward(registry, produced) == version
    assert registry.rollback(MODEL, "back").version == 1
    assert registry.lineage("models:/triage/2")["run"]["found"] is True
    assert not (registry.store.folder / "artifacts").exists()
    shutil.rmtree(tmp_path / "served")
    _, decision = run_gate(registry, make(wrong=range(1), examples=range(200)))
    assert "files are gone: models:/triage/1" in find_rule(decision, "champion").explanation


def test_models_may_be_kept_elsewhere_than_runs(
    root: Path, make: Make, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    production = tmp_path / "production.db"
    shutil.copyfile(database, production)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    desk = open_registry(root)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{production}")
    registry = open_registry(root)
    run_gate(registry, make(wrong=range(6)))
    version, decision = run_gate(registry, make(wrong=range(2), examples=range(250)))
    # The champion was fetched and asked.
    assert "of 250" in find_rule(decision, "champion").explanation
    assert version.aliases == ("candidate", "champion")
    status = registry.status(MODEL)
    assert (status["champion"]["version"], status["previous"]["version"]) == (2, 1)
    assert status["registry"] == f"sqlite:///{production}"
    assert registry.rollback(MODEL, "back").version == 1
    assert registry.lineage("models:/triage/2")["run"]["found"] is True
    assert desk.champion(MODEL) is None, "each holds its own alone"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("down", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_of_two_stores_the_one_that_does_not_answer_is_named(
    root: Path, make: Make, monkeypatch: pytest.MonkeyPatch, down: str
) -> None:
    monkeypatch.chdir(root)  # MLflow keeps files there beside a database of the user's own
    address = f"127.0.0.1:{find_closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / '.mlflow' / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{root / '.mlflow' / 'mlflow.db'}")
    monkeypatch.setenv(down, f"http://user:secret@{address}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = open_registry(root)
    with pytest.raises(TransientError) as caught:
        run_gate(registry, make())
    assert str(caught.value).startswith(f"MLflow does not answer: http://{address}. The artifacts")
    told = registry.store._report("strange http", None, transient=False)
    assert f"http://{address}" in str(told)
    assert "mlflow.db" in str(told), "a fault that does not say whose it is names both"
    assert "secret" not in str(told)


def test_a_server_that_is_down_is_one_plain_message(
    root: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{find_closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@{address}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TransientError) as caught:
        open_registry(root).track(make())
    message = str(caught.value)
    assert message == (
        f"MLflow does not answer: http://{address}. The artifacts stay as they are; the same "
        "command registers them without training again. Run: stillhouse run tiny"
    )
    assert caught.value.exit_code == 1


def test_an_outage_is_never_taken_for_no_champion(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{find_closed_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TransientError, match="does not answer"):
        open_registry(root).champion(MODEL)


def test_a_dead_server_is_given_up_within_seconds_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MAX_RETRIES", "TIMEOUT", "BACKOFF_FACTOR"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    import_quietly()
    from mlflow.environment_variables import (
        MLFLOW_HTTP_REQUEST_MAX_RETRIES,
        MLFLOW_HTTP_REQUEST_TIMEOUT,
    )

    asked = [MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT]
    assert [setting.get() for setting in asked] == [3, 77]  # type: ignore[no-untyped-call]


def test_a_broken_database_is_named_at_once(root: Path, make: Make) -> None:
    (root / ".mlflow" / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RegistryError, match=r"database can't be read .*mlflow\.db"):
        open_registry(root).track(make())


def test_a_deleted_experiment_is_named_with_its_mend(registry: Registry, make: Make) -> None:
    produced = make()
    client = registry.store.client
    client.delete_experiment(registry.store.ensure_experiment("experiments"))
    with pytest.raises(RegistryError, match=r"deleted in MLflow: experiments.*restore"):
        registry.track(produced)


def test_our_database_is_whole_or_not_there(database: Path) -> None:
    assert [path.name for path in database.parent.glob("mlflow.db*")] == ["mlflow.db"]


def test_mlflow_is_not_imported_by_importing_the_registry() -> None:
    program = "import sys, tasks.registry; print([m for m in sys.modules if m in {heavy}])"
    heavy = {"mlflow", "pandas", "onnxruntime", "torch", "numpy", "pyarrow"}
    done = subprocess.run(
        [sys.executable, "-c", program.format(heavy=heavy).replace("{heavy}", str(heavy))],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
