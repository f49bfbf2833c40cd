"""The alias `champion`: promote a version, roll back to the previous one.

MLflow moves an alias for whoever asks last and keeps no history. So the history is in tags of the
versions (`promoted_at`, `promoted_reason`, `previous_version`, `rolled_back_at`, …), and a
promotion is refused if the champion is not the one that the decision was made against.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tasks.kd.errors import KDError, ParamsError, RegistryError
from tasks.kd.gate.decision import Decision
from tasks.registry import packing
from tasks.registry.judging import find_former_champion, read_decision
from tasks.registry.store import Store
from tasks.registry.versions import (
    CHAMPION,
    PREVIOUS,
    Version,
    find_alias,
    list_versions,
    read_version,
    tag_version,
)


def promote(
    store: Store, version: Version, decision: Decision | None, reason: str, *, override: bool
) -> Version:
    """Make a version champion, if the decision says so or a person overrides it."""
    version = read_version(store, version.model, version.version)
    champion = find_alias(store, version.model, CHAMPION)
    if champion is not None and champion.version == version.version:
        if "promoted_at" not in version.tags:  # a crash came between the alias and its tags
            _tag_promotion(store, version, find_alias(store, version.model, PREVIOUS), reason)
        return read_version(store, version.model, version.version)
    if not override:
        _check_decision(store, version, decision, champion)
    elif not reason.strip():
        raise ParamsError("an override needs a reason", where=version.uri)
    _check_serves(store, version)
    if champion is not None:
        store.client.set_registered_model_alias(version.model, PREVIOUS, str(champion.version))
    _move(store, version)
    _tag_promotion(store, version, champion, reason, override=override)
    return read_version(store, version.model, version.version)


def _check_decision(
    store: Store, version: Version, decision: Decision | None, champion: Version | None
) -> None:
    by_hand = f"stillhouse promote {version.uri} --override --reason '...'"
    former = find_former_champion(store, version, champion)
    if former is not None:
        raise RegistryError(
            f"The student was champion before, as {former.uri}, and is not brought back by itself",
            where=version.uri,
            mend=by_hand,
        )
    if decision is None:
        decision = read_decision(version)
    if decision is None or decision.verdict != "promote":
        rules = ", ".join(rule.name for rule in decision.refused_by) if decision else ""
        raise RegistryError(
            f"The gate refused the version ({rules})" if decision else "No gate has judged it",
            where=version.uri,
            mend=by_hand,
        )
    present = champion.uri if champion else None
    if decision.against != present:
        raise RegistryError(
            "The champion is not the one that the decision was made against",
            where=version.uri,
            expected=decision.against or "no champion",
            found=present or "no champion",
            advice="Run the recipe again to judge it against the present one.",
            mend=f"stillhouse run {version.tags.get('recipe', '<recipe>')}",
        )


def rollback(store: Store, model: str, reason: str) -> Version:
    """Make the previous champion champion again; its own predecessor is the previous one then."""
    champion = find_alias(store, model, CHAMPION)
    previous = find_alias(store, model, PREVIOUS)
    if champion is None or previous is None or champion.version == previous.version:
        raise RegistryError(
            "There is no previous champion to go back to",
            where=f"models:/{model}@{CHAMPION}",
            found=champion.uri if champion else "no champion",
        )
    _check_serves(store, previous)
    earlier = _find_earlier(store, previous)
    now = _now()
    tag_version(store, champion, {"rolled_back_at": now, "rolled_back_reason": reason})
    _move(store, previous)
    tag_version(store, previous, {"restored_at": now, "restored_reason": reason})
    if earlier is None:
        store.client.delete_registered_model_alias(model, PREVIOUS)
    else:
        store.client.set_registered_model_alias(model, PREVIOUS, earlier)
    return read_version(store, model, previous.version)


def _find_earlier(store: Store, version: Version) -> str | None:
    """The version before this one, if there was one and it is still there."""
    earlier = version.tags.get("previous_version", "none")
    if earlier == "none":
        return None
    known = {str(known.version) for known in list_versions(store, version.model)}
    return earlier if earlier in known else None


def _check_serves(store: Store, version: Version) -> None:
    """Load the version and let it answer, before anything points to it."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as name:
        try:
            folder = packing.fetch_verified(store, version.uri, version.tags, Path(name))
            packing.smoke_test(folder)
        except KDError as error:
            raise RegistryError(
                f"{version.uri} does not serve, so the champion stays as it is. {error}"
            ) from error


def _move(store: Store, version: Version) -> None:
    """Point the alias `champion` at a version and read it back."""
    store.client.set_registered_model_alias(version.model, CHAMPION, str(version.version))
    found = find_alias(store, version.model, CHAMPION)
    if found is None or found.version != version.version:
        raise RegistryError(
            "Another program moved the champion at the same moment",
            where=f"models:/{version.model}@{CHAMPION}",
            expected=version.uri,
            found=found.uri if found else "no champion",
        )


def _tag_promotion(
    store: Store, version: Version, champion: Version | None, reason: str, override: bool = False
) -> None:
    for name in ("rolled_back_at", "rolled_back_reason"):
        if name in version.tags:
            store.client.delete_model_version_tag(version.model, str(version.version), name)
    tag_version(
        store,
        version,
        {
            "previous_version": str(champion.version) if champion else "none",
            "promoted_reason": reason,
            "promoted_override": str(override).lower(),
            "promoted_at": _now(),
        },
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
