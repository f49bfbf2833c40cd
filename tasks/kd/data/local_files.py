"""Files of the repository that a recipe names: parts of a table, links that stay inside."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Literal

from tasks.kd.errors import DataError
from tasks.kd.recipe.sources import is_pattern

Kind = Literal["csv", "tsv", "jsonl", "parquet"]
# How parts of each form are named in a folder that is a source as a whole.
PART_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
}
# Where DVC keeps a file in a cache, be it shared and elsewhere: by the digest of its content.
_IN_DVC_CACHE = re.compile(r"/files/md5/([0-9a-f]{2})/([0-9a-f]{30})$")


def find_parts(root: Path, named: str, kind: Kind) -> list[Path]:
    """The files that a source stands for, in order of their names; none if nothing is there.

    Raises DataError for a folder that holds other things as well, for parts that DVC tracks and
    that are not here, and for what leads out of the repository.
    """
    place = root / named
    above = place.parent if is_pattern(named) else place
    if above.exists():  # before its names are looked at
        require_inside(root, above)
    if is_pattern(named):
        found = _match(place)
    elif place.is_dir():
        found = _list_folder(place, named, kind)
    else:
        found = [place] if place.is_file() or place.is_symlink() else []
    for path in found:
        require_inside(root, path)
    return found


def tracked_parts(place: Path) -> list[Path]:
    """DVC's notes of a file, of what a pattern matches, or of what is in a folder."""
    return sorted(place.parent.glob(f"{place.name}.dvc")) or sorted(place.glob("*.dvc"))


def require_inside(root: Path, path: Path) -> None:
    """Raise DataError if a path leads out of the repository, or nowhere, by symbolic links.

    A link into a cache of DVC is what DVC makes of a tracked file where `cache.type` is symlink:
    it may be elsewhere, and its name there says its content.
    """
    inside, target = root.resolve(), path.resolve()
    if target.is_relative_to(inside):
        if not target.exists():
            raise DataError("a link that leads nowhere", where=path, found=target)
        return
    if _is_cached_by_dvc(target):
        return
    raise DataError(
        "a link leads out of the repository",
        where=path,
        expected=f"a file below {inside}",
        found=target,
        advice="Copy the file here, or track it: dvc import-url, dvc add.",
    )


def _is_cached_by_dvc(target: Path) -> bool:
    """Whether a file lies as DVC's caches keep them: its name is its content's digest."""
    found = _IN_DVC_CACHE.search(target.as_posix())
    if found is None or not target.is_file():
        return False
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == found[1] + found[2]


def _match(pattern: Path) -> list[Path]:
    folder = pattern.parent
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern.name)]
    tracked = [name for name in names if fnmatch.fnmatchcase(name, f"{pattern.name}.dvc")]
    _require_pulled(folder, tracked, found)
    parts = [name for name in found if name not in tracked]
    if folders := [name for name in parts if (folder / name).is_dir()]:
        raise DataError("a part is a folder", where=folder / folders[0], expected="a file")
    return [folder / name for name in parts]


def _list_folder(folder: Path, named: str, kind: Kind) -> list[Path]:
    """Files of that form. What begins with a point or an underscore is a tool's own note."""
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith((".", "_")))
    tracked = [name for name in names if name.endswith(".dvc")]
    parts = [name for name in names if Path(name).suffix.lower() in PART_SUFFIXES[kind]]
    _require_pulled(folder, tracked, parts)
    others = [name for name in names if name not in (*parts, *tracked)]
    folders = [name for name in parts if (folder / name).is_dir()]
    if others or folders:
        pattern = f"*{PART_SUFFIXES[kind][0]}"
        raise DataError(
            f"a folder of parts holds what is no {kind} part",
            where=folder,
            expected=f"files that end in {' or '.join(PART_SUFFIXES[kind])}",
            found=", ".join((others + folders)[:5]),
            advice=f"Put a pattern such as {PurePosixPath(named) / pattern} in its place.",
        )
    if not parts and not tracked:
        raise DataError(f"a folder without {kind} parts", where=folder, found="nothing of the kind")
    return [folder / name for name in parts]


def _require_pulled(folder: Path, tracked: list[str], parts: list[str]) -> None:
    """Raise DataError for parts that DVC tracks, some of which are here and some not."""
    missing = [name for name in tracked if name.removesuffix(".dvc") not in parts]
    if missing and len(missing) < len(tracked):
        raise DataError(
            "a part that DVC tracks is not here",
            where=folder / missing[0].removesuffix(".dvc"),
            mend=f"dvc pull {folder / missing[0]}",
        )
