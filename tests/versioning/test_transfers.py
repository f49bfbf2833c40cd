"""Sources that DVC tracks, and remotes: what is pulled, pushed and refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.kd.errors import (
    DataError,
    TransientError,
)
from tasks.versioning.asking import plan
from tasks.versioning.telling import pull, push, reproduce
from tests.makers.dvc_repository import (
    ROOT,
    STAGES,
    build,
    dvc,
    first,
    ignore,
    in_shell,
    reasons,
    set_remote,
    write_recipes,
)

# DVC asks pygtrie for something that pygtrie wants to withdraw.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning")


def test_a_tracked_source_is_no_stage_of_the_plan(tracked: Path) -> None:
    assert [stage.name for stage in plan(tracked, "tiny")] == list(STAGES)
    assert first(tracked).upstream == ()
    assert reasons(tracked) == {}


def test_a_tracked_source_that_changes_is_seen(tracked: Path) -> None:
    mails = tracked / "sources" / "mails" / "train.csv"
    mails.chmod(0o644)
    mails.write_text("text,label\nbye,1\n")
    assert reasons(tracked)["fetch_sources"] == ("dependency sources/mails/train.csv changed",)


def test_a_tracked_source_that_is_not_here_says_dvc_pull(tracked: Path) -> None:
    shutil.rmtree(tracked / "sources" / "mails")
    stage = first(tracked)
    assert stage.missing == ("sources/mails/train.csv",)
    assert stage.reasons == (
        "sources/mails/train.csv is tracked by DVC and not here: run dvc pull",
    )
    with pytest.raises(DataError, match=r"Run: dvc pull sources/mails/train\.csv"):
        reproduce(tracked, stage, on_line=ignore, on_progress=ignore)


def test_a_source_that_is_nowhere_is_the_user_s_fault(fresh: Path) -> None:
    write_recipes(fresh, tiny="sources/absent.csv")
    stage = first(fresh)
    assert stage.reasons[0] == "dependency sources/absent.csv missing"
    with pytest.raises(DataError, match=r"is not here: sources/absent\.csv\.$"):
        reproduce(fresh, stage, on_line=ignore, on_progress=ignore)


def test_what_one_copy_pushed_another_pulls_and_then_runs_nothing(
    pushed: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    in_shell(tmp_path, "git", "clone", "-q", str(pushed), str(clone))
    assert "tracked by DVC" in reasons(clone)["fetch_sources"][0]
    assert pull(clone, "tiny", on_line=ignore, on_progress=ignore) is True
    assert reasons(clone) == {}
    assert pull(clone, "tiny", on_line=ignore, on_progress=ignore) is True


def test_a_pull_leaves_an_edited_source_alone(tracked: Path) -> None:
    mails = tracked / "sources" / "mails" / "train.csv"
    mails.chmod(0o644)
    mails.write_text("text,label\nmine,1\n")
    shutil.rmtree(tracked / "artifacts")
    pull(tracked, "tiny", on_line=ignore, on_progress=ignore)
    assert "mine" in mails.read_text()
    assert (tracked / "artifacts" / "tiny" / "train_student" / "made").exists()


@pytest.mark.parametrize("place", ["data/train.csv", "data/2026/mails/train.csv"])
def test_the_project_s_own_gitignore_hides_nothing_from_dvc(
    fresh: Path, tmp_path: Path, place: str
) -> None:
    """README's example keeps its data in data/, where git must not take it and DVC must."""
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, fresh / name)
    train = fresh / place
    train.parent.mkdir(parents=True)
    train.write_text("text,label\nhello,0\n")
    write_recipes(fresh, tiny=place)
    assert place not in in_shell(fresh, "git", "status", "--porcelain", "--untracked-files=all")
    dvc(fresh, "add", "-q", place)
    set_remote(fresh, tmp_path / "remote")
    build(fresh)
    push(fresh, "tiny", on_line=ignore, on_progress=ignore)
    in_shell(fresh, "git", "add", "-A")
    in_shell(fresh, "git", "commit", "-qm", "ran")
    assert in_shell(fresh, "git", "ls-files", "data").split() == [f"{place}.dvc"]
    clone = tmp_path / "clone"
    in_shell(tmp_path, "git", "clone", "-q", str(fresh), str(clone))
    assert first(clone).tracked == (place,)
    assert pull(clone, "tiny", on_line=ignore, on_progress=ignore) is True
    assert (clone / place).read_text() == "text,label\nhello,0\n"
    assert reasons(clone) == {}


def test_without_a_remote_nothing_is_pulled_or_pushed(built: Path) -> None:
    assert pull(built, "tiny", on_line=ignore, on_progress=ignore) is False
    assert push(built, "tiny", on_line=ignore, on_progress=ignore) is False


def test_outs_that_the_remote_lacks_are_left_to_be_made(built: Path, tmp_path: Path) -> None:
    set_remote(built, tmp_path / "remote")
    shutil.rmtree(built / "artifacts")
    shutil.rmtree(built / ".dvc" / "cache")
    assert pull(built, "tiny", on_line=ignore, on_progress=ignore) is True
    assert list(reasons(built)) == list(STAGES)


def test_a_remote_that_this_installation_cannot_reach_is_the_user_s_to_mend(built: Path) -> None:
    set_remote(built, "oss://bucket/store")
    with pytest.raises(DataError, match="dvc can't use the remote as it is set up"):
        push(built, "tiny", on_line=ignore, on_progress=ignore)


def test_a_remote_that_does_not_answer_is_a_transient_error(built: Path) -> None:
    set_remote(built, "http://127.0.0.1:9/store")
    with pytest.raises(TransientError, match=r"dvc push did not succeed(?s:.*)ERROR: "):
        push(built, "tiny", on_line=ignore, on_progress=ignore)


def test_a_pull_that_fails_is_a_transient_error_with_dvc_s_words(
    built: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    set_remote(built, tmp_path / "file" / "store")
    shutil.rmtree(built / "artifacts")
    shutil.rmtree(built / ".dvc" / "cache")
    with pytest.raises(TransientError, match=r"dvc pull did not succeed(?s:.*)Not a directory"):
        pull(built, "tiny", on_line=ignore, on_progress=ignore)
