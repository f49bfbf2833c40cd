"""The folder that a command works on."""

from __future__ import annotations

from pathlib import Path

from tasks.kd.errors import ParamsError


def find_root(start: Path | None = None) -> Path:
    """The nearest folder with dvc.yaml and params/, from `start` (or the current folder) upwards.

    Raises ParamsError if there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params").is_dir():
            return folder
    raise ParamsError(
        "not inside a stillhouse repository",
        where=here,
        expected="a folder with dvc.yaml and params/, here or above",
    )
