"""All artifacts of a small recipe, and what tests do with them in a registry."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.digests import sha256_file, sha256_json
from tasks.kd.documents.evaluation import Latency, Metrics
from tasks.kd.documents.predictions import write_predictions
from tasks.kd.gate.decision import Decision, Rule
from tasks.kd.recipe.files import load_recipe
from tasks.kd.recipe.recipe import Recipe
from tasks.kd.recipe.sections import Gate, Register
from tasks.registry import (
    Lineage,
    Produced,
    Registry,
    Version,
)
from tasks.registry.produced import STAGES
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
from tests.serving.test_served_student import LABELS, make_student

EXAMPLES = 300
TRUTH = [index % 3 for index in range(EXAMPLES)]
MODEL = "triage"
QUICKSTART = Path(__file__).parents[2] / "params" / "quickstart.yaml"

Make = Callable[..., Produced]


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


def find_closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_stored(registry: Registry, name: str) -> list[Path]:
    return list((registry.store.folder / "artifacts").rglob(f"models/**/{name}"))
