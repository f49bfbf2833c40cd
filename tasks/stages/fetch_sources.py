"""Fetch the labelled text and the models' weights, and note the digest of each file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.kd.data.sources import fetch_data, fetch_model
from tasks.kd.digests import sha256_file, write_json
from tasks.kd.documents.sources import Sources
from tasks.kd.encoders.files.folder import check_model_folder
from tasks.kd.encoders.files.label_names import known_label_names, read_label_names
from tasks.kd.errors import DataError
from tasks.kd.recipe.sections import FetchSources
from tasks.kd.recipe.sources import ModelSource, PathModel
from tasks.kd.tokens.tokenizers import compare_tokenizers, load_tokenizer
from tasks.stages import Stage, run_stage


def main(stage: Stage) -> None:
    """Write data/, teacher/, sources.json and, if the recipe has them, student/ and teachers/."""
    params: FetchSources = stage.params
    stage.log(f"text from {_describe(params.data)}")
    fetch_data(params.data, stage.root, stage.draft / "data")
    stage.log(f"teacher's base from {_describe(params.teacher)}")
    _fetch_checked(params.teacher, stage.root, stage.draft / "teacher")
    load_tokenizer(stage.draft / "teacher")  # reports its faults now
    if params.student is not None:
        stage.log(f"student's base from {_describe(params.student)}")
        _fetch_checked(params.student, stage.root, stage.draft / "student")
        require_one_vocabulary(stage.draft / "teacher", stage.draft / "student", "student")
    for name, source in params.more_teachers.items():
        stage.log(f"teacher {name} from {_describe(source)}")
        folder = stage.draft / "teachers" / name
        _fetch_checked(source, stage.root, folder)
        require_one_vocabulary(stage.draft / "teacher", folder, f"more_teachers.{name}")
    files = sorted(path for path in stage.draft.rglob("*") if path.is_file())
    digests = {path.relative_to(stage.draft).as_posix(): sha256_file(path) for path in files}
    Sources(**params.model_dump(mode="json"), files=digests).write(stage.draft)


def _fetch_checked(source: ModelSource, root: Path, out: Path) -> None:
    """Fetch a model and check its files.

    A folder of the repository is checked before it is copied. So errors name the user's own path,
    and weights of other formats are seen.
    """
    if isinstance(source, PathModel) and (root / source.folder / "config.json").is_file():
        check_model_folder(root / source.folder)
    fetch_model(source, root, out)
    _write_label_names(out / "config.json", check_model_folder(out))


def _write_label_names(path: Path, fields: dict[str, Any]) -> None:
    """Rewrite unambiguous label names in the form that all libraries read.

    Raises DataError for an ambiguous id2label in a form that no library reads.
    """
    said = {name: fields[name] for name in ("id2label", "label2id") if fields.get(name)}
    names = known_label_names(fields, path) if said else None
    if names is None:
        ids = said.get("id2label", {})
        if not (isinstance(ids, dict) and all(map(str.isdecimal, ids))):
            read_label_names(fields, path)
        return
    written = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if said != written:
        write_json(path, fields | written)


def require_one_vocabulary(teacher: Path, other: Path, field: str) -> None:
    """Raise DataError unless both models' tokenizers give the same token ids for any text.

    Both models get the same ids, so another vocabulary's rows would hold other words. `field` is
    the other model's field in the recipe.
    """
    difference = compare_tokenizers(load_tokenizer(teacher), load_tokenizer(other))
    if difference is not None:
        part, found = difference
        raise DataError(
            "a tokenizer is not the teacher's",
            where=f"fetch_sources.{field}",
            expected=f"the teacher's {part}",
            found=found,
            advice="Take a model of the teacher's vocabulary.",
        )


def _describe(source: object) -> str:
    fields = [getattr(source, name, None) for name in ("package", "id", "version", "revision")]
    fields += [getattr(source, "folder", None), getattr(source, "train", None)]
    return f"{getattr(source, 'kind', '')} {' '.join(str(f) for f in fields if f)}"


if __name__ == "__main__":
    run_stage("fetch_sources", main)
