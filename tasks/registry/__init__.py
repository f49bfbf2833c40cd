"""The registry: runs, model versions, the gate and the champion, in MLflow.

This package is the only user of mlflow (beside the served student, which travels into it). MLflow
is written from finished files, after the stages: an outage costs no training, and every call may be
made again. mlflow is imported when the first call needs it, never by importing this package.

    store.py      where MLflow is, how it is asked quietly, and its faults in our words
    produced.py   what a recipe's stages left on disk, and its fingerprint
    live.py       curves of a training while it runs, in a run of their own
    tracking.py   the run: parameters, metrics with history, inputs, artifacts, tags
    packing.py    the student as an MLflow model folder; digests; loading what was verified
    versions.py   model versions: find, register, resolve
    promotion.py  gate, promote, roll back
    tracing.py    lineage and status
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.kd.gate.decision import Decision
from tasks.kd.recipe.sections import Gate
from tasks.registry import live, promotion, tracing, tracking, versions
from tasks.registry.produced import Lineage, Produced
from tasks.registry.store import Store, open_store
from tasks.registry.versions import Version

__all__ = ["Lineage", "Produced", "Registry", "Version", "open_registry"]


def open_registry(root: Path) -> Registry:
    """The registry of a checkout: `MLFLOW_TRACKING_URI`, or SQLite in `<root>/.mlflow`.

    `MLFLOW_REGISTRY_URI` keeps models elsewhere than runs.
    Asks nothing yet; a server that is down is heard of at the first call.
    """
    return Registry(open_store(root))


@dataclass(frozen=True)
class Registry:
    """Every call raises `RegistryError`, or `TransientError` where another try may do."""

    store: Store

    @property
    def uri(self) -> str:
        """The tracking URI, for `mlflow ui` and for people (it may hold a password)."""
        return self.store.uri

    def greet(self) -> None:
        """Hear whether both answer: where runs are, and where models are."""
        with self.store.speak():
            self.store.client.search_experiments(max_results=1)
            versions.find_model(self.store, "stillhouse-doctor")

    def require_name(self, model: str) -> None:
        """Raise ParamsError for a name that no model can have there, as a prompt has it."""
        if self.store.exists:
            with self.store.speak():
                versions.require_no_prompt(self.store, model)

    def find(self, produced: Produced) -> Version | None:
        """The version that was registered from exactly these artifacts, if any."""
        with self.store.speak(produced.name):
            return versions.find(self.store, produced)

    def follow(
        self,
        experiment: str,
        name: str,
        find: Callable[[], Path | None],
        *,
        every_s: float,
        say: Callable[[str], None],
    ) -> AbstractContextManager[None]:
        """While open, a running training's figures go to a run of their own; it never raises."""
        return live.follow(self.store, experiment, name, find, every_s=every_s, say=say)

    def track(self, produced: Produced) -> str:
        """The id of the one finished run of these artifacts; written if it is not there yet."""
        with self.store.speak(produced.name), self.store.lock():
            return tracking.track(self.store, produced)

    def register(self, produced: Produced, run_id: str) -> Version:
        """The one version of these artifacts, alias `candidate`; made if it is not there yet."""
        with self.store.speak(produced.name), self.store.lock():
            return versions.register(self.store, produced, run_id)

    def champion(self, model: str) -> Version | None:
        """The version that the alias `champion` points to; None if the model has none."""
        with self.store.speak():
            return versions.find_alias(self.store, model, versions.CHAMPION)

    def decided(self, version: Version, gate: Gate) -> Decision | None:
        """The decision that stands for this version under these limits, if one was made."""
        with self.store.speak():
            return promotion.recall(self.store, version, gate)

    def gate(self, produced: Produced, version: Version) -> Decision:
        """The standing decision, or a new one against the champion on the same examples."""
        with self.store.speak(produced.name), self.store.lock():
            return promotion.gate(self.store, produced, version)

    def promote(
        self,
        version: Version,
        decision: Decision | None,
        reason: str,
        *,
        override: bool = False,
    ) -> Version:
        """Make a version champion and return it as it then stands; no-op if it is champion.

        `decision` None takes the one on record. Refused unless the decision says promote and was
        made against the present champion; `override` (a person's word, with a reason) skips both.
        """
        with self.store.speak(), self.store.lock():
            return promotion.promote(self.store, version, decision, reason, override=override)

    def rollback(self, model: str, reason: str) -> Version:
        """Make the previous champion champion again and return it."""
        with self.store.speak(), self.store.lock():
            return promotion.rollback(self.store, model, reason)

    def resolve(self, uri: str) -> Version:
        """The version behind `models:/<name>@<alias>` or `models:/<name>/<version>`."""
        with self.store.speak():
            return versions.resolve(self.store, uri)

    def lineage(self, uri: str) -> dict[str, Any]:
        """What a version was made from; whether run, commit and cache can still be found here."""
        with self.store.speak():
            return tracing.trace(self.store, versions.resolve(self.store, uri))

    def status(self, model: str) -> dict[str, Any]:
        """A model's champion, previous champion and candidate, and how many versions it has."""
        with self.store.speak():
            return tracing.describe(self.store, model)
