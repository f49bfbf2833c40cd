"""Files of the repository that a recipe names: a table's parts, and links that stay inside."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Literal

from tasks.kd.errors import DataError
from tasks.kd.recipe.sources import is_pattern

Kind = Literal["csv", "tsv", "jsonl", "parquet"]
# The endings that parts of each form have in a folder that is the source.
PART_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
}
# A file's path in a DVC cache, shared or not, holds the digest of its content.
_IN_DVC_CACHE = re.compile(r"/files/md5/([0-9a-f]{2})/([0-9a-f]{30})$")


def find_parts(root: Path, named: str, kind: Kind) -> list[Path]:
    """The files that a source names, in order of their names; an empty list if there are none.

    Raises DataError for a folder that holds other files too, for a part that DVC tracks but that is
    missing here, and for a path that leads out of the repository.
    """
    place = root / named
    above = place.parent if is_pattern(named) else place
    if above.exists():  # checked before its names are read
        require_inside(root, above)
    if is_pattern(named):
        parts = _match(place)
    elif place.is_dir():
        parts = _list_folder(place, named, kind)
    else:
        parts = [place] if place.is_file() or place.is_symlink() else []
    for path in parts:
        require_inside(root, path)
    return parts


def tracked_parts(place: Path) -> list[Path]:
    """The `.dvc` files of a file, of a pattern's matches, or of a folder's content."""
    return sorted(place.parent.glob(f"{place.name}.dvc")) or sorted(place.glob("*.dvc"))


def require_inside(root: Path, path: Path) -> None:
    """Raise DataError if symbolic links lead a path out of the repository, or nowhere.

    A link into a DVC cache is allowed. DVC makes one for a tracked file where `cache.type` is
    symlink, and the target's name is the digest of its content.
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
    """Whether a file lies in a DVC cache: its path is the MD5 digest of its content."""
    digits = _IN_DVC_CACHE.search(target.as_posix())
    if digits is None or not target.is_file():
        return False
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == digits[1] + digits[2]


def _match(pattern: Path) -> list[Path]:
    folder = pattern.parent
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    matches = [name for name in names if fnmatch.fnmatchcase(name, pattern.name)]
    tracked = [name for name in names if fnmatch.fnmatchcase(name, f"{pattern.name}.dvc")]
    _require_pulled(folder, tracked, matches)
    parts = [name for name in matches if name not in tracked]
    if folders := [name for name in parts if (folder / name).is_dir()]:
        raise DataError("a part is a folder", where=folder / folders[0], expected="a file")
    return [folder / name for name in parts]


def _list_folder(folder: Path, named: str, kind: Kind) -> list[Path]:
    """A folder's files of one form. Names that begin with `.` or `_` are tools' notes: skipped."""
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
    """Raise DataError if some of the parts that DVC tracks are here and others are not."""
    missing = [name for name in tracked if name.removesuffix(".dvc") not in parts]
    if missing and len(missing) < len(tracked):
        raise DataError(
            "a part that DVC tracks is not here",
            where=folder / missing[0].removesuffix(".dvc"),
            mend=f"dvc pull {folder / missing[0]}",
        )
