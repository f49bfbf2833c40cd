from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tasks.kd.data.examples.padding import pad
from tasks.kd.encoders.shape import depth, width
from tasks.kd.recipe.teachers import EnsembleRule
from tasks.kd.targets.targets import run_teacher
from tasks.kd.teacher.ensemble import (
    Ensemble,
    combine,
    load_teacher,
    named_member,
    save_rule,
    teacher_sha256,
)
from tests.kd.conftest import make_split, make_teacher


def rule(**fields: Any) -> EnsembleRule:
    made: EnsembleRule = TypeAdapter(EnsembleRule).validate_python({"layers": "main", **fields})
    return made


LOGITS = torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 2.0]]])  # M = 2, B = 2


def test_the_mean_gives_all_the_same_say() -> None:
    assert combine(LOGITS, ["main", "other"], rule(logits="mean")).tolist() == [[2, 1], [0, 1]]


def test_weights_are_shares_by_name() -> None:
    weighted = rule(logits="weighted", weights={"other": 3.0, "main": 1.0})
    assert combine(LOGITS, ["main", "other"], weighted).tolist() == [[1, 1.5], [0, 1.5]]


def test_confidence_is_of_each_example() -> None:
    found = combine(LOGITS, ["main", "other"], rule(logits="confidence"))
    sure = LOGITS.softmax(-1).max(-1).values
    shares = sure / sure.sum(0)
    assert torch.allclose(found, (shares[:, :, None] * LOGITS).sum(0))
    assert shares[0, 0] > 0.5 > shares[0, 1]  # sure of the first text, of the second not at all
    alone = torch.cat(
        [combine(LOGITS[:, i : i + 1], ["a", "b"], rule(logits="confidence")) for i in range(2)]
    )
    assert torch.allclose(found, alone)


def test_to_who_asks_for_streams_it_is_a_teacher_like_any_other() -> None:
    members = {"main": make_teacher(), "deep": make_teacher(6, 16, seed=1)}
    ensemble = Ensemble(members, rule(logits="mean", layers="deep")).eval()
    assert (depth(ensemble), width(ensemble)) == (6, 16)
    assert named_member(ensemble) is members["deep"]
    assert named_member(members["main"]) is members["main"]
    ids_BT, mask_BT = pad(make_split(5).input_ids, 0)
    streams = ("logits", "hidden.0", "hidden.6", "attention.3", "relation.6")
    found = run_teacher(ensemble, ids_BT, mask_BT, streams)
    deep = run_teacher(members["deep"], ids_BT, mask_BT, streams)
    main = run_teacher(members["main"], ids_BT, mask_BT, ("logits",))
    assert torch.allclose(found["logits"], (deep["logits"] + main["logits"]) / 2)
    for stream in streams[1:]:
        assert torch.equal(found[stream], deep[stream])


def write(folder: Path, **fields: Any) -> Path:
    make_teacher().save_pretrained(folder / "model")
    make_teacher(seed=1).save_pretrained(folder / "members" / "second")
    make_teacher(seed=2).save_pretrained(folder / "members" / "third")
    save_rule(folder, rule(**fields))
    return folder


def test_what_was_written_is_loaded(tmp_path: Path) -> None:
    folder = write(tmp_path, logits="confidence", layers="third")
    ensemble = load_teacher(folder)
    assert isinstance(ensemble, Ensemble)
    assert list(ensemble.members) == ["main", "second", "third"]
    assert not any(module.training for module in ensemble.modules())
    assert ensemble.rule == rule(logits="confidence", layers="third")


def test_without_a_rule_it_is_the_one_model(teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(teacher_folder)
    assert not isinstance(load_teacher(tmp_path), Ensemble)


def test_the_digest_is_of_every_member_and_of_the_rule(tmp_path: Path) -> None:
    first = teacher_sha256(write(tmp_path, logits="mean"))
    save_rule(tmp_path, rule(logits="confidence"))
    second = teacher_sha256(tmp_path)
    make_teacher(seed=9).save_pretrained(tmp_path / "members" / "third")
    third = teacher_sha256(tmp_path)
    (tmp_path / "members" / "third").rename(tmp_path / "members" / "fourth")
    assert len({first, second, third, teacher_sha256(tmp_path)}) == 4


@pytest.mark.parametrize("weights", [{"main": 0.0}, {"main": -1.0}, {"main": float("nan")}])
def test_a_weight_that_is_none_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        rule(logits="weighted", weights=weights)
