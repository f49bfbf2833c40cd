"""What a phase may say: schedules, an optimizer that goes on, layers that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tasks.kd.data.examples.prepared import NO_LABEL
from tasks.kd.data.examples.trainable import Moment
from tasks.kd.errors import ParamsError
from tasks.kd.recipe.schedules import WeightSchedule
from tasks.kd.training.checkpoint import Checkpoint
from tasks.kd.training.course import Parts, steps_in_all
from tasks.kd.training.loop import train
from tasks.kd.training.optimizers import frozen, frozen_weights
from tests.makers.phases import one_phase
from tests.makers.small_families import CONFIGS, small
from tests.makers.training_setup import (
    ATTENTION,
    HIDDEN,
    KL,
    LABELS,
    SCORES,
    interrupt,
    last_checkpoint,
    make_habits,
    make_parts,
    make_settings,
    records_of,
    require_equal,
    weights_of,
)

Tensors = Mapping[str, torch.Tensor]
RISING = WeightSchedule(schedule="linear", start=0.0, end=1.2)
# Constant, so that two phases of an epoch have the rates of one phase of two.
CONSTANT = {"schedule": "constant", "warmup_fraction": 0.0}


# --- moments and schedules -----------------------------------------------------------------------


def test_each_step_is_told_when_it_is(tmp_path: Path) -> None:
    phases = (
        one_phase((HIDDEN,), name="inner", epochs=2, balance_every=None),
        one_phase((LABELS,), name="outer", epochs=1),
    )
    parts = make_parts(phases)
    moments: list[Moment] = []
    forward = parts.objective.forward

    def noting(batch: Any, targets: Any, moment: Moment) -> Any:
        moments.append(moment)
        return forward(batch, targets, moment)

    parts.objective.forward = noting  # type: ignore[method-assign]
    train(make_settings(), parts, make_habits(tmp_path))
    expected = [Moment(0, step // 6, step / 12) for step in range(12)]
    assert moments == expected + [Moment(1, 2, step / 6) for step in range(6)]


def test_a_scheduled_weight_is_the_one_in_force_and_is_recorded(tmp_path: Path) -> None:
    levels = (LABELS, HIDDEN.model_copy(update={"weight": RISING}))
    train(make_settings(), make_parts((one_phase(levels, epochs=2),)), make_habits(tmp_path))
    steps = records_of(tmp_path, "train")
    weights = [record["levels"]["hidden.mse"]["weight"] for record in steps]
    assert weights == pytest.approx([1.2 * step / 12 for step in range(12)])
    for record in steps:
        found = record["levels"].values()
        assert record["levels"]["prediction.labels"]["weight"] == 0.5
        assert all(level["weighted"] == level["weight"] * level["raw"] for level in found)
        assert all("factor" not in level for level in found)
        assert record["loss"] == pytest.approx(sum(level["weighted"] for level in found))


def test_the_gradient_follows_the_scheduled_weight(tmp_path: Path) -> None:
    """At its first step a rising level weighs nothing: what it alone reaches has no gradient."""
    phase = one_phase((HIDDEN.model_copy(update={"weight": RISING}),))
    train(make_settings(), make_parts((phase,)), make_habits(tmp_path))
    norms = [record["grad_norm"] for record in records_of(tmp_path, "train")]
    assert norms[0] == 0
    assert all(norm > 0 for norm in norms[1:])


# --- the optimizer's moments ---------------------------------------------------------------------


def two_phases(kind: str) -> Parts:
    halves = [
        one_phase((LABELS, HIDDEN), name=name, learning_rate=2e-3, optimizer=kind)
        for name in ("first", "second")
    ]
    return make_parts(tuple(halves))


def test_continued_phases_are_one_long_phase_and_anew_they_are_not(tmp_path: Path) -> None:
    settings = make_settings(**CONSTANT)
    long = make_parts((one_phase((LABELS, HIDDEN), epochs=2, learning_rate=2e-3),))
    train(settings, long, make_habits(tmp_path / "long"))
    for kind in ("continued", "anew"):
        train(settings, two_phases(kind), make_habits(tmp_path / kind))
    expected, continued = (
        last_checkpoint(tmp_path / "long"),
        last_checkpoint(tmp_path / "continued"),
    )
    require_equal(continued.weights, expected.weights)
    require_equal(continued.optimizer, expected.optimizer)
    anew = last_checkpoint(tmp_path / "anew")
    steps = {float(v) for name, v in anew.optimizer.items() if name.endswith(".step")}
    assert steps == {6.0}
    name = "student.classifier.weight"
    assert not torch.equal(anew.weights[name], expected.weights[name])


def test_the_rate_is_the_phase_s_own_though_the_optimizer_goes_on(tmp_path: Path) -> None:
    train(make_settings(), two_phases("continued"), make_habits(tmp_path))
    rates = [record["learning_rate"] for record in records_of(tmp_path, "train")]
    assert rates[:6] == rates[6:]
    assert len(set(rates)) > 3


@pytest.mark.parametrize("stop_at", [2, 6, 7, 10])
def test_an_optimizer_that_goes_on_is_resumed_exactly_in_either_phase(
    stop_at: int, tmp_path: Path
) -> None:
    train(make_settings(), two_phases("continued"), make_habits(tmp_path / "whole"))
    work = tmp_path / "stopped"
    interrupt(stop_at, make_settings(), two_phases("continued"), work)
    train(make_settings(), two_phases("continued"), make_habits(work))
    expected, found = last_checkpoint(tmp_path / "whole"), last_checkpoint(work)
    require_equal(found.weights, expected.weights)
    require_equal(found.optimizer, expected.optimizer)


# --- layers that are trained ---------------------------------------------------------------------


def of_layer(name: str) -> int | str | None:
    """The student layer that a weight's name says, "head" for a pooler too; None: a projection."""
    if name.startswith("student.bert.embeddings."):
        return 0
    if name.startswith("student.bert.encoder.layer."):
        return int(name.split(".")[4]) + 1
    return "head" if name.startswith("student.") else None


@pytest.mark.parametrize(
    "layers", [(0,), (1,), (2,), (0, 2), (0, 1, 2), ("head",), (1, 2, "head")], ids=str
)
@pytest.mark.parametrize(
    ("settings", "compute"),
    [({}, {}), ({"ema_decay": 0.8}, {"gradient_checkpointing": True})],
    ids=["plain", "all practices"],
)
def test_only_the_named_layers_and_the_projections_are_trained(
    layers: tuple[int | Literal["head"], ...],
    settings: dict[str, Any],
    compute: dict[str, Any],
    tmp_path: Path,
) -> None:
    phase = one_phase((LABELS, KL, HIDDEN, ATTENTION), trained_layers=layers, learning_rate=1e-2)
    parts = make_parts((phase,))
    before = weights_of(parts.objective)
    train(
        make_settings(weight_decay=0.5, **settings), parts, make_habits(tmp_path / "a", **compute)
    )
    after = last_checkpoint(tmp_path / "a")
    changed = {
        name for name, value in after.weights.items() if not torch.equal(value, before[name])
    }
    trained = {name for name, p in parts.objective.named_parameters() if of_layer(name) in layers}
    projections = {name for name in before if name.startswith("projections.")}
    assert changed == trained | projections
    for name, value in weights_of(parts.objective.student).items():  # the best ones, or averages
        if f"student.{name}" not in trained:
            assert torch.equal(value, before[f"student.{name}"])
    assert all(p.requires_grad for p in parts.objective.parameters())


def unfreezing() -> Parts:
    """All for an epoch, then the upper layer alone, then the lower ones, in one go of AdamW."""
    return make_parts(
        (
            one_phase((LABELS, HIDDEN), name="all"),
            one_phase((HIDDEN,), name="upper", optimizer="continued", trained_layers=(2,)),
            one_phase((HIDDEN, SCORES), name="lower", optimizer="continued", trained_layers=(0, 1)),
        )
    )


def test_moments_of_what_is_frozen_stay_until_it_is_trained_again(tmp_path: Path) -> None:
    kept: dict[int, Checkpoint] = {}
    for stop_at in (6, 12):
        interrupt(stop_at, make_settings(), unfreezing(), tmp_path)
        kept[stop_at] = last_checkpoint(tmp_path)
        assert kept[stop_at].state.step == stop_at
    train(make_settings(), unfreezing(), make_habits(tmp_path))
    ends = [kept[6], kept[12], last_checkpoint(tmp_path)]
    steps = [steps_of(end) for end in ends]
    names = [name for name in steps[0] if of_layer(name) in (0, 1, 2)]
    assert {steps[0][name] for name in names} == {6.0}
    for name in names:
        is_upper = of_layer(name) == 2
        assert steps[1][name] == (12.0 if is_upper else 6.0)
        assert steps[2][name] == 12.0
    assert {step["student.classifier.weight"] for step in steps} == {6.0}


def steps_of(end: Checkpoint) -> dict[str, float]:
    """How many updates each weight's moments have seen."""
    named = list(make_parts().objective.named_parameters())
    plain = [name for name, p in named if p.dim() == 1]
    order = [name for name, p in named if p.dim() > 1] + plain
    return {
        order[int(name.split(".")[0])]: float(value)
        for name, value in end.optimizer.items()
        if name.endswith(".step")
    }


@pytest.mark.parametrize("stop_at", [6, 8, 12, 15])
def test_phases_with_frozen_layers_are_resumed_exactly(stop_at: int, tmp_path: Path) -> None:
    settings = make_settings(ema_decay=0.8)
    train(settings, unfreezing(), make_habits(tmp_path / "whole"))
    interrupt(stop_at, settings, unfreezing(), tmp_path / "stopped")
    resumed = unfreezing()
    train(settings, resumed, make_habits(tmp_path / "stopped"))
    expected, found = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "stopped")
    require_equal(found.weights, expected.weights)
    require_equal(found.optimizer, expected.optimizer)
    require_equal(found.state.average, expected.state.average)


def test_a_layer_that_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    phases = (one_phase((LABELS,)), one_phase((LABELS,), name="later", trained_layers=(1, 3)))
    with pytest.raises(
        ParamsError,
        match=r"no such layer to train: phase later, trained_layers\. Expected layers 0 to 2, "
        r"found 3\.",
    ):
        train(make_settings(), make_parts(phases), make_habits(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("projection", ["none", "linear", "orthogonal"])
@pytest.mark.parametrize("trained", [2, "head"])
@pytest.mark.parametrize("balance_every", [None, 1])
def test_a_phase_whose_levels_reach_nothing_that_it_trains_is_refused(
    projection: str, trained: int | str, balance_every: int | None, tmp_path: Path
) -> None:
    """A projection alone would be trained, and the student not."""
    lower = HIDDEN.model_copy(update={"projection": projection, "layer_map": ((1, 2),)})
    scores = SCORES.model_copy(update={"layer_map": ((1, 2),)})
    fields = {"trained_layers": (trained,), "balance_every": balance_every}
    phase = one_phase((lower, scores), name="upper", **fields)
    parts = make_parts((phase,), width=32)
    with pytest.raises(ParamsError, match=r"no level of the phase reaches.*phase upper, trained_"):
        train(make_settings(), parts, make_habits(tmp_path))
    assert all(p.requires_grad for p in parts.objective.parameters())


def test_a_level_that_reaches_nothing_has_no_gradient_beside_one_that_does(tmp_path: Path) -> None:
    lower = HIDDEN.model_copy(update={"projection": "none", "layer_map": ((1, 2),)})
    phase = one_phase((lower, KL), trained_layers=(2,), balance_every=2)
    parts = make_parts((phase,), width=32)
    train(make_settings(), parts, make_habits(tmp_path, grad_norm_every=1))
    for record in records_of(tmp_path, "train"):
        assert record["levels"]["hidden.mse"]["grad_norm"] == 0
        assert record["levels"]["hidden.mse"]["factor"] == 1
        assert record["levels"]["prediction.kl"]["grad_norm"] > 0


@pytest.mark.parametrize("family", CONFIGS)
def test_a_layer_is_all_of_its_weights_in_every_family(family: str) -> None:
    student = small(family)
    names = {id(weight): name for name, weight in student.named_parameters()}

    def kept(*layers: int | Literal["head"]) -> set[str]:
        weights = frozen_weights(student, one_phase((LABELS,), trained_layers=layers))
        return {names[id(weight)] for weight in weights}

    everything = set(names.values())
    depth = int(student.config.num_hidden_layers)
    by_layer = [everything - kept(layer) for layer in range(depth + 1)]
    assert all(by_layer)
    trained = set().union(*by_layer)
    left = everything - trained
    assert not [name for name in left if "layer" in name.lower() and "classifier" not in name]
    assert [name for name in left if name.startswith(("classifier", "head"))]
    assert kept(*range(depth + 1)) == left
    assert kept("head") == trained
    assert not kept("head", *range(depth + 1))
    assert frozen_weights(student, one_phase((LABELS,))) == []
    shared = by_layer[1] & by_layer[2]
    for one in range(1, depth + 1):
        assert shared <= by_layer[one]
        assert not by_layer[0] & by_layer[one]


def test_what_was_frozen_before_stays_frozen_after() -> None:
    weights = list(torch.nn.Linear(2, 2).parameters())
    weights[0].requires_grad_(False)
    with frozen(weights):
        assert not any(weight.requires_grad for weight in weights)
    assert [weight.requires_grad for weight in weights] == [False, True]


# --- texts without labels ------------------------------------------------------------------------


def partly_labelled() -> Parts:
    """44 texts of which every third has no label, for a layers' phase and one of predictions."""
    phases = (
        one_phase((HIDDEN,), name="inner", epochs=2, learning_rate=2e-3),
        one_phase((LABELS, KL, HIDDEN), name="outer", epochs=2, learning_rate=2e-3),
    )
    parts = make_parts(phases)
    parts.train.labels[::3] = NO_LABEL  # 15 of them
    return parts


def test_texts_without_labels_are_left_to_phases_without_predictions(tmp_path: Path) -> None:
    parts = partly_labelled()
    read: list[bytes] = []
    fetch = parts.targets.fetch

    class Listening:
        """The targets, which note what is asked for."""

        def fetch(self, input_ids: Any) -> Any:
            read.extend(ids.tobytes() for ids in input_ids)
            return fetch(input_ids)

    settings = make_settings()
    report = train(settings, replace(parts, targets=Listening()), make_habits(tmp_path))
    names = {ids.tobytes(): row for row, ids in enumerate(parts.train.input_ids)}
    rows = [names[ids] for ids in read]
    inner, outer = rows[:88], rows[88:]
    assert sorted(inner) == sorted([*range(44)] * 2)
    assert sorted(outer) == sorted([row for row in range(44) if row % 3] * 2)
    # Batches of 8: 6 and 4 steps a pass.
    assert report.steps == steps_in_all(settings, parts.objective.phases, parts.train) == 20
    assert report.best_epoch in (3, 4)
    epochs = [record["epoch"] for record in records_of(tmp_path, "dev")]
    assert epochs == [1, 2, 3, 4]


@pytest.mark.parametrize("stop_at", [3, 7, 12, 13, 15, 18])
def test_phases_over_other_texts_are_resumed_exactly(stop_at: int, tmp_path: Path) -> None:
    train(make_settings(), partly_labelled(), make_habits(tmp_path / "whole"))
    interrupt(stop_at, make_settings(), partly_labelled(), tmp_path / "stopped")
    train(make_settings(), partly_labelled(), make_habits(tmp_path / "stopped"))
    expected, found = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "stopped")
    require_equal(found.weights, expected.weights)
    assert [r["epoch"] for r in records_of(tmp_path / "whole")] == [
        r["epoch"] for r in records_of(tmp_path / "stopped")
    ]
