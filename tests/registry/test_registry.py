"""The registry against a real MLflow store on disk, with a small but complete set of artifacts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.digests import read_json, sha256_file, sha256_json, write_json
from tasks.kd.documents.evaluation import Latency, Metrics
from tasks.kd.documents.predictions import PREDICTIONS, read_predictions, write_predictions
from tasks.kd.errors import DataError, KDError, ParamsError, RegistryError, TransientError
from tasks.kd.gate.decision import Decision, Rule
from tasks.kd.recipe.files import load_recipe
from tasks.kd.recipe.recipe import Recipe
from tasks.kd.recipe.sections import Gate, Register
from tasks.registry import (
    Lineage,
    Produced,
    Registry,
    Version,
    open_registry,
    packing,
    tracing,
    tracking,
)
from tasks.registry.produced import STAGES
from tasks.registry.store import import_quietly
from tests.kd.conftest import make_split
from tests.makers.caches import make_job, make_params, write
from tests.makers.documents import (
    change,
    make_data_card,
    make_dev_record,
    make_export_report,
    make_level_record,
    make_manifest,
    make_metrics,
    make_predictions,
    make_student_report,
    make_teacher_report,
    make_train_record,
    write_history,
)
from tests.serving.test_served_student import FORMS, LABELS, REFUSED, SINGLE, make_student

EXAMPLES = 300
TRUTH = [index % 3 for index in range(EXAMPLES)]
MODEL = "triage"
QUICKSTART = Path(__file__).parents[2] / "params" / "quickstart.yaml"

Make = Callable[..., Produced]


# --- a set of artifacts --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's migrations take seconds: once, then copied."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert open_registry(root).champion(MODEL) is None
    return root / ".mlflow" / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "STILLHOUSE_STORE"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "checkout"
    (root / ".mlflow").mkdir(parents=True)
    shutil.copyfile(database, root / ".mlflow" / "mlflow.db")
    return root


@pytest.fixture
def registry(root: Path) -> Registry:
    return open_registry(root)


@pytest.fixture
def make(root: Path) -> Make:
    """Write all artifacts of a recipe whose student is wrong on the given examples."""

    def write(name: str = "tiny", *, wrong: Sequence[int] = range(5), **changes: Any) -> Produced:
        return write_artifacts(root, name, wrong, **changes)

    return write


def write_artifacts(
    root: Path,
    name: str,
    wrong: Sequence[int],
    *,
    labels: Sequence[str] = LABELS,
    examples: range = range(EXAMPLES),
    gate: dict[str, Any] | None = None,
) -> Produced:
    out = root / "artifacts" / name
    for stage in STAGES:
        (out / stage).mkdir(parents=True, exist_ok=True)
    answers = [(label + 1) % 3 if i in wrong else label for i, label in enumerate(TRUTH)]
    make_student(out / "export_student", answers, labels=labels)
    (out / "export_student" / "model_card.md").write_text("# A student\n", encoding="utf-8")
    make_export_report().write(out / "export_student")
    digest = f"{len(examples):064x}"
    write_test_split(out / "prepare_data" / "test.arrow", examples)
    make_data_card(labels, test_sha256=digest).write(out / "prepare_data")
    write_trainings(out, answers)
    write_evaluation(out / "evaluate_student", digest, labels, examples, answers)
    recipe = make_recipe(gate or {})
    file = root / "params" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(recipe.model_dump_json(by_alias=True), encoding="utf-8")
    return Produced(name, recipe, root, out, make_lineage(root, name))


def write_test_split(path: Path, examples: range) -> None:
    columns: dict[str, Any] = {
        "example_id": pa.array([f"e{i:04d}" for i in examples], pa.string()),
        "text": pa.array([f"word{i}" for i in examples], pa.string()),
        "label": pa.array([TRUTH[i] for i in examples], pa.int32()),
        "input_ids": pa.array([[2, 4 + i, 3] for i in examples], pa.list_(pa.int32())),
    }
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def write_trainings(out: Path, answers: Sequence[int]) -> None:
    for role in ("teacher", "student"):
        updates = [
            make_train_record(
                step,
                loss=1 / step,
                levels={"prediction.kl": make_level_record(2 / step, 0.5)},
            )
            for step in range(1, 31)
        ]
        write_history(out / f"train_{role}", [*updates, make_dev_record(30)])
    manifest = make_manifest()
    manifest.write(out / "cache_teacher" / MANIFEST)
    make_teacher_report().write(out / "train_teacher")
    make_student_report(
        student_sha256=sha256_json(list(answers)), cache_fingerprint=manifest.fingerprint
    ).write(out / "train_student")


def write_evaluation(
    out: Path, digest: str, labels: Sequence[str], examples: range, answers: Sequence[int]
) -> None:
    rows = make_predictions(TRUTH, answers, labels)
    write_predictions(out, [rows[i] for i in examples])
    make_metrics(labels, evaluation_fingerprint=digest, examples=len(examples)).write(out)
    (out / "report.html").write_text("<p>report</p>", encoding="utf-8")
    (out / "plots").mkdir(exist_ok=True)
    (out / "plots" / "curve.png").write_bytes(b"png")


def make_lineage(root: Path, name: str) -> Lineage:
    """As DVC would say: one hash per stage's out, another one whenever a byte differs."""
    hashes = {}
    for stage in STAGES:
        folder = root / "artifacts" / name / stage
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digest = "".join(sha256_file(path)[:4] for path in files)[:32]
        hashes[stage] = {f"artifacts/{name}/{stage}": f"{digest}.dir"}
    return Lineage(git_commit="1" * 40, git_dirty=True, dvc=hashes, flow_run_id="flow-1")


def make_recipe(gate: dict[str, Any]) -> Recipe:
    """The quickstart's recipe with another name in MLflow and a gate of its own."""
    recipe = load_recipe(QUICKSTART)
    limits = {
        "min_accuracy": 0.5,
        "min_lead": 0.1,
        "min_retention": 0.9,
        "max_accuracy_drop": 0.03,
        "confidence": 0.95,
        "min_examples": 100,
        "max_size_mib": 10.0,
        "max_latency_p95_ms": 50.0,
        **gate,
    }
    register = Register(experiment="experiments", model=MODEL)
    return recipe.model_copy(update={"register_": register, "gate": Gate(**limits)})


def measure_again(produced: Produced, p95_ms: float) -> Produced:
    """As `evaluate_student` leaves it when it runs again: the same student, another latency."""
    folder = produced.artifacts / "evaluate_student"
    latency = Latency(p50=p95_ms / 2, p95=p95_ms, mean=p95_ms / 2)
    metrics = Metrics.read(folder)
    change(metrics, student=change(metrics.student, latency_ms=latency)).write(folder)
    lineage = make_lineage(produced.root, produced.name)
    return Produced(produced.name, produced.recipe, produced.root, produced.artifacts, lineage)


def put_forward(registry: Registry, produced: Produced) -> Version:
    return registry.register(produced, registry.track(produced))


def find_rule(decision: Decision, name: str) -> Rule:
    (found,) = [rule for rule in decision.rules if rule.name == name]
    return found


def run_gate(registry: Registry, produced: Produced) -> tuple[Version, Decision]:
    """What the flow does after the stages."""
    version = put_forward(registry, produced)
    decision = registry.gate(produced, version)
    if decision.verdict == "promote":
        version = registry.promote(version, decision, "the gate passed")
    return version, decision


def number_of_champion(registry: Registry) -> int | None:
    champion = registry.champion(MODEL)
    return champion.version if champion else None


# --- the run -------------------------------------------------------------------------------------


def test_nothing_is_left_in_the_working_directory(
    registry: Registry, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow falls back to a database in the working directory wherever it is not told better."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run_gate(registry, make())
    registry.lineage("models:/triage@champion")
    assert list(Path().iterdir()) == []
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_run_carries_everything_and_says_nothing(
    registry: Registry, make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    produced = make()
    run_id = registry.track(produced)
    client = registry.store.client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    phase = produced.recipe.train_student.phases[0]
    params = run.data.params
    assert params["train_student.phases.0.levels.0.weight"] == str(phase.levels[0].weight)
    assert json.loads(params["cache_teacher.streams"])[0] == "logits"
    assert params["register.model"] == MODEL
    assert params["compute.threads"] == json.dumps(produced.recipe.compute.threads)
    history = client.get_metric_history(run_id, "student.train.prediction.kl.raw")
    assert sorted((one.step, one.value) for one in history) == [(s, 2 / s) for s in range(1, 31)]
    for name in ("teacher.train.loss", "student.dev.accuracy", "test.student.accuracy.low"):
        assert name in run.data.metrics
    assert run.data.metrics["test.retention"] == 0.98
    tags = run.data.tags
    assert tags["git.commit"] == "1" * 40
    assert tags["git.dirty"] == "true"
    assert tags["teacher.sha256"] == make_teacher_report().teacher_sha256
    assert tags["cache.fingerprint"] == make_manifest().fingerprint
    assert tags["prefect.flow_run_id"] == "flow-1"
    assert all(tags[f"dvc.{stage}"].endswith(".dir") for stage in STAGES)
    assert run.inputs is not None
    contexts = {
        tag.value
        for one in run.inputs.dataset_inputs
        for tag in one.tags
        if tag.key == "mlflow.data.context"
    }
    assert contexts == {"training", "testing"}
    files = {file.path for file in client.list_artifacts(run_id, "evaluate_student")}
    assert {"evaluate_student/report.html", "evaluate_student/plots"} <= files
    assert client.list_artifacts(run_id, "recipe")[0].path == "recipe/tiny.yaml"
    put_forward(registry, produced)
    assert capfd.readouterr() == ("", "")


def test_tracking_and_registering_twice_change_nothing(registry: Registry, make: Make) -> None:
    produced = make()
    first = put_forward(registry, produced)
    again = put_forward(open_registry(registry.store.root), produced)
    assert (again.version, again.run_id) == (first.version, first.run_id) == (1, first.run_id)
    assert registry.find(produced) == again
    assert "candidate" in again.aliases
    client, experiment = registry.store.client, registry.store.ensure_experiment("experiments")
    assert len(client.search_runs([experiment])) == 1
    assert len(client.search_logged_models([experiment])) == 1


def test_a_run_that_was_begun_and_not_finished_is_done_anew(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced = make()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_log_inputs", die)
        with pytest.raises(KeyboardInterrupt):
            registry.track(produced)
    client, experiment = registry.store.client, registry.store.ensure_experiment("experiments")
    broken = client.search_runs([experiment])[0]
    assert broken.info.status == "FAILED"
    # and one that was killed, without a last word
    killed = client.create_run(experiment, tags=produced.tags).info.run_id
    run_id = registry.track(produced)
    assert run_id not in {broken.info.run_id, killed}
    assert [run.info.run_id for run in client.search_runs([experiment])] == [run_id]
    assert client.get_run(run_id).data.params["gate.min_examples"] == "100"


def test_a_registration_that_was_cut_off_leaves_no_version_and_is_cleared(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced = make()
    run_id = registry.track(produced)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "fetch_verified", die)
        with pytest.raises(KeyboardInterrupt):
            registry.register(produced, run_id)
    assert registry.find(produced) is None
    version = registry.register(produced, run_id)
    assert version.version == 1
    client, experiment = registry.store.client, registry.store.ensure_experiment("experiments")
    assert [model.status.value for model in client.search_logged_models([experiment])] == ["READY"]


def test_a_text_beyond_mlflows_limit_is_cut_and_says_so(make: Make) -> None:
    produced = make()
    long = produced.recipe.model_copy(update={"description": "x" * 7000})
    text = tracking.flatten_recipe(dataclasses.replace(produced, recipe=long))["description"]
    assert len(text) <= 6000
    assert text.endswith("(cut; whole in recipe/tiny.yaml)")


def test_artifacts_that_dvc_did_not_record_are_refused(registry: Registry, make: Make) -> None:
    produced = make()
    hashes = {stage: paths for stage, paths in produced.lineage.dvc.items() if stage != STAGES[2]}
    lineage = dataclasses.replace(produced.lineage, dvc=hashes)
    with pytest.raises(DataError, match=r"no hash of some outs: train_teacher"):
        registry.find(dataclasses.replace(produced, lineage=lineage))


@pytest.mark.parametrize("name", ["report.html", "predictions.csv"])
def test_a_missing_artifact_is_named_and_nothing_is_registered(
    registry: Registry, make: Make, name: str
) -> None:
    produced = make()
    (produced.artifacts / "evaluate_student" / name).unlink()
    with pytest.raises(DataError, match=rf"An artifact is missing: .*{name}.*stillhouse run tiny"):
        put_forward(registry, produced)
    assert registry.find(produced) is None


def test_an_evaluation_of_another_test_split_is_refused(registry: Registry, make: Make) -> None:
    produced = make()
    other = make_data_card(LABELS, test_sha256="9" * 64)
    other.write(produced.artifacts / "prepare_data")
    with pytest.raises(DataError, match="another test split"):
        registry.track(produced)


def test_another_gate_is_the_same_version_and_another_byte_is_not(make: Make) -> None:
    first = make()
    assert make(gate={"min_examples": 200}).fingerprint == first.fingerprint
    assert make(wrong=range(6)).fingerprint != first.fingerprint


# --- the version ---------------------------------------------------------------------------------

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


def find_stored(registry: Registry, name: str) -> list[Path]:
    return list((registry.store.folder / "artifacts").rglob(f"models/**/{name}"))


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


# --- gate and champion ---------------------------------------------------------------------------


def test_a_first_version_is_promoted_and_the_decision_kept(registry: Registry, make: Make) -> None:
    version, decision = run_gate(registry, make())
    assert decision.verdict == "promote"
    assert version.aliases == ("candidate", "champion")
    assert version.tags["gate.verdict"] == "promote"
    assert version.tags["promoted_reason"] == "the gate passed"
    assert version.tags["previous_version"] == "none"
    path = registry.store.client.download_artifacts(version.run_id, "gate/decision.json")
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    assert record["candidate"] == {"model": MODEL, "version": 1}
    assert record["champion"] is None
    assert record["gate_params"]["min_examples"] == 100


def test_a_refusal_leaves_the_champion_alone(registry: Registry, make: Make) -> None:
    run_gate(registry, make(wrong=range(3)))
    version, decision = run_gate(registry, make(wrong=range(25)))
    assert decision.verdict == "refuse"
    assert [rule.name for rule in decision.refused_by] == ["retention", "champion"]
    assert decision.against == "models:/triage/1"
    assert number_of_champion(registry) == 1
    assert version.aliases == ("candidate",)
    with pytest.raises(RegistryError, match=r"gate refused .*retention, champion.*--override"):
        registry.promote(version, decision, "please")
    with pytest.raises(RegistryError, match="gate refused"):
        registry.promote(version, None, "please")
    assert number_of_champion(registry) == 1


def test_a_better_version_replaces_the_champion_which_becomes_previous(
    registry: Registry, make: Make
) -> None:
    run_gate(registry, make(wrong=range(6)))
    version, decision = run_gate(registry, make(wrong=range(2)))
    assert decision.verdict == "promote"
    assert version.tags["previous_version"] == "1"
    status = registry.status(MODEL)
    assert status["champion"]["version"] == status["candidate"]["version"] == 2
    assert status["previous"]["version"] == 1
    assert status["versions"] == 2


def test_gating_again_recalls_the_decision(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced = make()
    version, decision = run_gate(registry, produced)
    monkeypatch.setattr("tasks.registry.promotion.decide", None)  # whoever decides anew will crash
    assert registry.decided(version, produced.recipe.gate) == decision
    again, recalled = run_gate(registry, produced)
    assert recalled == decision
    assert again == version


def test_other_limits_are_judged_anew_and_do_not_unseat_the_champion(
    registry: Registry, make: Make
) -> None:
    run_gate(registry, make())
    stricter = make(gate={"min_retention": 0.999})
    version, decision = run_gate(registry, stricter)
    assert version.version == 1
    assert [rule.name for rule in decision.refused_by] == ["retention"]
    rule = next(rule for rule in decision.rules if rule.name == "champion")
    assert "champion itself" in rule.explanation
    assert number_of_champion(registry) == 1


def test_a_student_that_guesses_is_refused_however_much_it_retains(
    registry: Registry, make: Make
) -> None:
    """Right on a third of three classes, as its teacher: kept whole, and worth nothing."""
    produced = make(wrong=range(200), gate={"min_accuracy": 0.0, "min_lead": 0.0})
    folder = produced.artifacts / "evaluate_student"
    rows = read_predictions(folder)
    write_predictions(folder, [row._replace(teacher=row.student) for row in rows])
    _, decision = run_gate(registry, produced)
    assert decision.verdict == "refuse"
    assert [rule.name for rule in decision.refused_by] == ["lead"]
    assert registry.champion(MODEL) is None


def test_the_champion_is_asked_again_when_the_test_split_is_another(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_gate(registry, make(wrong=range(3)))
    monkeypatch.setattr("tasks.registry.promotion._read_stored", None)  # other examples: no use
    produced = make(wrong=range(3, 5), examples=range(250))
    _, decision = run_gate(registry, produced)
    rule = find_rule(decision, "champion")
    assert rule.name == "champion"
    assert "Right on 3 examples" in rule.explanation
    assert "wrong on 2 where it is right, of 250" in rule.explanation


def test_stored_predictions_that_changed_are_not_believed(registry: Registry, make: Make) -> None:
    champion, _ = run_gate(registry, make(wrong=range(3)))
    paths = (registry.store.folder / "artifacts").rglob(
        f"{champion.run_id}/artifacts/evaluate_student/predictions.csv"
    )
    stored = next(iter(paths))
    stored.write_text(stored.read_text(encoding="utf-8").replace("ship", "grain"), encoding="utf-8")
    _, decision = run_gate(registry, make(wrong=range(2)))
    assert "Right on 1 examples" in find_rule(decision, "champion").explanation


def test_predictions_that_another_release_wrote_are_not_read_and_the_champion_is_asked(
    registry: Registry, make: Make
) -> None:
    champion, _ = run_gate(registry, make(wrong=range(3)))
    (stored,) = (registry.store.folder / "artifacts").rglob(
        f"{champion.run_id}/artifacts/evaluate_student/{PREDICTIONS}"
    )
    stored.write_text("id,truth,teacher,student\ne0000,corn,corn,corn\n", encoding="utf-8")
    registry.store.client.set_model_version_tag(
        MODEL, str(champion.version), "predictions.sha256", sha256_file(stored)
    )
    _, decision = run_gate(registry, make(wrong=range(2)))
    assert "Right on 1 examples" in find_rule(decision, "champion").explanation


@pytest.mark.parametrize("record", ['{"verdict": "promote", "rules": []}', "promote", ""])
def test_a_decision_that_another_release_recorded_is_made_anew(
    registry: Registry, make: Make, record: str
) -> None:
    produced = make()
    version, decision = run_gate(registry, produced)
    registry.store.client.set_model_version_tag(MODEL, "1", "gate.decision", record)
    assert registry.decided(version, produced.recipe.gate) is None
    again, anew = run_gate(registry, produced)
    assert (again.version, anew.verdict) == (1, decision.verdict)
    assert registry.decided(version, produced.recipe.gate) == anew


def test_a_student_of_another_release_has_its_labels_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    contract = tmp_path / "artifacts" / "student.json"
    write_json(contract, {"labels": ["a", "b"], "heads": []})
    assert packing.read_labels(tmp_path) == ["a", "b"]
    write_json(contract, {"classes": ["a", "b"]})
    with pytest.raises(RegistryError, match=r"contract lacks a field: .*field labels"):
        packing.read_labels(tmp_path)


def test_fewer_predictions_than_were_measured_are_refused(registry: Registry, make: Make) -> None:
    produced = make()
    folder = produced.artifacts / "evaluate_student"
    write_predictions(folder, read_predictions(folder)[:-1])
    said = r"another number of examples.*predictions\.csv\. Expected 300 rows, found 299"
    with pytest.raises(DataError, match=said):
        put_forward(registry, produced)
    assert registry.find(produced) is None


def test_an_older_evaluation_is_refused_in_plain_words(registry: Registry, make: Make) -> None:
    produced = make()
    path = produced.artifacts / "evaluate_student" / Metrics.FILE
    fields = read_json(path)
    del fields["agreement"]
    write_json(path, fields)
    said = r"the evaluation lacks a field: .*metrics\.json, field agreement.*evaluate_student@tiny"
    with pytest.raises(DataError, match=said):
        put_forward(registry, produced)
    assert registry.find(produced) is None


def test_a_champion_with_other_labels_is_a_refusal_with_a_reason(
    registry: Registry, make: Make
) -> None:
    run_gate(registry, make())
    _, decision = run_gate(registry, make(labels=["crude", "grain", "trade"]))
    assert [rule.name for rule in decision.refused_by] == ["champion"]
    assert "labels crude, grain, ship" in find_rule(decision, "champion").explanation
    assert number_of_champion(registry) == 1


@pytest.mark.parametrize("lost", ["all", "one"])
def test_a_champion_whose_files_are_lost_is_a_refusal_that_names_it_and_can_be_overridden(
    registry: Registry, make: Make, tmp_path: Path, lost: str
) -> None:
    run_gate(registry, make(wrong=range(3)))
    (stored,) = find_stored(registry, "MLmodel" if lost == "all" else "model.onnx")
    away = stored.parent if lost == "all" else stored
    shutil.move(away, tmp_path / "away")
    produced = make(wrong=range(2), examples=range(250))
    version, decision = run_gate(registry, produced)
    assert [rule.name for rule in decision.refused_by] == ["champion"]
    said = "files are gone: models:/triage/1" if lost == "all" else "not the ones that were registe"
    assert said in find_rule(decision, "champion").explanation
    assert "stillhouse promote --override" in find_rule(decision, "champion").explanation
    assert number_of_champion(registry) == 1
    # brought back, it is compared after all
    shutil.move(tmp_path / "away", away)
    assert registry.decided(version, produced.recipe.gate) is None
    assert registry.gate(produced, version).verdict == "promote"
    shutil.move(away, tmp_path / "away")
    assert registry.promote(version, None, "it is lost", override=True).version == 2
    with pytest.raises(RegistryError, match=r"models:/triage/1 does not serve, so the champion"):
        registry.rollback(MODEL, "back")
    assert number_of_champion(registry) == 2


def test_a_store_that_does_not_answer_for_the_champion_is_no_refusal(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_gate(registry, make(wrong=range(3)))
    produced = make(wrong=range(2), examples=range(250))
    version = put_forward(registry, produced)

    def hang_up(*_: object, **__: object) -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr("mlflow.artifacts.list_artifacts", hang_up)
    with pytest.raises(TransientError):
        registry.gate(produced, version)


def test_promotion_against_a_stale_expectation_is_refused(registry: Registry, make: Make) -> None:
    first, second = make("one", wrong=range(4)), make("two", wrong=range(3))
    version, other = put_forward(registry, first), put_forward(registry, second)
    decision = registry.gate(first, version)
    registry.promote(other, registry.gate(second, other), "it was faster")
    with pytest.raises(RegistryError, match=r"not the one.*Expected no champion, found .*/2"):
        registry.promote(version, decision, "too late")
    assert number_of_champion(registry) == 2
    # judged again, it is held against the champion that there is
    assert registry.gate(first, version).against == "models:/triage/2"


def test_a_version_that_was_never_judged_is_not_promoted(registry: Registry, make: Make) -> None:
    version = put_forward(registry, make())
    with pytest.raises(RegistryError, match="No gate has judged it"):
        registry.promote(version, None, "trust me")
    assert registry.champion(MODEL) is None


def test_a_version_of_other_artifacts_is_not_judged_and_the_way_out_is_named(
    registry: Registry, make: Make
) -> None:
    first = put_forward(registry, make(wrong=range(4)))
    produced = make(wrong=range(2))
    nothing = dataclasses.replace(produced.lineage, dvc={})
    for here in (produced, dataclasses.replace(produced, lineage=nothing)):
        with pytest.raises(
            RegistryError, match=r"own artifacts only: models:/triage/1\."
        ) as caught:
            registry.gate(here, first)
        for part in ("stillhouse lineage", "dvc checkout", "promote models:/triage/1 --override"):
            assert part in str(caught.value)
        assert "stillhouse run" not in str(caught.value)
    assert registry.champion(MODEL) is None
    assert registry.promote(first, None, "reviewed", override=True).version == 1


def test_an_override_needs_a_reason_and_is_recorded(registry: Registry, make: Make) -> None:
    version, decision = run_gate(registry, make(wrong=range(200)))
    assert decision.verdict == "refuse"
    with pytest.raises(ParamsError, match="needs a reason"):
        registry.promote(version, None, " ", override=True)
    champion = registry.promote(version, None, "for the demo", override=True)
    assert champion.tags["promoted_override"] == "true"
    assert champion.tags["promoted_reason"] == "for the demo"
    assert number_of_champion(registry) == 1


def test_rollback_goes_back_step_by_step_and_refuses_at_the_end(
    registry: Registry, make: Make
) -> None:
    with pytest.raises(RegistryError, match=r"no previous champion.*Found no champion"):
        registry.rollback(MODEL, "nothing there")
    for wrong in (range(6), range(4), range(2)):
        run_gate(registry, make(wrong=wrong))
    assert registry.rollback(MODEL, "it was slow").version == 2
    assert registry.rollback(MODEL, "so was that").version == 1
    with pytest.raises(RegistryError, match=r"no previous champion.*models:/triage/1"):
        registry.rollback(MODEL, "further")
    assert number_of_champion(registry) == 1
    assert registry.resolve("models:/triage/3").tags["rolled_back_reason"] == "it was slow"


def test_what_a_person_rolled_back_is_not_brought_back_by_a_run(
    registry: Registry, make: Make
) -> None:
    run_gate(registry, make(wrong=range(6)))
    produced = make(wrong=range(2))
    version, decision = run_gate(registry, produced)
    registry.rollback(MODEL, "customers complain")
    again, refusal = run_gate(registry, produced)
    assert again.version == version.version
    assert refusal.verdict == "refuse"
    assert "customers complain" in refusal.rules[0].explanation
    assert number_of_champion(registry) == 1
    with pytest.raises(RegistryError, match=r"champion before.*--override"):
        registry.promote(version, decision, "the old decision")
    assert number_of_champion(registry) == 1
    back = registry.promote(version, None, "they were wrong", override=True)
    assert "rolled_back_at" not in back.tags
    assert number_of_champion(registry) == 2


def test_a_student_that_was_rolled_back_does_not_come_back_under_another_number(
    registry: Registry, make: Make
) -> None:
    run_gate(registry, make(wrong=range(6)))
    rolled_back, _ = run_gate(registry, make(wrong=range(2)))
    registry.rollback(MODEL, "customers complain")
    produced = measure_again(make(wrong=range(2)), 3.1)
    version, refusal = run_gate(registry, produced)
    assert version.version == 3
    assert version.tags["content.sha256"] == rolled_back.tags["content.sha256"]
    assert [rule.name for rule in refusal.refused_by] == ["former champion"]
    assert "is the student of models:/triage/2, which was" in refusal.rules[0].explanation
    assert "customers complain" in refusal.rules[0].explanation
    assert number_of_champion(registry) == 1
    assert registry.decided(version, produced.recipe.gate) == refusal
    assert registry.resolve(version.uri).tags["gate.verdict"] == "refuse"
    with pytest.raises(RegistryError, match=r"champion before, as models:/triage/2.*--override"):
        registry.promote(version, None, "again")
    assert registry.promote(version, None, "they were wrong", override=True).version == 3
    # now it is the champion's own student, which may be measured as often as one likes
    version, decision = run_gate(registry, measure_again(produced, 3.2))
    assert (version.version, decision.verdict) == (4, "promote")


def test_a_student_that_was_replaced_does_not_come_back_under_another_number(
    registry: Registry, make: Make
) -> None:
    run_gate(registry, make(wrong=range(2)))
    run_gate(registry, make(wrong=range(3)))
    version, refusal = run_gate(registry, measure_again(make(wrong=range(2)), 3.1))
    assert refusal.verdict == "refuse"
    assert "models:/triage/1, which was champion from" in refusal.rules[0].explanation
    assert "replaced by models:/triage/2" in refusal.rules[0].explanation
    with pytest.raises(RegistryError, match="champion before"):
        registry.promote(version, None, "again")
    assert number_of_champion(registry) == 2


@pytest.mark.parametrize("rolled_back", [True, False])
def test_other_bytes_with_the_same_weights_come_back_unless_a_person_rolled_those_back(
    registry: Registry, make: Make, rolled_back: bool
) -> None:
    """A newer exporter or MLflow packs the same weights into other bytes."""
    run_gate(registry, make(wrong=range(2)))
    run_gate(registry, make(wrong=range(3)))
    if rolled_back:
        registry.rollback(MODEL, "customers complain")
    produced = make(wrong=range(3 if rolled_back else 2))
    exported = produced.path("export_student", "tokenizer.json")
    exported.write_text(exported.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    produced = measure_again(produced, 3.1)
    _, decision = run_gate(registry, produced)
    assert decision.verdict == ("refuse" if rolled_back else "promote")


def test_a_broken_previous_champion_is_not_rolled_back_to(registry: Registry, make: Make) -> None:
    run_gate(registry, make(wrong=range(6)))
    (stored,) = find_stored(registry, "model.onnx")
    run_gate(registry, make(wrong=range(2)))
    stored.write_bytes(b"broken")
    with pytest.raises(RegistryError, match="does not serve, so the champion stays"):
        registry.rollback(MODEL, "back")
    assert number_of_champion(registry) == 2


def test_a_crash_between_alias_and_tags_is_mended_by_the_next_call(
    registry: Registry, make: Make
) -> None:
    produced = make()
    version = put_forward(registry, produced)
    decision = registry.gate(produced, version)
    registry.store.client.set_registered_model_alias(MODEL, "champion", "1")
    assert "promoted_at" in registry.promote(version, decision, "again").tags


def test_a_champion_without_its_tags_that_was_rolled_back_does_not_come_back(
    registry: Registry, make: Make
) -> None:
    """Killed between alias and tags, then rolled back by a person, then run again."""
    run_gate(registry, make(wrong=range(6)))
    produced = make(wrong=range(2))
    version = put_forward(registry, produced)
    decision = registry.gate(produced, version)
    registry.store.client.set_registered_model_alias(MODEL, "previous", "1")
    registry.store.client.set_registered_model_alias(MODEL, "champion", "2")
    registry.rollback(MODEL, "it mislabels")
    assert number_of_champion(registry) == 1
    assert registry.gate(produced, version).verdict == "refuse"
    with pytest.raises(RegistryError, match="champion before"):
        registry.promote(version, decision, "again")
    assert number_of_champion(registry) == 1


def test_rolling_back_where_the_one_before_was_deleted_is_whole(
    registry: Registry, make: Make
) -> None:
    for wrong in (6, 4, 2):
        run_gate(registry, make(wrong=range(wrong)))
    assert number_of_champion(registry) == 3
    registry.store.client.delete_model_version(MODEL, "1")
    assert registry.rollback(MODEL, "back").tags["restored_reason"] == "back"
    assert number_of_champion(registry) == 2
    with pytest.raises(RegistryError, match="no previous champion"):
        registry.rollback(MODEL, "further")


def test_a_database_of_the_user_s_own_that_is_not_there_is_one_plain_message(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuchdialect+driver://user:p@ss@127.0.0.1/x")
    with pytest.raises(KDError) as caught:
        open_registry(root).champion(MODEL)
    assert "p@ss" not in str(caught.value)
    assert "ss@" not in str(caught.value)


# --- lineage -------------------------------------------------------------------------------------


def test_lineage_says_what_can_still_be_found(registry: Registry, make: Make) -> None:
    produced = make()
    run_gate(registry, produced)
    lineage = registry.lineage("models:/triage@champion")
    json.dumps(lineage, allow_nan=False)
    assert lineage["run"]["found"] is True
    assert lineage["git"] == {"commit": "1" * 40, "dirty": True, "found": False}
    assert lineage["cache"] == {"fingerprint": make_manifest().fingerprint, "found": False}
    assert lineage["gate"]["verdict"] == "promote"
    hashes = {stage: set(paths.values()) for stage, paths in produced.lineage.dvc.items()}
    assert {stage: {entry["md5"]} for stage, entry in lineage["dvc"].items()} == hashes


def test_a_cache_is_found_where_all_of_it_is(root: Path) -> None:
    manifest = write(make_job(make_split(6), make_params()), root / ".store")
    assert tracing._has_cache(root, manifest.fingerprint)
    assert not tracing._has_cache(root, "cafe" * 8)
    (root / ".store" / manifest.pieces["layer.2"].fingerprint / "manifest.json").unlink()
    assert not tracing._has_cache(root, manifest.fingerprint)


def test_lineage_finds_the_commit_it_was_made_from(
    registry: Registry, make: Make, root: Path
) -> None:
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    produced = make()
    lineage = dataclasses.replace(produced.lineage, git_commit=head.stdout.strip())
    put_forward(registry, dataclasses.replace(produced, lineage=lineage))
    assert registry.lineage("models:/triage/1")["git"]["found"] is True


def test_the_status_of_a_model_that_is_not_there_is_empty(registry: Registry) -> None:
    status = registry.status("nobody")
    assert status["versions"] == 0
    assert status["champion"] is status["previous"] is status["candidate"] is None


# --- a store that does not answer ----------------------------------------------------------------


def find_closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, database: Path) -> Iterator[str]:
    """The address of a real MLflow server with a store of its own, seen by `open_registry`."""
    shutil.copyfile(database, tmp_path / "server.db")
    address = f"http://127.0.0.1:{find_closed_port()}"
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1",
             "--port", address.rpartition(":")[2], "--workers", "1",
             "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
             "--artifacts-destination", str(tmp_path / "served")],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(address, process, tmp_path / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.3)
    pytest.fail(f"no MLflow server:\n{log.read_text(encoding='utf-8')}")


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


def test_the_fixture_is_what_it_says(make: Make) -> None:
    produced = make(wrong=range(7))
    candidate = produced.candidate
    wrong = np.asarray(candidate.student) != np.asarray(candidate.labels)
    assert wrong.sum() == 7
