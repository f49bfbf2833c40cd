"""The student as an MLflow model folder: packed, digested, and loaded only once verified."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tasks.kd.digests import sha256_file, sha256_json
from tasks.kd.errors import DataError, RegistryError
from tasks.registry.produced import Produced
from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.pyfunc import PyFuncModel

_SERVED_STUDENT = Path(__file__).resolve().parents[1] / "serving" / "served_student.py"
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "tokenizers")
_META = "registered_model_meta"  # a file that MLflow adds to a model downloaded by name
_SUFFIXES = {".json", ".md", ".onnx", ".py", ".txt", ".yaml"}
_EXAMPLE = "An example of a text to classify."
# A text near the border between two labels may fall on either side in another batch.
_PARITY_EXAMPLES, _PARITY_SLIPS = 64, 1


def pack(produced: Produced, logged: LoggedModel, folder: Path) -> None:
    """Write the model folder: one code file, network, tokenizer, settings. No pickle."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from tasks.kd.documents.exported import Contract

    # No inputs are declared. MLflow would check them first and refuse a list, an array and a
    # categorical column, whatever is declared. The served student checks its inputs itself.
    signature = ModelSignature(
        outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
        params=ParamSchema([ParamSpec("all_scores", "boolean", False)]),
    )
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(_SERVED_STUDENT),
        artifacts={
            "network": str(produced.served_file),
            "tokenizer": str(produced.path("export_student", "tokenizer.json")),
            "student": str(produced.path("export_student", Contract.FILE)),
        },
        signature=signature,
        input_example=pd.DataFrame({"text": [_EXAMPLE]}),
        pip_requirements=[f"{name}=={installed_version(name)}" for name in _REQUIREMENTS],
        mlflow_model=Model(
            artifact_path=logged.artifact_location,
            run_id=logged.source_run_id,
            model_id=logged.model_id,
            model_uuid=logged.model_id,
        ),
    )


def digest_model(folder: Path) -> dict[str, str]:
    """Tags that fix a model folder's content.

    `content.sha256` leaves out `MLmodel`, which names the run, so that a copy in another registry
    has the same digest. `mlmodel.sha256` is that file's own.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = [
        [path.relative_to(folder).as_posix(), sha256_file(path)]
        for path in files
        if path.name not in {"MLmodel", _META}
    ]
    return {
        "content.sha256": sha256_json(content),
        "mlmodel.sha256": sha256_file(folder / "MLmodel"),
    }


def fetch_verified(store: Store, uri: str, digests: Mapping[str, str], folder: Path) -> Path:
    """Download a model, compare it with its digests before any of its code runs, return its folder.

    `uri` is `models:/<name>/<version>` or `models:/<id of a logged model>`. Raises RegistryError if
    files are missing, of a kind that is never loaded, or other than registered.
    """
    from mlflow.artifacts import download_artifacts, list_artifacts

    name, _, version = uri.removeprefix("models:/").partition("/")
    # MLflow (3.17) looks `models:/` up in the process's default store, whatever store it is given.
    # So the files' place is asked for first.
    if version:
        place = store.client.get_model_version_download_uri(name, version)
    else:
        place = store.client.get_logged_model(name).artifact_location
    # A download fails alike for missing files and for a silent server; a list tells them apart.
    listed = list_artifacts(artifact_uri=place, tracking_uri=store.uri)
    if not any(PurePosixPath(entry.path).name == "MLmodel" for entry in listed):
        raise RegistryError("The model's files are gone", where=f"{uri}, {place}")
    target = Path(
        download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=store.uri)
    )
    strange = [
        path.relative_to(target).as_posix()
        for path in sorted(target.rglob("*"))
        if path.is_file() and path.suffix not in _SUFFIXES and path.name not in {"MLmodel", _META}
    ]
    if strange:
        raise RegistryError(
            "The model holds files of a kind that is never loaded",
            where=uri,
            expected=", ".join(sorted(_SUFFIXES)),
            found=", ".join(strange),
        )
    for name, digest in digest_model(target).items():
        if digests.get(name) != digest:
            raise RegistryError(
                f"The model's files are not the ones that were registered ({name} differs)",
                where=uri,
                expected=digests.get(name, "a tag with the digest"),
                found=digest,
                advice="It was not loaded.",
            )
    return target


def load(folder: Path) -> PyFuncModel:
    """The model in a verified folder. Raises RegistryError if MLflow can't load it."""
    import mlflow.pyfunc

    try:
        model: PyFuncModel = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    except (ImportError, ValueError, RuntimeError) as error:
        raise RegistryError(f"The model can't be loaded ({error})", where=folder) from error
    return model


def read_labels(folder: Path) -> list[str]:
    """The labels of a model folder's student, in order of id, whichever release packed it."""
    from tasks.kd.documents.exported import read_known_labels

    try:
        return list(read_known_labels(folder / "artifacts"))
    except DataError as error:  # a person decides on such a champion
        raise RegistryError(str(error)) from error


def predict_labels(model: PyFuncModel, texts: list[str]) -> list[str]:
    """The model's label for each text."""
    import pandas as pd

    answer: Any = model.predict(pd.DataFrame({"text": pd.Series(texts, dtype=object)}))
    return [str(label) for label in answer["label"]]


def smoke_test(folder: Path) -> None:
    """Load a verified model folder and classify one text. Raises RegistryError for a bad answer."""
    labels = predict_labels(load(folder), [_EXAMPLE])
    if len(labels) != 1 or labels[0] not in read_labels(folder):
        raise RegistryError("The model does not answer as it should", where=folder, found=labels)


def check_parity(produced: Produced, folder: Path) -> None:
    """Raise RegistryError unless the packed model repeats the evaluation's answers to test texts.

    One text may differ, since one near the border of two labels may change sides in another batch.
    """
    from tasks.kd.data.examples.prepared import read_split
    from tasks.kd.documents.predictions import PREDICTIONS

    split = read_split(produced.path("prepare_data", "test.arrow"))
    texts = dict(zip(split.example_ids, split.texts, strict=True))
    candidate = produced.candidate
    rows = list(zip(candidate.example_ids, candidate.student, strict=True))[:_PARITY_EXAMPLES]
    unknown = [example for example, _ in rows if example not in texts]
    if unknown:
        raise RegistryError(
            "Predictions are of examples that the test split lacks",
            where=produced.artifacts / "evaluate_student" / PREDICTIONS,
            found=", ".join(unknown[:3]),
        )
    answers = predict_labels(load(folder), [texts[example] for example, _ in rows])
    slips = sum(said != answer for (_, said), answer in zip(rows, answers, strict=True))
    if slips > _PARITY_SLIPS:
        raise RegistryError(
            "The packed student does not say what was evaluated",
            where=produced.artifacts / "export_student",
            expected=f"the predictions of evaluate_student on {len(rows)} test examples",
            found=f"{slips} others",
        )
