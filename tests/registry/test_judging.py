"""The gate on real artifacts: decisions that stand, and evidence that is not believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.kd.digests import read_json, sha256_file, write_json
from tasks.kd.documents.evaluation import Metrics
from tasks.kd.documents.predictions import PREDICTIONS, read_predictions, write_predictions
from tasks.kd.errors import DataError, RegistryError, TransientError
from tasks.registry import (
    Registry,
    packing,
)
from tests.makers.registered import (
    MODEL,
    Make,
    find_rule,
    find_stored,
    number_of_champion,
    put_forward,
    run_gate,
)


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
    monkeypatch.setattr("tasks.registry.judging.decide", None)  # whoever decides anew will crash
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
    monkeypatch.setattr("tasks.registry.judging._read_stored", None)  # other examples: no use
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
    assert registry.lineage("models:/triage/1")["gate"] is None
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
