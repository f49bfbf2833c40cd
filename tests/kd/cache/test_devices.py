"""A teacher on another device: what it is given goes there, what it says comes back.

The other device is `meta`, which computes shapes alone; what comes back from it is zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import masking_utils

from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.reading.audit import audit
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.encoders.files.architectures import ATTENTION_FAMILIES, FAMILIES
from tasks.kd.targets.targets import LiveTargets, derive, device_of, own_device, run_teacher
from tests.kd.conftest import make_teacher
from tests.makers.caches import job_of, live_of, make_params, open_written, texts_of, write
from tests.makers.small_families import ragged, small

CPU, META = torch.device("cpu"), torch.device("meta")


class Devices:
    """Where the tensors lay that modules were called with."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen: set[torch.device] = set()
        self.calls = 0
        for module in model.modules():
            module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: object, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.calls += 1
        values = [*args, *named.values()]
        self.seen |= {value.device for value in values if isinstance(value, torch.Tensor)}


@pytest.fixture
def brought_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """Where tensors came from that were asked back into memory."""
    devices: list[torch.device] = []

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        devices.append(tensor.device)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", cpu)
        # A shortcut that looks at values, which meta has none of.
        patch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *_: False)
        yield devices


def streams_of(family: str) -> tuple[str, ...]:
    plain = ("logits", "hidden.0", "hidden.2", "hidden.4")
    return (*plain, "attention.1", "relation.3") if family in ATTENTION_FAMILIES else plain


@pytest.mark.parametrize("family", FAMILIES)
def test_a_live_teacher_gets_everything_on_the_device_asked_for(
    family: str, brought_back: list[torch.device]
) -> None:
    teacher = small(family)
    live = LiveTargets(teacher, streams_of(family), pad_id=1, device=META)
    noted = Devices(live._teacher)
    texts = texts_of([3, 9, 5])
    found = live.fetch(texts)
    assert noted.calls > 10
    assert noted.seen == {META}
    assert brought_back == [META] * len(streams_of(family))
    assert {value.device for value in found.values()} == {CPU}
    assert device_of(teacher) == CPU  # of which the student is made afterwards
    shapes = {name: x.shape for name, x in live_shapes(teacher, family, texts).items()}
    assert {name: value.shape for name, value in found.items()} == shapes


def live_shapes(teacher: Any, family: str, texts: Any) -> dict[str, torch.Tensor]:
    return LiveTargets(teacher, streams_of(family), pad_id=1, device=CPU).fetch(texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_computed_is_computed_on_the_device_of_the_pieces(
    family: str, brought_back: list[torch.device], tmp_path: Path
) -> None:
    streams: tuple[str, ...] = ("hidden.0", "hidden.2")
    if family in ATTENTION_FAMILIES:
        streams = ("hidden.0", "hidden.2", "attention.2", "relation.1", "relation.4")
    params = make_params(streams=streams, recompute="layers", codec="float32")
    job = job_of(texts_of([3, 9, 5]), params, small(family))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)
        manifest = write(job, tmp_path)
    cached = open_written(job, manifest, tmp_path).on(META)
    noted = Devices(cached._frozen)
    found = cached.fetch(job.input_ids)
    assert noted.calls > 0
    assert noted.seen == {META}
    assert brought_back == [META] * len(manifest.computed)
    assert {value.device for value in found.values()} == {CPU}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_put_where_it_is_serves_what_it_did(family: str, tmp_path: Path) -> None:
    """Nothing in a skeleton is left without a value."""
    job = job_of(texts_of([3, 9, 5]), make_params(streams=("hidden.0", "hidden.2")), small(family))
    manifest = write(job, tmp_path)
    cached = open_written(job, manifest, tmp_path).on(CPU)
    assert audit(cached, live_of(job), job.input_ids, count=3) == 3


def test_a_teacher_that_is_there_is_not_copied() -> None:
    teacher = make_teacher()
    for device in (None, CPU):
        assert LiveTargets(teacher, ("logits",), pad_id=0, device=device)._teacher is teacher


def test_without_a_gpu_the_device_is_the_cpu_and_with_one_the_process_s_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert own_device() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert own_device() == torch.device("cuda", 3)
    assert device_of(torch.nn.Module()) == CPU


# --- full float32 --------------------------------------------------------------------------------


class Settings:
    """What products are computed in, each time that a module is called."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seen: set[tuple[str, bool, bool]] = set()
        module.register_forward_pre_hook(self._note)

    def _note(self, *_: object) -> None:
        self.seen.add(
            (
                torch.get_float32_matmul_precision(),
                torch.backends.cudnn.allow_tf32,
                torch.is_autocast_enabled("cpu"),
            )
        )


@pytest.fixture
def coarse() -> Iterator[None]:
    """What a training may have chosen for itself."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("coarse")
def test_the_teacher_runs_in_full_float32_and_leaves_the_settings_as_they_were() -> None:
    teacher, (ids_BT, mask_BT) = small("bert"), ragged()
    layer = teacher.bert.encoder.layer[1]
    noted = Settings(layer.attention.self.query)
    found = run_teacher(teacher, ids_BT, mask_BT, ("hidden.1", "attention.2"))
    derive(teacher, ("attention.2",), {1: found["hidden.1"]}, ids_BT, mask_BT)
    assert noted.seen == {("highest", False, False)}
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    assert torch.is_autocast_enabled("cpu")
    with pytest.raises(ZeroDivisionError):
        fail_in(teacher, ids_BT, mask_BT)
    assert torch.get_float32_matmul_precision() == "high"


def fail_in(teacher: torch.nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> None:
    teacher.register_forward_pre_hook(lambda *_: 1 // 0)
    run_teacher(teacher, ids_BT, mask_BT, ("logits",))


def test_the_device_is_no_part_of_the_fingerprint(written: tuple[CacheJob, Manifest, Path]) -> None:
    """In full float32 it makes no more difference than another batch does."""
    assert written[1].made_of["numerics"] == {"dtype": "float32", "attention": "sdpa"}
