"""The registry: runs, model versions, the gate and the champion, in MLflow.

Only this package uses mlflow, besides the served student, which travels into it. MLflow is written
from finished files, after the stages, so an outage costs no training and every call can be
repeated. mlflow is imported by the first call that needs it, never by importing this package.

    store.py      where MLflow is, quiet calls to it, and its errors as ours
    produced.py   the artifacts of a recipe's stages, and their fingerprint
    live.py       curves of a running training, in a run of their own
    tracking.py   the run: parameters, metrics with history, inputs, artifacts, tags
    packing.py    the student as an MLflow model folder; digests; verified loading
    versions.py   model versions: find, register, resolve
    judging.py    the gate on real artifacts: from the evidence to a decision on record
    promotion.py  promote, roll back
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
from tasks.registry import judging, live, promotion, tracing, tracking, versions
from tasks.registry.produced import Lineage, Produced
from tasks.registry.store import Store, open_store
from tasks.registry.versions import Version

__all__ = ["Lineage", "Produced", "Registry", "Version", "open_registry"]


def open_registry(root: Path) -> Registry:
    """The registry of a checkout: `MLFLOW_TRACKING_URI`, or SQLite in `<root>/.mlflow`.

    `MLFLOW_REGISTRY_URI` keeps models elsewhere than runs.
    Nothing is asked yet: a server that is down shows at the first call.
    """
    return Registry(open_store(root))


@dataclass(frozen=True)
class Registry:
    """MLflow's registry. Every call raises RegistryError, or TransientError if a retry may help."""

    store: Store

    @property
    def uri(self) -> str:
        """The tracking URI, for `mlflow ui` and for people. It may hold a password."""
        return self.store.uri

    def greet(self) -> None:
        """Ask both stores, of runs and of models, to see whether they answer."""
        with self.store.speak():
            self.store.client.search_experiments(max_results=1)
            versions.find_model(self.store, "stillhouse-doctor")

    def require_name(self, model: str) -> None:
        """Raise ParamsError if a prompt has the model's name, which no model can take then."""
        if self.store.exists:
            with self.store.speak():
                versions.require_no_prompt(self.store, model)

    def find(self, produced: Produced) -> Version | None:
        """The version registered from exactly these artifacts; None if there is none."""
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
        """While open, send a running training's figures to a run of their own. Never raises."""
        return live.follow(self.store, experiment, name, find, every_s=every_s, say=say)

    def track(self, produced: Produced) -> str:
        """The id of the one finished run of these artifacts, which is written if it is missing."""
        with self.store.speak(produced.name), self.store.lock():
            return tracking.track(self.store, produced)

    def register(self, produced: Produced, run_id: str) -> Version:
        """The one version of these artifacts, alias `candidate`, which is made if it is missing."""
        with self.store.speak(produced.name), self.store.lock():
            return versions.register(self.store, produced, run_id)

    def champion(self, model: str) -> Version | None:
        """The version with the alias `champion`; None if the model has none."""
        with self.store.speak():
            return versions.find_alias(self.store, model, versions.CHAMPION)

    def decided(self, version: Version, gate: Gate) -> Decision | None:
        """The standing decision for this version under these limits; None if there is none."""
        with self.store.speak():
            return judging.recall(self.store, version, gate)

    def gate(self, produced: Produced, version: Version) -> Decision:
        """The standing decision, or a new one against the champion on the same examples."""
        with self.store.speak(produced.name), self.store.lock():
            return judging.gate(self.store, produced, version)

    def promote(
        self,
        version: Version,
        decision: Decision | None,
        reason: str,
        *,
        override: bool = False,
    ) -> Version:
        """Make a version champion and return it as it then stands; no-op if it is champion.

        `decision` None uses the one on record. Raises RegistryError unless the decision says
        promote and was made against the present champion; `override`, a person's word with a
        reason, skips both checks.
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
        """A version's origins, and whether its run, commit and cache can still be found here."""
        with self.store.speak():
            return tracing.trace(self.store, versions.resolve(self.store, uri))

    def status(self, model: str) -> dict[str, Any]:
        """A model's champion, previous champion and candidate, and how many versions it has."""
        with self.store.speak():
            return tracing.describe(self.store, model)
