"""Lower precision, recomputed and compiled layers: the levels stay what they are."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.kd.data.examples.trainable import Moment
from tasks.kd.encoders.shape import layers_of
from tasks.kd.errors import ParamsError
from tasks.kd.training import dev, precision, updates
from tasks.kd.training import loop as training
from tasks.kd.training.course import Parts
from tasks.kd.training.loop import train
from tasks.kd.training.precision import FIRST_SCALE, forward_pass, prepared, require_means
from tests.makers.levels import EVERY_LEVEL, batch_of, phase_with
from tests.makers.training_setup import (
    HIDDEN,
    KL,
    LABELS,
    PHASES,
    interrupt,
    make_compute,
    make_habits,
    make_parts,
    make_settings,
    records_of,
    weights_of,
    without_dropout,
)

CPU = torch.device("cpu")
ONE_EPOCH = (PHASES[1].model_copy(update={"epochs": 1}),)
COMPILABLE = (PHASES[1].model_copy(update={"epochs": 1, "levels": (LABELS, KL, HIDDEN)}),)


# --- mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("fields", EVERY_LEVEL, ids=lambda f: f"{f['level']}.{f['loss']}")
def test_a_level_is_computed_in_float32_whatever_the_student_is(fields: dict[str, Any]) -> None:
    parts = without_dropout(make_parts((phase_with(fields),)))
    batch, targets = batch_of(parts, slice(0, 6))
    (exact,) = parts.objective(batch, targets, Moment(0)).values()
    with forward_pass(make_compute(mixed_precision="bf16"), CPU):
        (total,) = parts.objective(batch, targets, Moment(0)).values()
    assert total.sum.dtype == torch.float32
    assert total.count == exact.count
    torch.testing.assert_close(total.sum, exact.sum, rtol=0.05, atol=0.05)
    # The student was not: sums may agree to the last bit, gradients of all weights do not.
    weights = list(parts.objective.student.parameters())
    gradients = [torch.autograd.grad(x.sum, weights, allow_unused=True) for x in (exact, total)]
    reached = [pair for pair in zip(*gradients, strict=True) if pair[0] is not None]
    assert any(not torch.equal(*pair) for pair in reached)


def test_bf16_trains_and_is_measured_and_kept_in_float32(tmp_path: Path) -> None:
    parts, exact = without_dropout(make_parts()), without_dropout(make_parts())
    train(make_settings(), exact, make_habits(tmp_path / "exact"))
    with pytest.MonkeyPatch.context() as patch:
        seen: list[torch.dtype] = []
        patch.setattr(dev, "score", watched(dev.score, seen))
        train(make_settings(), parts, make_habits(tmp_path / "bf16", mixed_precision="bf16"))
    assert set(seen) == {torch.float32}
    assert {value.dtype for value in weights_of(parts.objective.student).values()} == {
        torch.float32
    }
    one, other = (records_of(tmp_path / name, "train") for name in ("exact", "bf16"))
    assert [r["loss"] for r in one] != [r["loss"] for r in other]
    for expected, found in zip(one, other, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)


def watched(score: Any, seen: list[torch.dtype]) -> Any:
    """`score`, noting what a layer's output is made of."""

    def look(model: Any, *arguments: Any, **named: Any) -> Any:
        hook = layers_of(model)[0].register_forward_hook(
            lambda _module, _inputs, output: seen.append(
                (output[0] if isinstance(output, tuple) else output).dtype
            )
        )
        try:
            return score(model, *arguments, **named)
        finally:
            hook.remove()

    return look


def test_fp16_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"fp16 needs a GPU: compute\.mixed_precision"):
        train(make_settings(), make_parts(), make_habits(tmp_path, mixed_precision="fp16"))


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if this were a GPU: on a CPU fp16 is as narrow, only slow."""
    monkeypatch.setattr(training, "require_means", lambda *_: None)
    return monkeypatch


def test_an_overflow_of_fp16_halves_the_scale_and_is_no_fault(
    fp16: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fp16.setattr(precision, "FIRST_SCALE", 2.0**40)
    fp16.setattr(updates, "SCALE_GROWS_AFTER", 4)
    settings = make_settings(max_non_finite=1)
    parts = make_parts()
    report = train(settings, parts, make_habits(tmp_path / "a", mixed_precision="fp16"))
    assert report.refused_updates == 0
    told = [record["message"] for record in records_of(tmp_path / "a", "refused")]
    assert told
    assert all(message.startswith("a gradient overflowed fp16") for message in told)
    steps = records_of(tmp_path / "a", "train")
    assert len(steps) + len(told) == 18
    assert all(r["grad_norm"] < 100 for r in steps)  # divided by the scale again
    interrupt(11, settings, make_parts(), tmp_path / "b", mixed_precision="fp16")
    resumed = make_parts()
    train(settings, resumed, make_habits(tmp_path / "b", mixed_precision="fp16"))
    for name, value in weights_of(parts.objective).items():
        assert torch.equal(weights_of(resumed.objective)[name], value)


def test_the_scale_changes_no_gradient_that_fits(tmp_path: Path, fp16: pytest.MonkeyPatch) -> None:
    norms = []
    for name, scale in (("small", 2.0**8), ("large", FIRST_SCALE)):
        fp16.setattr(precision, "FIRST_SCALE", scale)
        habits = make_habits(tmp_path / name, mixed_precision="fp16", grad_norm_every=1)
        train(make_settings(), without_dropout(make_parts(ONE_EPOCH)), habits)
        norms.append(records_of(tmp_path / name, "train")[0])
    assert norms[1]["grad_norm"] == pytest.approx(norms[0]["grad_norm"], rel=0.02)
    for level, found in norms[1]["levels"].items():
        expected = norms[0]["levels"][level]["grad_norm"]
        assert found["grad_norm"] == pytest.approx(expected, rel=0.02)


# --- recomputed and compiled layers --------------------------------------------------------------


def test_layers_are_recomputed_in_the_backward_pass_and_only_while_training() -> None:
    parts: Parts = make_parts(ONE_EPOCH)
    batch, targets = batch_of(parts, slice(0, 6))
    student: Any = parts.objective.student
    calls: list[int] = []
    inner = student.bert.encoder.layer[0].attention.self.query
    inner.register_forward_hook(lambda *_: calls.append(1))
    for compute, expected in (
        (make_compute(gradient_checkpointing=True), 2),
        (make_compute(), 1),
    ):
        calls.clear()
        with prepared(student, compute):
            parts.objective.train()
            totals = parts.objective(batch, targets, Moment(0))
            torch.stack([total.mean() for total in totals.values()]).sum().backward()
        assert len(calls) == expected
    assert not student.is_activation_checkpointing


def test_a_recomputed_layer_drops_what_it_dropped_before(tmp_path: Path) -> None:
    weights = []
    for recomputed in (False, True):
        parts = make_parts(ONE_EPOCH)
        config: Any = parts.objective.student.config
        assert config.hidden_dropout_prob > 0
        folder = tmp_path / str(recomputed)
        train(make_settings(), parts, make_habits(folder, gradient_checkpointing=recomputed))
        weights.append(weights_of(parts.objective))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of torch
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_layers_train_alike_and_are_as_before_afterwards(
    recomputed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as ever, but not handed to a C++ compiler, which takes minutes."""
    compiled_with = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compiled_with)
    # With and without a phase that balances, whose steps are several backward passes.
    phases = (*COMPILABLE, COMPILABLE[0].model_copy(update={"balance_every": 3}))
    records = []
    for is_compiled in (False, True):
        parts = without_dropout(make_parts(phases))
        folder = tmp_path / str(is_compiled)
        habits = make_habits(
            folder, compile=is_compiled, gradient_checkpointing=recomputed, grad_norm_every=2
        )
        train(make_settings(), parts, habits)
        records.append(records_of(folder, "train"))
        assert all("forward" not in vars(layer) for layer in layers_of(parts.objective.student))
    for plain, compiled in zip(*records, strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-4)


def test_compiling_is_refused_where_levels_look_inside_a_layer() -> None:
    with pytest.raises(ParamsError, match=r"compute\.compile.*found attention"):
        require_means(make_compute(compile=True), make_parts(ONE_EPOCH).objective, CPU)


def test_compiling_is_refused_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ParamsError, match=r"needs a C\+\+ compiler"):
        require_means(make_compute(compile=True), make_parts(COMPILABLE).objective, CPU)
