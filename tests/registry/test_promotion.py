"""The champion: promoted, overridden, rolled back, and never brought back by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tasks.kd.errors import KDError, ParamsError, RegistryError
from tasks.registry import (
    Registry,
    open_registry,
)
from tests.makers.registered import (
    MODEL,
    Make,
    find_stored,
    measure_again,
    number_of_champion,
    put_forward,
    run_gate,
)


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
