"""Parts of a source, and links: those that stay inside, and those that lead out."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.kd.data.local_files import find_parts, require_inside
from tasks.kd.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with parts, beside a folder that is none of it."""
    folder = tmp_path / "repository"
    (folder / "data" / "train").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.csv").write_text("text,label\nx,a\n")
    for name in ("b.csv", "a.csv", "_SUCCESS", ".part.crc"):
        (folder / "data" / "train" / name).write_text("")
    for name in ("train-2.csv", "train-1.csv", "test-1.csv"):
        (folder / "data" / name).write_text("")
    return folder


def found(root: Path, named: str) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_parts(root, named, "csv")]


@pytest.mark.parametrize("named", ["data/train", "data/train/", "data/train/*.csv"])
def test_a_folder_is_its_parts_in_order(root: Path, named: str) -> None:
    assert found(root, named) == ["data/train/a.csv", "data/train/b.csv"]


def test_a_pattern_is_what_it_matches_and_a_file_is_itself(root: Path) -> None:
    assert found(root, "data/train-*.csv") == ["data/train-1.csv", "data/train-2.csv"]
    assert found(root, "data/train-[1].csv") == ["data/train-1.csv"]
    assert found(root, "data/test-1.csv") == ["data/test-1.csv"]
    assert found(root, "data/none.csv") == found(root, "data/n*.csv") == found(root, "no/*") == []


@pytest.mark.parametrize("name", ["notes.txt", "part-3.csv.gz", "2026"])
def test_a_folder_with_other_things_is_refused(root: Path, name: str) -> None:
    (root / "data" / "train" / name).mkdir()
    with pytest.raises(DataError, match=rf"holds what is no csv part.*found {name}.*train/\*"):
        find_parts(root, "data/train", "csv")


def test_an_empty_folder_and_a_folder_as_a_part_are_refused(root: Path) -> None:
    (root / "data" / "none").mkdir()
    with pytest.raises(DataError, match="a folder without csv parts"):
        find_parts(root, "data/none", "csv")
    with pytest.raises(DataError, match="a part is a folder"):
        find_parts(root, "data/n*", "csv")


@pytest.mark.parametrize("named", ["data/train", "data/train/*.csv"])
def test_a_part_that_dvc_tracks_may_not_be_away_alone(root: Path, named: str) -> None:
    for name in ("a.csv.dvc", "b.csv.dvc"):
        (root / "data" / "train" / name).write_text("outs: []")
    assert len(find_parts(root, named, "csv")) == 2
    (root / "data" / "train" / "b.csv").unlink()
    with pytest.raises(DataError, match=r"a part that DVC tracks is not here: .*b\.csv.*dvc pull"):
        find_parts(root, named, "csv")
    (root / "data" / "train" / "a.csv").unlink()
    assert find_parts(root, named, "csv") == []


def test_a_link_inside_is_followed(root: Path) -> None:
    (root / "data" / "linked.csv").symlink_to(root / "data" / "test-1.csv")
    (root / "linked").symlink_to(root / "data")
    assert found(root, "data/linked.csv") == ["data/linked.csv"]
    assert found(root, "linked/test-1.csv") == ["linked/test-1.csv"]


@pytest.mark.parametrize(
    ("link", "target", "named"),
    [
        ("data/train-3.csv", "outside/a.csv", "data/train-3.csv"),
        ("data/train-3.csv", "outside/a.csv", "data/train-*.csv"),
        ("data/train/c.csv", "outside/a.csv", "data/train"),
        ("elsewhere", "outside", "elsewhere"),
        ("elsewhere", "outside", "elsewhere/a.csv"),
        ("elsewhere", "outside", "elsewhere/*.csv"),
    ],
)
def test_a_link_that_leads_out_is_refused(root: Path, link: str, target: str, named: str) -> None:
    (root / link).symlink_to(root.parent / target)
    with pytest.raises(DataError, match=r"a link leads out of the repository.*found .*outside"):
        find_parts(root, named, "csv")


def test_a_link_to_nothing_is_refused(root: Path) -> None:
    (root / "data" / "gone.csv").symlink_to(root / "data" / "never.csv")
    with pytest.raises(DataError, match="a link that leads nowhere"):
        find_parts(root, "data/gone.csv", "csv")


def put_in_cache(cache: Path, content: bytes, kept: bytes | None = None) -> Path:
    """A file where DVC's caches keep that content; `kept` is what it holds instead."""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    path = cache / "files" / "md5" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if kept is None else kept)
    return path


@pytest.mark.parametrize("cache", [".dvc/cache", "../shared-cache"])
def test_a_link_into_a_cache_of_dvc_is_a_tracked_file(root: Path, cache: str) -> None:
    """With cache.type symlink, and a cache that several checkouts share."""
    (root / "data" / "big.csv").symlink_to(put_in_cache(root / cache, b"text,label\n"))
    assert found(root, "data/big.csv") == ["data/big.csv"]


def test_what_only_lies_as_in_such_a_cache_is_refused(root: Path) -> None:
    path = put_in_cache(root.parent / "shared", b"one", kept=b"another")
    (root / "data" / "big.csv").symlink_to(path)
    with pytest.raises(DataError, match="leads out of the repository"):
        require_inside(root, root / "data" / "big.csv")


def test_what_dvc_itself_links_is_read(root: Path) -> None:
    """The real engine, with its cache beside the repository."""
    (root / "data" / "one.csv").write_text("text,label\nx,a\n")
    for command in (
        ["init", "--no-scm"],
        ["config", "cache.dir", str(root.parent / "cache")],
        ["config", "cache.type", "symlink"],
        ["add", "data/one.csv", "data/train"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (root / "data" / "one.csv").is_symlink()
    assert (root / "data" / "train" / "a.csv").is_symlink()
    assert found(root, "data/one.csv") == ["data/one.csv"]
    assert found(root, "data/train") == ["data/train/a.csv", "data/train/b.csv"]
