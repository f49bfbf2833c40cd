"""The gate on real artifacts: the evidence of a candidate and a champion, and the decision on it.

A decision is recorded with the run and on the version, and stands for as long as nothing that it
rests on changes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tasks.kd.digests import sha256_file, sha256_json, write_bytes
from tasks.kd.documents.decision import (
    CandidateRecord,
    ChampionRecord,
    DecisionRecord,
    GateRecord,
)
from tasks.kd.documents.predictions import PREDICTIONS, read_predictions
from tasks.kd.errors import DataError, RegistryError
from tasks.kd.gate.decision import Decision, Rule, decide
from tasks.kd.gate.evidence import Champion
from tasks.kd.recipe.sections import Gate
from tasks.registry import packing
from tasks.registry.produced import Produced
from tasks.registry.store import Store
from tasks.registry.versions import (
    CHAMPION,
    PREDICTIONS_TAG,
    Version,
    find_alias,
    list_versions,
    read_version,
    tag_version,
)

RECORD_TAG = "gate.decision"


def recall(store: Store, version: Version, gate: Gate) -> Decision | None:
    """The decision that stands: nothing that it rests on has changed since.

    A former champion's is always a refusal, under whatever number its student comes: it was
    replaced or rolled back, and only a person brings it back.
    """
    version = read_version(store, version.model, version.version)
    champion = find_alias(store, version.model, CHAMPION)
    is_champion = champion is not None and champion.version == version.version
    former = find_former_champion(store, version, champion)
    if former is not None:
        return _refuse_former_champion(version, former, champion)
    decision = read_decision(version)
    if decision is None or version.tags.get("gate.params") != _digest(gate):
        return None
    if is_champion:
        return decision
    # A champion that could not be compared may have been mended since.
    compared = not any(rule.name == "champion" and rule.measured is None for rule in decision.rules)
    same = decision.against == (champion.uri if champion else None)
    return decision if same and (champion is None or compared) else None


def gate(store: Store, produced: Produced, version: Version) -> Decision:
    """The standing decision, or a new one, recorded with the run and on the version."""
    limits = produced.recipe.gate
    standing = recall(store, version, limits)
    if standing is not None:
        if RECORD_TAG not in version.tags:  # a new version of a former champion's student
            _record(store, version, standing, limits)
        return standing
    made_from = version.tags.get("stillhouse.fingerprint", "none")
    here = "none" if produced.unrecorded else produced.fingerprint
    if made_from != here:
        raise RegistryError(
            "A version can be judged from its own artifacts only",
            where=version.uri,
            expected=f"artifacts with fingerprint {made_from[:12]} in {produced.artifacts}",
            found=here[:12],
            advice="Bring back the dvc.lock with the hashes that stillhouse lineage shows and run "
            "dvc checkout, or promote it on your own word.",
            mend=f"stillhouse promote {version.uri} --override --reason '...'",
        )
    measure_again = (
        "If the machine was busy, measure again: "
        f"dvc repro -s -f evaluate_student@{produced.name}, then stillhouse run {produced.name}."
    )
    champion = find_alias(store, version.model, CHAMPION)
    if champion is not None and champion.version == version.version:
        same = "this version is the champion itself"
        decision = decide(
            produced.candidate, None, limits, no_champion=same, measure_again=measure_again
        )
    else:
        scored = _score_champion(store, produced, champion) if champion else None
        decision = decide(produced.candidate, scored, limits, measure_again=measure_again)
    _record(store, version, decision, limits)
    return decision


def _score_champion(store: Store, produced: Produced, champion: Version) -> Champion:
    """What the champion says of the candidate's test examples: as stored, or asked again now."""
    fingerprint = produced.metrics.evaluation_fingerprint
    if champion.tags.get("evaluation.fingerprint") == fingerprint:
        stored = _read_stored(store, produced, champion)
        if stored is not None:
            return Champion(champion.uri, stored)
    try:
        return _ask(store, produced, champion)
    except RegistryError as error:  # lost or changed; an outage is another error
        return Champion(
            champion.uri,
            {},
            unfit=f"{str(error).rstrip('.')}; bring its files back and run again, or a person has "
            "to decide (stillhouse promote --override)",
        )


def _ask(store: Store, produced: Produced, champion: Version) -> Champion:
    """Let the champion answer the candidate's test examples."""
    from tasks.kd.data.examples.prepared import read_split

    with tempfile.TemporaryDirectory(prefix="stillhouse-") as name:
        folder = packing.fetch_verified(store, champion.uri, champion.tags, Path(name))
        known, wanted = packing.read_labels(folder), produced.metrics.labels
        if set(known) != set(wanted):
            return Champion(
                champion.uri,
                {},
                unfit=f"it knows the labels {', '.join(sorted(known))}, the candidate "
                f"{', '.join(sorted(wanted))}; a person has to decide "
                "(stillhouse promote --override)",
            )
        split = read_split(produced.path("prepare_data", "test.arrow"))
        answers = packing.predict_labels(packing.load(folder), list(split.texts))
    return Champion(champion.uri, dict(zip(split.example_ids, answers, strict=True)))


def _read_stored(store: Store, produced: Produced, champion: Version) -> dict[str, str] | None:
    """The champion's stored predictions, if they are there, whole, and of the same examples.

    None as well for those of a release that wrote them otherwise: the champion can be asked.
    """
    from mlflow.exceptions import MlflowException

    candidate = produced.candidate
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as name:
        try:
            path = store.client.download_artifacts(
                champion.run_id, f"evaluate_student/{PREDICTIONS}", name
            )
        except (MlflowException, OSError):  # a deleted run; its model can still be asked
            return None
        if sha256_file(Path(path)) != champion.tags.get(PREDICTIONS_TAG):
            return None
        try:
            rows = read_predictions(Path(path).parent)
        except DataError:
            return None
    labels = {row.example_id: row.label for row in rows}
    if labels != dict(zip(candidate.example_ids, candidate.labels, strict=True)):
        return None
    return {row.example_id: row.student for row in rows}


def find_former_champion(
    store: Store, version: Version, champion: Version | None
) -> Version | None:
    """The former champion that this version would bring back: itself, or one of the same student.

    A student is known by the content that is served; one that was rolled back also by its weights,
    however they are packed now. The champion's own student is no former one.
    """
    if champion is not None and champion.version == version.version:
        return None
    if _was_champion(version):
        return version
    content, student = version.tags.get("content.sha256"), version.tags.get("student.sha256")
    if champion is not None and champion.tags.get("content.sha256") == content:
        return None
    same = [
        other
        for other in list_versions(store, version.model)
        if (other.tags.get("content.sha256") == content and _was_champion(other))
        or (other.tags.get("student.sha256") == student and "rolled_back_at" in other.tags)
    ]
    # Of several, the one that a person had something to say of.
    return max(same, key=lambda v: ("rolled_back_at" in v.tags, v.version), default=None)


def _was_champion(version: Version) -> bool:
    """Whether it ever was; a crash may have kept one of the two tags from being written."""
    return "promoted_at" in version.tags or "rolled_back_at" in version.tags


def _refuse_former_champion(
    version: Version, former: Version, champion: Version | None
) -> Decision:
    tags = former.tags
    since = tags.get("promoted_at", "an unknown time")
    if "rolled_back_at" in tags:
        end = f"was rolled back on {tags['rolled_back_at']} ({tags.get('rolled_back_reason')})"
    else:
        end = f"was replaced by {champion.uri if champion else 'nothing'}"
    same = "" if former.version == version.version else f"is the student of {former.uri}, which "
    why = (
        f"{version.uri} {same}was champion from {since} and {end}. It is not brought back "
        f"by itself. Run: stillhouse promote {version.uri} --override --reason '...'"
    )
    rule = Rule("former champion", False, None, None, why, "worse")
    return Decision("refuse", (rule,), champion.uri if champion else None)


def _record(store: Store, version: Version, decision: Decision, limits: Gate) -> None:
    """Write the decision to the run, then to the version; the tag that is read comes last."""
    against = decision.against
    record = GateRecord(
        **decision.record.given,
        candidate=CandidateRecord(model=version.model, version=version.version),
        champion=ChampionRecord(version=int(against.rsplit("/", 1)[1])) if against else None,
        gate_params=limits.model_dump(mode="json"),
    )
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as name:
        record.write(Path(name))
        write_bytes(Path(name) / "decision.md", decision.as_markdown().encode())
        store.client.log_artifacts(version.run_id, name, "gate")
    tag_version(
        store,
        version,
        {
            "gate.verdict": decision.verdict,
            "gate.champion": decision.against or "none",
            "gate.params": _digest(limits),
            RECORD_TAG: json.dumps(decision.record.as_json(), sort_keys=True),
        },
    )


def read_record(version: Version) -> DecisionRecord | None:
    """The record of a version's decision, if there is one of a form that this release writes.

    A version with another is judged anew.
    """
    try:
        return DecisionRecord.parse(version.tags.get(RECORD_TAG, ""), version.uri)
    except DataError:
        return None


def read_decision(version: Version) -> Decision | None:
    """The decision on record, as `read_record` has it."""
    record = read_record(version)
    return None if record is None else Decision.from_record(record)


def _digest(limits: Gate) -> str:
    return sha256_json(limits.model_dump(mode="json"))
