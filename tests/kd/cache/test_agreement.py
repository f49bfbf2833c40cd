"""The processes of a training share the work of verifying, and one's finding ends all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tasks.kd.cache.format.manifest import read_document
from tasks.kd.cache.store.store import Store
from tasks.kd.errors import CacheCorruptError, KDError, StageError
from tasks.kd.processes import ranks
from tasks.kd.processes.agreement import agreed
from tasks.kd.processes.launch import run_processes
from tests.kd.cache.conftest import MEND

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


def open_shares(store: str, out: str) -> None:
    """As a training does: each process compares its part, then all agree; tells what it met."""
    torch.set_num_threads(1)
    rank, size = ranks.rank(), ranks.world_size()
    said = "nothing"
    try:
        with agreed(CPU):
            manifest: Any = read_document(Path(store) / "artifact.json")
            Store(Path(store)).require(manifest, verify=(rank, size), mend=MEND)
    except KDError as error:
        said = f"{type(error).__name__}: {error}"
    (Path(out) / f"{rank}.json").write_text(json.dumps(said))


def raise_of_two_kinds(out: str) -> None:
    """The last process meets a fault of the system, no other any."""
    rank, last = ranks.rank(), ranks.world_size() - 1
    said = "nothing"
    try:
        with agreed(CPU):
            if rank == last:
                raise OSError("the disk is on fire ✗")
    except (OSError, StageError) as error:
        said = f"{type(error).__name__}: {error}"
    (Path(out) / f"{rank}.json").write_text(json.dumps(said))


def read_all(folder: Path) -> list[str]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("?.json"))]


@pytest.mark.slow
def test_what_one_process_finds_damaged_all_refuse(copied: Any, tmp_path: Path) -> None:
    _, manifest, folder = copied
    manifest.write(folder / "artifact.json")
    run_processes(open_shares, str(folder), str(tmp_path), processes=2)
    assert read_all(tmp_path) == ["nothing", "nothing"]
    shard = manifest.streams["hidden.2"].shards[0]
    path = folder / manifest.streams["hidden.2"].fingerprint / shard.name
    damage(path)
    run_processes(open_shares, str(folder), str(tmp_path), processes=2)
    said = read_all(tmp_path)
    assert all(one.startswith("CacheCorruptError: ") for one in said)
    assert all(str(path) in one and MEND in one for one in said)
    assert sum("process " in one for one in said) == 1  # the other was told of it


@pytest.mark.slow
def test_a_fault_of_the_system_reaches_all(tmp_path: Path) -> None:
    run_processes(raise_of_two_kinds, str(tmp_path), processes=3)
    told = "StageError: process 2 of 3: the disk is on fire ✗"
    assert read_all(tmp_path) == [told, told, "OSError: the disk is on fire ✗"]
