from __future__ import annotations

import pytest
import torch

from tasks.kd import losses
from tasks.kd.encoders import capture_hidden
from tasks.kd.objective import Batch, Objective, TeacherShape, level_name
from tasks.kd.params import Phase
from tasks.kd.targets import pad
from tests.kd.conftest import make_teacher
from tests.kd.training_setup import HIDDEN, KL, LABELS, make_parts


def batch_of(parts: object, rows: slice) -> tuple[Batch, dict[str, torch.Tensor]]:
    from tasks.kd.training import Parts

    assert isinstance(parts, Parts)
    texts = parts.train.input_ids[rows]
    ids, mask = pad(texts, 0)
    return (
        Batch(ids, mask, torch.from_numpy(parts.train.labels[rows])),
        parts.targets.fetch(texts),
    )


def test_each_level_is_its_loss_on_what_it_names() -> None:
    parts = make_parts()
    objective = parts.objective.eval()
    batch, targets = batch_of(parts, slice(0, 6))
    totals = objective(batch, targets, 1)
    with torch.no_grad(), capture_hidden(objective.student, (0, 1, 2)) as states:
        logits = objective.student(
            input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT.long()
        ).logits
    assert set(totals) == {level_name(level) for level in (LABELS, KL, HIDDEN)}
    expected = losses.kl(logits, targets["logits"], temperature=2.0)
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
        totals = parts.objective(batch, targets, phase)
        tokens = int(batch.mask_BT.sum())
        counts = parts.objective.counts(phase, examples=6, tokens=tokens)
        assert counts == {name: total.count for name, total in totals.items()}


def test_projections_are_trained_and_are_no_part_of_the_student() -> None:
    objective = make_parts().objective
    trained = {name for name, _ in objective.named_parameters()}
    assert {f"projections.{pair}.weight" for pair in ("0_0", "1_2", "2_4")} <= trained
    assert not [name for name in objective.student.state_dict() if "projection" in name]


def test_a_projection_between_equal_widths_starts_as_the_identity() -> None:
    objective = make_parts(width=32).objective
    states = torch.randn(2, 3, 32)
    assert torch.equal(objective.projections["0_0"](states), states)


def test_without_a_teacher_there_are_labels_only() -> None:
    phase = Phase(name="only", epochs=1, learning_rate=1e-3, levels=(LABELS,))
    objective = Objective(make_teacher(), (phase,))
    ids = torch.tensor([[2, 5, 9]])
    totals = objective(Batch(ids, ids > 0, torch.tensor([1])), {}, 0)
    assert list(totals) == ["prediction.labels"]


def test_a_student_that_is_the_teacher_has_no_hidden_error() -> None:
    level = HIDDEN.model_copy(update={"projection": "none"})
    phase = Phase(name="only", epochs=1, learning_rate=1e-3, levels=(level,))
    deviations = {layer: torch.ones(32) for layer in range(5)}
    objective = Objective(make_teacher(), (phase,), TeacherShape(4, 32, deviations)).eval()
    parts = make_parts()
    from tasks.kd.targets import LiveTargets

    texts = parts.train.input_ids[:4]
    ids, mask = pad(texts, 0)
    streams = tuple(f"hidden.{layer}" for layer in range(5))
    targets = LiveTargets(make_teacher(), streams, pad_id=0).fetch(texts)
    totals = objective(Batch(ids, mask, torch.zeros(4, dtype=torch.int64)), targets, 0)
    assert float(totals["hidden.mse"].sum.detach()) == pytest.approx(0, abs=1e-6)
