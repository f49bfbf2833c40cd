"""A version: its name, its folder, what it answers, and what is never loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.kd.errors import ParamsError, RegistryError
from tasks.registry import (
    Produced,
    Registry,
    open_registry,
    packing,
)
from tests.makers.registered import (
    EXAMPLES,
    MODEL,
    Make,
    find_stored,
    put_forward,
    run_gate,
)
from tests.serving.test_served_student import FORMS, REFUSED, SINGLE, make_student

LONELY = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "tasks", "flows"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/triage@champion")
answer = model.predict(pd.DataFrame({"text": ["word0", "word1", "word2"]}))
print(",".join(answer["label"]), list(answer.columns))
every = model.predict(pd.DataFrame({"text": ["word1"]}), params={"all_scores": True})
print(",".join(every.columns))
"""


def test_the_champion_answers_in_a_process_without_torch_or_our_code(
    registry: Registry, make: Make, tmp_path: Path
) -> None:
    run_gate(registry, make())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LONELY],
        cwd=elsewhere,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1",
             "MLFLOW_TRACKING_URI": registry.uri, "MLFLOW_DISABLE_TELEMETRY": "true",
             "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "grain,ship,crude ['label', 'score']"  # wrong on all, as evaluated
    assert lines[1] == "label,score,score_crude,score_grain,score_ship"


@pytest.mark.parametrize("kept", ["our own", "on a server"])
def test_a_name_that_a_prompt_has_is_refused_and_the_prompt_left_alone(
    root: Path,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kept: str,
) -> None:
    """MLflow would write the version into the prompt, where nobody can load it."""
    if kept == "on a server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server"))
    registry = open_registry(root)
    client = registry.store.client
    registry.require_name(MODEL)
    client.register_prompt(MODEL, "Classify {{text}}")
    client.register_prompt("other", "Summarise {{text}}")
    registry.require_name("triage2")
    message = r"the name of a prompt in MLflow: triage, .* Expected a name that no prompt has"
    with pytest.raises(ParamsError, match=message):
        registry.require_name(MODEL)
    for _ in range(2):
        with pytest.raises(ParamsError, match=message):
            put_forward(registry, make())
    prompts = client.search_prompt_versions(MODEL)
    assert [version.version for version in prompts] == [1]
    assert client.search_logged_models([registry.store.ensure_experiment("experiments")]) == []


def test_a_prompt_that_is_made_while_a_student_is_packed_is_left_alone(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = packing.pack

    def pack_late(*given: Any) -> None:
        pack(*given)
        registry.store.client.register_prompt(MODEL, "Classify {{text}}")

    monkeypatch.setattr(packing, "pack", pack_late)
    with pytest.raises(ParamsError, match="the name of a prompt"):
        put_forward(registry, make())
    prompts = registry.store.client.search_prompt_versions(MODEL)
    assert [version.version for version in prompts] == [1]


def test_no_database_is_made_to_look_a_name_up(tmp_path: Path) -> None:
    open_registry(tmp_path).require_name(MODEL)
    assert list(tmp_path.iterdir()) == []


def fetch_champion(registry: Registry, produced: Produced, folder: Path) -> Any:
    """The registered student, as MLflow loads it for anyone."""
    version, _ = run_gate(registry, produced)
    return packing.load(packing.fetch_verified(registry.store, version.uri, version.tags, folder))


def test_the_champion_takes_texts_in_every_form(
    registry: Registry, make: Make, tmp_path: Path
) -> None:
    """MLflow would refuse half of them before our code is asked, had the model an input schema."""
    from mlflow.exceptions import MlflowException

    champion = fetch_champion(registry, make(wrong=()), tmp_path / "model")
    for form, texts in FORMS.items():
        assert champion.predict(texts)["label"].tolist() == ["grain", "ship"], form
    for form, text in SINGLE.items():
        assert champion.predict(text)["label"].tolist() == ["grain"], form
    for texts, message in REFUSED.values():
        with pytest.raises(MlflowException, match=message):
            champion.predict(texts)
    assert list(champion.predict([]).columns) == ["label", "score"]
    with pytest.raises(MlflowException, match="all_scores"):
        champion.predict(["word1"], params={"all_scores": "perhaps"})


def test_mlflows_server_hands_texts_on_in_every_form(
    registry: Registry, make: Make, tmp_path: Path
) -> None:
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    champion = fetch_champion(registry, make(wrong=()), tmp_path / "model")
    client = TestClient(scoring_server.init(champion))
    two: dict[str, Any] = {
        "dataframe_split": {"columns": ["id", "text"], "data": [[1, "word1"], [2, "word2"]]},
        "dataframe_records": [{"text": "word1"}, {"text": "word2"}],
        "instances": ["word1", "word2"],
        "inputs": ["word1", "word2"],
    }
    payloads = [*two.items()]
    for key in ("instances", "inputs"):
        payloads += [(key, {"text": ["word1", "word2"]}), (key, two["dataframe_records"])]
    for key, texts in payloads:
        answer = client.post("/invocations", json={key: texts, "params": {"all_scores": True}})
        rows = answer.json()["predictions"]
        assert [row["label"] for row in rows] == ["grain", "ship"], (key, texts)
        assert {"score_crude", "score_grain", "score_ship"} < set(rows[0])
    for texts in ("word1", {"text": "word1"}):
        answer = client.post("/invocations", json={"inputs": texts})
        assert [row["label"] for row in answer.json()["predictions"]] == ["grain"]
    refused = client.post("/invocations", json={"inputs": {"body": ["word1"]}})
    assert refused.status_code == 400
    assert "Send a table with a column `text`" in refused.json()["message"]


def test_the_model_folder_is_small_pinned_and_without_pickle(
    registry: Registry, make: Make, tmp_path: Path
) -> None:
    version = put_forward(registry, make())
    folder = packing.fetch_verified(registry.store, version.uri, version.tags, tmp_path)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "artifacts/model.onnx", "artifacts/tokenizer.json", "artifacts/student.json",
        "served_student.py", "requirements.txt", "MLmodel",
    } <= names  # fmt: skip
    assert not [n for n in names if n.endswith((".pkl", ".pickle", ".bin", ".pt", ".joblib"))]
    wanted = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    assert {line.split("==")[0] for line in wanted} == {
        "mlflow", "numpy", "onnxruntime", "pandas", "tokenizers",
    }  # fmt: skip
    assert all("==" in line for line in wanted)
    assert "run_id: " + version.run_id in (folder / "MLmodel").read_text(encoding="utf-8")


def test_a_student_that_does_not_say_what_was_evaluated_is_not_registered(
    registry: Registry, make: Make
) -> None:
    produced = make()
    make_student(produced.artifacts / "export_student", [0] * EXAMPLES)
    with pytest.raises(RegistryError, match="does not say what was evaluated"):
        put_forward(registry, produced)
    assert registry.find(produced) is None


@pytest.mark.parametrize("name", ["served_student.py", "model.onnx", "MLmodel"])
def test_a_model_that_was_tampered_with_is_never_loaded_or_promoted(
    registry: Registry, make: Make, name: str
) -> None:
    produced = make()
    version = put_forward(registry, produced)
    decision = registry.gate(produced, version)
    (stored,) = find_stored(registry, name)
    stored.write_bytes(stored.read_bytes() + b"\n# added\n")
    with pytest.raises(RegistryError, match=r"not the ones that were registered.*not loaded"):
        registry.promote(version, decision, "it passed")
    assert registry.champion(MODEL) is None


def test_a_strange_file_in_a_model_is_never_loaded(registry: Registry, make: Make) -> None:
    produced = make()
    version = put_forward(registry, produced)
    decision = registry.gate(produced, version)
    (stored,) = find_stored(registry, "MLmodel")
    (stored.parent / "python_model.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(RegistryError, match=r"never loaded.*python_model\.pkl"):
        registry.promote(version, decision, "it passed")


def test_model_uris_lead_to_versions_or_a_plain_message(registry: Registry, make: Make) -> None:
    with pytest.raises(ParamsError, match="No such model"):
        registry.resolve("models:/triage@champion")
    version, _ = run_gate(registry, make())
    assert registry.resolve("models:/triage@champion") == version
    assert registry.resolve("models:/triage/1") == version
    with pytest.raises(ParamsError, match=r"no such alias.*candidate, champion"):
        registry.resolve("models:/triage@previous")
    with pytest.raises(ParamsError, match="no such version"):
        registry.resolve("models:/triage/7")
    for wrong in ("triage", "models:/triage", "models:/a/b/c", "runs:/1", "models:/triage/x"):
        with pytest.raises(ParamsError, match="Not a model"):
            registry.resolve(wrong)
