"""Model versions: finding, registering and resolving them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.kd.digests import sha256_file
from tasks.kd.errors import ParamsError, RegistryError
from tasks.registry import packing
from tasks.registry.produced import Produced
from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
PREDICTIONS_TAG = "predictions.sha256"
_PROMPT_TAG = "mlflow.prompt.is_prompt"
_URI = re.compile(r"^models:/(?P<model>[^/@]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[^/@]+))$")


@dataclass(frozen=True)
class Version:
    """One version of a registered model, as it stood when it was read."""

    model: str
    version: int
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created_ms: int

    @property
    def uri(self) -> str:
        """`models:/<name>/<version>`."""
        return f"models:/{self.model}/{self.version}"


def find(store: Store, produced: Produced) -> Version | None:
    """The newest version with these artifacts' fingerprint; None if there is none."""
    matches = store.client.search_model_versions(
        f"name = '{produced.model}' and tags.`stillhouse.fingerprint` = '{produced.fingerprint}'"
    )
    if not matches:
        return None
    return read_version(store, produced.model, max(int(one.version) for one in matches))


def register(store: Store, produced: Produced, run_id: str) -> Version:
    """The version of these artifacts, found or made; it has the alias `candidate` then.

    The version is created last, in one call with all its tags. A crash before that leaves no
    version, and its remains are removed here.
    """
    existing = find(store, produced)
    number = existing.version if existing else _create(store, produced, run_id)
    if existing is None or CANDIDATE not in existing.aliases:
        store.client.set_registered_model_alias(produced.model, CANDIDATE, str(number))
    return read_version(store, produced.model, number)


def require_no_prompt(store: Store, model: str) -> None:
    """Raise ParamsError if a prompt has the model's name.

    MLflow keeps prompts among its models, so our version would be written into the prompt.
    """
    named = f"name = '{model}' and tag.`{_PROMPT_TAG}` = 'true'"
    if store.client.search_registered_models(named, max_results=1):
        raise ParamsError(
            "register.model is the name of a prompt in MLflow",
            where=f"{model}, {store.shown_registry_uri}",
            expected="a name that no prompt has",
            advice="Nothing was written. Set another register.model in the recipe.",
        )


def _create(store: Store, produced: Produced, run_id: str) -> int:
    from tasks.kd.documents.predictions import PREDICTIONS

    require_no_prompt(store, produced.model)
    client = store.client
    run = client.get_run(run_id)
    tag = run.data.tags.get("stillhouse.fingerprint")
    if run.info.status != "FINISHED" or tag != produced.fingerprint:
        raise RegistryError(
            "The run is not of these artifacts, or not finished",
            where=f"run {run_id}",
            expected=f"FINISHED, fingerprint {produced.fingerprint[:12]}",
            found=f"{run.info.status}, fingerprint {str(tag)[:12]}",
            mend=f"stillhouse run {produced.name}",
        )
    experiment = str(run.info.experiment_id)
    _clear_leftovers(store, experiment, run_id)
    model_id, digests = _upload(store, produced, experiment, run_id)
    _ensure_model(store, produced)
    predictions = produced.path("evaluate_student", PREDICTIONS)
    with store.as_default():  # SQLite looks the source up in the default store
        made = client.create_model_version(
            produced.model,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            description=produced.recipe.description,
            tags={**produced.tags, **digests, PREDICTIONS_TAG: sha256_file(predictions)},
        )
    return int(made.version)


def _upload(
    store: Store, produced: Produced, experiment: str, run_id: str
) -> tuple[str, dict[str, str]]:
    """Pack, verify and upload the student. Returns its id in MLflow and its digests."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = store.client
    logged = client.create_logged_model(
        experiment, name=produced.model, source_run_id=run_id, model_type="student"
    )
    model_id = str(logged.model_id)
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as name:
        folder = Path(name)
        packing.pack(produced, logged, folder / "packed")
        packing.check_parity(produced, folder / "packed")
        digests = packing.digest_model(folder / "packed")
        client.log_model_artifacts(model_id, str(folder / "packed"))
        packing.fetch_verified(store, f"models:/{model_id}", digests, folder)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return model_id, digests


def _clear_leftovers(store: Store, experiment: str, run_id: str) -> None:
    """Delete the models of this run that never became a version."""
    logged = store.client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    made = store.client.search_model_versions(f"run_id = '{run_id}'")
    kept = {str(version.source) for version in made}
    for model in logged:
        if f"models:/{model.model_id}" not in kept:
            store.client.delete_logged_model(model.model_id)


def _ensure_model(store: Store, produced: Produced) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(produced.model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        require_no_prompt(store, produced.model)  # a prompt that was made just now


# --- reading -------------------------------------------------------------------------------------


def find_model(store: Store, model: str) -> RegisteredModel | None:
    """A registered model with its aliases; None if it does not exist. An outage raises."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def find_alias(store: Store, model: str, alias: str) -> Version | None:
    """The version that an alias points to; None if there is none."""
    registered = find_model(store, model)
    number = (registered.aliases if registered else {}).get(alias)
    return None if number is None else read_version(store, model, int(number))


def read_version(store: Store, model: str, number: int) -> Version:
    """A version as it stands now."""
    return _as_version(store.client.get_model_version(model, str(number)))


def list_versions(store: Store, model: str) -> list[Version]:
    """All existing versions of a model. Their aliases are empty, since MLflow's list lacks them."""
    return [_as_version(one) for one in store.client.search_model_versions(f"name = '{model}'")]


def _as_version(listed: ModelVersion) -> Version:
    return Version(
        model=str(listed.name),
        version=int(listed.version),
        run_id=str(listed.run_id),
        tags=dict(listed.tags),
        aliases=tuple(sorted(listed.aliases)),
        created_ms=int(listed.creation_timestamp),
    )


def resolve(store: Store, uri: str) -> Version:
    """The version behind a model's URI. Raises ParamsError if the URI leads nowhere."""
    from mlflow.exceptions import MlflowException

    match = _URI.match(uri)
    if match is None:
        raise ParamsError(
            "Not a model",
            where=uri,
            expected="models:/<name>@champion or models:/<name>/<version>",
        )
    model, alias, number = match["model"], match["alias"], match["version"]
    registered = find_model(store, model)
    if registered is None:
        raise ParamsError("No such model in MLflow", where=f"{uri}, {store.shown_registry_uri}")
    if alias is not None:
        number = registered.aliases.get(alias)
        if number is None:
            known = ", ".join(sorted(registered.aliases)) or "no alias"
            raise ParamsError("The model has no such alias", where=uri, found=known)
    try:
        return read_version(store, model, int(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ParamsError("The model has no such version", where=uri) from error


def tag_version(store: Store, version: Version, tags: dict[str, str]) -> None:
    """Set the version's tags, in their order."""
    for name, value in tags.items():
        store.client.set_model_version_tag(version.model, str(version.version), name, value)
