"""Bring the labelled text and the teacher's weights here, with the digest of each file."""

from __future__ import annotations

from tasks.kd.digests import sha256_file, write_json
from tasks.kd.params import FetchSources
from tasks.kd.sources import fetch_data, fetch_model
from tasks.stages import Stage, run_stage


def main(stage: Stage) -> None:
    """Write data/, teacher/ and sources.json."""
    params: FetchSources = stage.params
    stage.log(f"text from {_describe(params.data)}")
    fetch_data(params.data, stage.root, stage.draft / "data")
    stage.log(f"teacher's base from {_describe(params.teacher)}")
    fetch_model(params.teacher, stage.root, stage.draft / "teacher")
    files = sorted(path for path in stage.draft.rglob("*") if path.is_file())
    write_json(
        stage.draft / "sources.json",
        {
            **params.model_dump(mode="json"),
            "files": {p.relative_to(stage.draft).as_posix(): sha256_file(p) for p in files},
        },
    )


def _describe(source: object) -> str:
    fields = [getattr(source, name, None) for name in ("package", "id", "version", "revision")]
    fields += [getattr(source, "folder", None), getattr(source, "train", None)]
    return f"{getattr(source, 'kind', '')} {' '.join(str(f) for f in fields if f)}"


if __name__ == "__main__":
    run_stage("fetch_sources", main)
