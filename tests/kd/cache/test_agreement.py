"""The processes of a training share the work of verifying, and one's finding ends all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tasks.kd.cache.format.parsing import read_document
from tasks.kd.cache.store.store import Store
from tasks.kd.errors import CacheCorruptError, KDError
from tasks.kd.processes import ranks
from tasks.kd.processes.agreement import agreed
from tasks.kd.processes.launch import run_processes
from tests.makers.caches import MEND

CPU = torch.device("cpu")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_each_file_is_compared_by_exactly_one_of_the_processes(copied: Any, tmp_path: Path) -> None:
    _, manifest, folder = copied
    files = [
        folder / entry.fingerprint / file.name
        for entry in manifest.entries
        for file in entry.files
        if file.name != "statistics.safetensors"  # those all compare
    ]
    assert len(files) > 6
    for path in files:
        before = path.read_bytes()
        damage(path)
        found = [refused(folder, manifest, (rank, 3)) for rank in range(3)]
        assert sorted(found) == [False, False, True], path
        assert refused(folder, manifest, True)
        assert not refused(folder, manifest, False)
        path.write_bytes(before)
    assert not any(refused(folder, manifest, (rank, 3)) for rank in range(3))


def refused(folder: Path, manifest: Any, verify: Any) -> bool:
    try:
        Store(folder).require(manifest, verify=verify, mend=MEND)
    except CacheCorruptError:
        return True
    return False


def test_alone_an_error_is_its_own() -> None:
    with agreed(CPU):
        pass
    for error in (CacheCorruptError("wrong"), OSError("disk"), SafetensorError("header")):
        with pytest.raises(type(error), match=str(error)) as caught, agreed(CPU):
            raise error
        assert caught.value is error
    with pytest.raises(ZeroDivisionError), agreed(CPU):
        raise ZeroDivisionError


def meet(folder: str) -> None:
    """One process of several: what it meets when it opens a whole cache and a damaged one.

    As a training does, each compares its part, then all agree. In the third case the system fails
    the last process and no other.
    """
    torch.set_num_threads(1)
    rank, size = ranks.rank(), ranks.world_size()

    def compare(store: Path) -> None:
        manifest: Any = read_document(store / "artifact.json")
        Store(store).require(manifest, verify=(rank, size), mend=MEND)

    def fail(_: Path) -> None:
        if rank == size - 1:
            raise OSError("the disk is on fire ✗")

    for name, act in (("whole", compare), ("damaged", compare), ("failing", fail)):
        said = "nothing"
        try:
            with agreed(CPU):
                act(Path(folder) / name)
        except (KDError, OSError) as error:
            said = f"{type(error).__name__}: {error}"
        (Path(folder) / f"{name}-{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(written: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three processes have left what they met."""
    folder = tmp_path_factory.mktemp("agreement")
    _, manifest, store = written
    for name in ("whole", "damaged"):
        shutil.copytree(store, folder / name)
        manifest.write(folder / name / "artifact.json")
    damage(shard_in(folder / "damaged", manifest))
    run_processes(meet, str(folder), processes=3)
    return folder


def shard_in(store: Path, manifest: Any) -> Path:
    stream = manifest.streams["hidden.2"]
    path: Path = store / stream.fingerprint / stream.shards[0].name
    return path


def read_all(folder: Path, case: str) -> list[str]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{case}-?.json"))]


@pytest.mark.slow
def test_what_one_process_finds_damaged_all_refuse(written: Any, folder: Path) -> None:
    assert read_all(folder, "whole") == ["nothing"] * 3
    said = read_all(folder, "damaged")
    path = shard_in(folder / "damaged", written[1])
    assert len(said) == 3
    assert all(one.startswith("CacheCorruptError: ") for one in said)
    assert all(str(path) in one and MEND in one for one in said)
    assert sum("process " in one for one in said) == 2  # the others were told of it


@pytest.mark.slow
def test_a_fault_of_the_system_reaches_all(folder: Path) -> None:
    told = "StageError: process 2 of 3: the disk is on fire ✗"
    assert read_all(folder, "failing") == [told, told, "OSError: the disk is on fire ✗"]
