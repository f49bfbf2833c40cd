from __future__ import annotations

from pathlib import Path

import pytest

from tasks.kd import digests
from tasks.kd.digests import Digests, sha256_file, sha256_folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, in order."""
    names: list[str] = []

    def note(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(digests, "sha256_file", note)
    return names


def test_only_what_was_written_is_read_again(tmp_path: Path, read: list[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    known = Digests()
    before = known.of(tmp_path)
    assert (known.of(tmp_path), known.of(tmp_path / "one")) == (
        before,
        sha256_file(tmp_path / "one"),
    )
    assert read == ["one", "two"]
    (tmp_path / "two").write_text("owt")
    after = known.of(tmp_path)
    assert read == ["one", "two", "two"]
    assert after == sha256_folder(tmp_path) != before


def test_a_file_that_comes_or_goes_changes_its_folder(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    known = Digests()
    before = known.of(tmp_path)
    (tmp_path / "two").write_text("two")
    assert known.of(tmp_path) != before
    (tmp_path / "two").unlink()
    assert known.of(tmp_path) == before
    (tmp_path / "one").rename(tmp_path / "other")
    assert known.of(tmp_path) != before
