from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.kd.data.examples.prepared import NO_LABEL
from tasks.kd.data.examples.targets import NoTargets
from tasks.kd.data.examples.trainable import Trainable
from tasks.kd.errors import ShapeError
from tasks.kd.levels.losses.prediction import labels
from tasks.kd.levels.objective import Objective
from tasks.kd.teacher.fine_tuning import FineTuning, cross_entropy
from tasks.kd.training.course import Parts
from tasks.kd.training.loop import train
from tests.kd.conftest import make_split, make_teacher
from tests.makers.phases import one_phase
from tests.makers.training_setup import make_habits, make_settings, records_of, weights_of


def as_level(classifier: torch.nn.Module) -> Objective:
    """The same training as a student's, whose only level is the labels."""
    labelled = {"level": "prediction", "loss": "labels", "weight": 1.0}
    phase = one_phase((labelled,), name="fine_tune", epochs=2, learning_rate=1e-3)
    return Objective(classifier, (phase,))


def as_teacher(classifier: torch.nn.Module) -> FineTuning:
    return FineTuning(classifier, epochs=2, learning_rate=1e-3)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_teacher_is_tuned_as_a_student_on_labels_alone_is(tmp_path: Path, precision: str) -> None:
    ended, told = [], []
    for number, make in enumerate((as_level, as_teacher)):
        trained: Trainable = make(make_teacher())
        parts = Parts(trained, NoTargets(), make_split(44, seed=1), make_split(20, seed=2), 0)
        work = tmp_path / str(number)
        report = train(make_settings(), parts, make_habits(work, mixed_precision=precision))
        assert report.steps == 12
        ended.append(weights_of(trained))
        told.append([(record.get("loss"), record.get("levels")) for record in records_of(work)])
    first, second = ended
    assert list(first) == list(second)
    for name, weight in first.items():
        assert weight.numpy().tobytes() == second[name].numpy().tobytes(), name
    assert told[0] == told[1]
    assert any(levels for _, levels in told[0])


def test_its_numbers_are_those_of_the_level() -> None:
    torch.manual_seed(0)
    logits_BC, labels_B = torch.randn(9, 4, requires_grad=True), torch.randint(4, (9,))
    labels_B[3] = NO_LABEL
    gradients = []
    for loss in (labels, cross_entropy):
        total = loss(logits_BC, labels_B)
        assert total.count == 9
        gradients.append((total.sum.detach(), *torch.autograd.grad(total.sum, logits_BC)))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_labels_of_another_number_than_the_logits_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"labels has the wrong shape\. Expected \(3,\)"):
        cross_entropy(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
