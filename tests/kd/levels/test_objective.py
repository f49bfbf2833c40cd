from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.data.examples.trainable import Moment
from tasks.kd.encoders.capture import capture_hidden
from tasks.kd.errors import ParamsError
from tasks.kd.levels.losses import prediction
from tasks.kd.levels.objective import Objective, TeacherShape
from tasks.kd.recipe.losses import LOSSES
from tasks.kd.recipe.maps import drawn
from tasks.kd.recipe.phases import streams_read
from tasks.kd.targets.targets import LiveTargets
from tasks.kd.totals import Total
from tests.kd.conftest import make_teacher
from tests.makers.levels import EVERY_LEVEL, MSE, VECTOR, batch_of, phase_with
from tests.makers.phases import one_phase
from tests.makers.training_setup import (
    ATTENTION,
    HIDDEN,
    LABELS,
    PHASES,
    RELATION,
    SCORES,
    make_parts,
    objective_of,
)


def test_each_level_is_its_loss_on_what_it_names() -> None:
    parts = make_parts()
    objective = objective_of(parts).eval()
    batch, targets = batch_of(parts, slice(0, 6))
    totals = objective(batch, targets, Moment(1))
    with torch.no_grad(), capture_hidden(objective.student, (0, 1, 2)) as states:
        logits = objective.student(
            input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT.long()
        ).logits
    assert set(totals) == set(PHASES[1].level_names)
    expected = prediction.kl(logits, targets["logits"], temperature=2.0)
    assert float(totals["prediction.kl"].sum.detach()) == pytest.approx(
        float(expected.sum.detach()), rel=1e-5
    )
    hidden = 0.0
    for own, theirs in ((0, 0), (1, 2), (2, 4)):
        projected = objective.projections[f"{own}_{theirs}"](states[own])
        deviation = torch.full((32,), 0.5 + theirs / 10)
        error = (projected - targets[f"hidden.{theirs}"])[batch.mask_BT] / deviation
        hidden += float(error.square().mean(-1).sum().detach())
    assert float(totals["hidden.mse"].sum.detach()) == pytest.approx(hidden, rel=1e-4)


def test_counts_are_known_before_the_forward_pass() -> None:
    parts = make_parts()
    batch, targets = batch_of(parts, slice(0, 6))
    for phase in (0, 1):
        totals = parts.objective(batch, targets, Moment(phase))
        counts = parts.objective.counts(phase, batch.mask_BT.sum(1).numpy())
        assert counts == {name: total.count for name, total in totals.items()}


def test_without_a_teacher_there_are_labels_only() -> None:
    phase = one_phase((LABELS,))
    objective = Objective(make_teacher(), (phase,))
    ids = torch.tensor([[2, 5, 9]])
    totals = objective(Batch(ids, ids > 0, torch.tensor([1])), {}, Moment(0))
    assert list(totals) == ["prediction.labels"]


def test_a_student_that_is_the_teacher_has_no_error_at_any_inner_level() -> None:
    plain = HIDDEN.model_copy(update={"projection": "none"})
    levels = (plain, SCORES, ATTENTION, RELATION)
    phase = one_phase(tuple(levels))
    deviations = {layer: torch.ones(32) for layer in range(5)}
    objective = Objective(make_teacher(), (phase,), TeacherShape(4, 32, deviations)).eval()
    texts = make_parts().train.input_ids[:4]
    ids, mask = pad(texts, 0)
    streams = streams_read((phase,), 4, 4)
    assert "attention.0" not in streams
    targets = LiveTargets(make_teacher(), streams, pad_id=0).fetch(texts)
    totals = objective(Batch(ids, mask, torch.zeros(4, dtype=torch.int64)), targets, Moment(0))
    assert len(totals) == 4
    for total in totals.values():
        assert float(total.sum.detach()) == pytest.approx(0, abs=1e-5)


def test_inner_levels_reach_the_student_s_queries_and_keys() -> None:
    for level in (SCORES, ATTENTION, RELATION):
        phase = one_phase((level,))
        parts = make_parts((phase,))
        batch, targets = batch_of(parts, slice(0, 6))
        (total,) = parts.objective(batch, targets, Moment(0)).values()
        total.mean().backward()
        student: Any = parts.objective.student
        last = student.bert.encoder.layer[1].attention.self
        for projection in (last.query, last.key):
            assert float(projection.weight.grad.abs().sum()) > 0


def test_every_level_of_a_recipe_is_tried_here() -> None:
    assert {f"{fields['level']}.{fields['loss']}" for fields in EVERY_LEVEL} == set(LOSSES)


@pytest.mark.parametrize("fields", EVERY_LEVEL, ids=lambda f: f"{f['level']}.{f['loss']}")
def test_every_level_trains_the_student_and_knows_its_count(fields: dict[str, object]) -> None:
    parts = make_parts((phase_with(fields),))
    streams = streams_read([phase_with(fields)], 2, 4)
    texts = parts.train.input_ids[:6]
    ids, mask = pad(texts, 0)
    batch = Batch(ids, mask, torch.from_numpy(parts.train.labels[:6]))
    targets = LiveTargets(make_teacher(), streams, pad_id=0).fetch(texts)
    totals = parts.objective(batch, targets, Moment(0))
    (total,) = totals.values()
    assert parts.objective.counts(0, mask.sum(1).numpy()) == dict.fromkeys(totals, total.count)
    total.mean().backward()
    gradients = [p.grad for p in parts.objective.student.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


@pytest.mark.parametrize("loss", ["dkd", "dist"])
def test_levels_that_need_three_classes_are_refused_for_two(loss: str) -> None:
    fields = next(fields for fields in EVERY_LEVEL if fields["loss"] == loss)
    student = make_teacher()
    student.config.num_labels = 2
    with pytest.raises(ParamsError, match=f"prediction.{loss}.*at least 3 classes"):
        Objective(student, (phase_with(fields),), TeacherShape(4, 32, {}))


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_levels_are_in_float32_whatever_the_precision_of_the_passes(loss: str) -> None:
    name = {"mse": "attention.mse", "kl": "relation.kl"}[loss]
    fields = next(f for f in EVERY_LEVEL if f"{f['level']}.{f['loss']}" == name)
    parts = make_parts((phase_with(fields),))
    texts = parts.train.input_ids[:6]
    ids, mask = pad(texts, 0)
    batch = Batch(ids, mask, torch.from_numpy(parts.train.labels[:6]))
    streams = streams_read([phase_with(fields)], 2, 4)
    targets = LiveTargets(make_teacher(), streams, pad_id=0).fetch(texts)
    seen: list[torch.dtype] = []

    class Products(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            result = func(*args, **(kwargs or {}))
            if getattr(func, "__name__", "") in ("matmul", "linear"):
                seen.append(result.dtype)
            return result

    parts.objective.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), Products():
        parts.objective(batch, targets, Moment(0))
    assert torch.bfloat16 in seen  # the student's passes
    assert seen[-1] == torch.float32  # what the level itself multiplies


# --- layer maps ----------------------------------------------------------------------------------

ATTENTION_MSE: dict[str, object] = {"level": "attention", "loss": "mse", "heads": "each"}
MAPPED: list[dict[str, object]] = [
    *({**MSE, "layer_map": name} for name in ("skip", "upper_middle", "random", "mixture")),
    *({**MSE, "layer_map": name, "standardise": True} for name in ("transport", "nearest")),
    *({**VECTOR, "layer_map": name} for name in ("random", "mixture", "transport", "nearest")),
    *({**ATTENTION_MSE, "layer_map": name} for name in ("skip", "random", "transport", "nearest")),
    {"level": "hidden", "loss": "gram", "projection": "linear", "layer_map": "random"},
]


def totals_of(fields: Mapping[str, object], *slices: slice, epoch: int = 0) -> Total:
    """The level over all the slices of the same texts, each a micro-batch of its own."""
    parts = make_parts((phase_with(fields),))
    objective = parts.objective.eval()
    streams = streams_read([phase_with(fields)], 2, 4)
    found: list[Total] = []
    for rows in slices:
        texts = parts.train.input_ids[rows]
        ids, mask = pad(texts, 0)
        targets = LiveTargets(make_teacher(), streams, pad_id=0).fetch(texts)
        batch = Batch(ids, mask, torch.from_numpy(parts.train.labels[rows]))
        (total,) = objective(batch, targets, Moment(0, epoch)).values()
        assert objective.counts(0, mask.sum(1).numpy()) == {
            f"{fields['level']}.{fields['loss']}": total.count
        }
        found.append(total)
    return functools.reduce(Total.merge, found)


@pytest.mark.parametrize("fields", MAPPED, ids=lambda f: f"{f['loss']}-{f['layer_map']}")
def test_a_map_gives_the_same_however_the_batch_is_split(fields: dict[str, object]) -> None:
    whole = totals_of(fields, slice(0, 8))
    split = totals_of(fields, slice(0, 1), slice(1, 6), slice(6, 8))
    assert split.count == whole.count
    assert float(split.sum.detach()) == pytest.approx(float(whole.sum.detach()), rel=1e-5)
    whole.mean().backward()


def test_a_random_map_is_another_one_each_epoch_and_reads_all_layers() -> None:
    fields = {**MSE, "layer_map": "random"}
    assert streams_read((phase_with(fields),), 2, 4) == tuple(f"hidden.{x}" for x in (1, 2, 3, 4))
    sums = {float(totals_of(fields, slice(0, 4), epoch=epoch).sum.detach()) for epoch in range(8)}
    assert len(sums) > 1
    pairs = [drawn(2, 4, seed=3, epoch=epoch) for epoch in range(8)]
    assert len(sums) == len(set(pairs))  # the seed is that of the objective


def test_nearest_is_the_least_that_any_pair_costs() -> None:
    fields = {**MSE, "projection": "shared"}
    near = totals_of({**fields, "layer_map": "nearest"}, slice(0, 1))
    costs = [
        [totals_of({**fields, "layer_map": ((s, t),)}, slice(0, 1)).sum.detach() for s in (1, 2)]
        for t in (2, 4)
    ]
    assert float(near.sum.detach()) == pytest.approx(float(sum(map(min, costs))), rel=1e-5)


# --- weights and temperatures --------------------------------------------------------------------


def test_a_scheduled_weight_is_that_of_the_moment() -> None:
    falling = {"schedule": "linear", "start": 1.0, "end": 0.0}
    phase = phase_with({"level": "prediction", "loss": "labels", "weight": falling})
    objective = make_parts((phase,)).objective
    assert objective.weights(Moment(0, done=0.25)) == {"prediction.labels": 0.75}


def test_a_scheduled_temperature_is_that_of_the_moment() -> None:
    rising = {"schedule": "linear", "start": 1.0, "end": 5.0}
    sums = []
    for temperature, done in ((rising, 0.5), (3.0, 0.0)):
        fields = {"level": "prediction", "loss": "kl", "temperature": temperature}
        parts = make_parts((phase_with(fields),))
        batch, targets = batch_of(parts, slice(0, 6))
        (total,) = parts.objective.eval()(batch, targets, Moment(0, done=done)).values()
        sums.append(float(total.sum.detach()))
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "flsw", "base": 2.0, "slope": 1.0, "centre": 0.1, "power": 1.0},
        {"rule": "cwsm", "base": 2.0, "slope": 1.0, "centre": 1.0},
    ],
)
def test_a_rule_gives_each_example_its_temperature(rule: dict[str, object]) -> None:
    fields = {"level": "prediction", "loss": "kl", "temperature": rule}
    whole = totals_of(fields, slice(0, 8))
    split = totals_of(fields, slice(0, 3), slice(3, 8))
    assert float(split.sum.detach()) == pytest.approx(float(whole.sum.detach()), rel=1e-5)
    plain = totals_of({**fields, "temperature": 2.0}, slice(0, 8))
    assert float(whole.sum.detach()) != pytest.approx(float(plain.sum.detach()), rel=1e-3)
