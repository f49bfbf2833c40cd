"""What holds for every loss, whatever it measures. A loss that is not listed here fails."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.kd.errors import ParamsError, ShapeError
from tasks.kd.levels import losses
from tasks.kd.levels.losses import attention, geometry, hidden, prediction, relation, tokens
from tasks.kd.levels.losses.attention import Heads
from tasks.kd.recipe.levels import DirectionLevel, HiddenLevel, LayerLevel
from tasks.kd.recipe.losses import LOSSES, Loss
from tasks.kd.recipe.maps import NAMED, ChosenMap
from tasks.kd.totals import Total
from tests.golden.cases import CASES, Case, mask_of, numbers, windowed

LENGTHS = [5, 3, 1, 4]
COUNTED = {"examples": 4, "tokens": 13, "pairs": 51, "triplets": 217}
NONSENSE = [1e30, -1e30, math.inf, math.nan]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def seen(mask_BT: torch.Tensor, axes: tuple[int, ...], dimensions: int) -> torch.Tensor:
    """True where no token axis is at padding."""
    where = torch.ones(1, dtype=torch.bool)
    for axis in axes:
        shape = [-1 if i in {0, axis} else 1 for i in range(dimensions)]
        shape[0], shape[axis] = mask_BT.shape
        where = where & mask_BT.reshape(shape)
    return where


def fill_padding(
    values: torch.Tensor, axes: tuple[int, ...], mask_BT: torch.Tensor, nonsense: float
) -> torch.Tensor:
    """The values, as wide as the mask, with nonsense at padding."""
    if not axes:
        return values.clone()
    nonsense = nonsense if values.is_floating_point() else 10**6
    shape = [mask_BT.shape[1] if i in axes else size for i, size in enumerate(values.shape)]
    wide = values.new_full(shape, nonsense)
    wide[tuple(slice(size) for size in values.shape)] = values
    return wide.masked_fill(~seen(mask_BT, axes, values.dim()), nonsense)


def run(case: Case, rows: slice = slice(None), extra: int = 0, nonsense: float = 1e30) -> Total:
    """The loss on some rows, with `extra` more columns of padding full of nonsense."""
    mask = mask_of(LENGTHS[rows], 5 + extra)
    own = fill_padding(case.own[rows], case.axes, mask, nonsense)
    theirs = fill_padding(case.theirs[rows], case.their_axes, mask, -nonsense)
    return case.loss(own, theirs, mask, *(values[rows] for values in case.more))


def gradient(case: Case, own: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    own = own.clone().requires_grad_()
    # NaN that is overwritten later counts as well: no step of the backward pass may yield it.
    with torch.autograd.set_detect_anomaly(True):
        case.loss(own, theirs, mask_of(LENGTHS, 5), *case.more).sum.backward()
    assert own.grad is not None
    return own.grad


def counted(name: str) -> str:
    """What a loss counts, by its own docstring, which says it once."""
    words = " ".join(str(losses.FUNCTIONS[name].__doc__).split())
    (said,) = re.findall(r"[Tt]he count is (examples|tokens|token pairs|triplets)", words)
    return str(said).removeprefix("token ")


# --- of all --------------------------------------------------------------------------------------


def test_every_loss_is_in_this_suite() -> None:
    assert {name.split()[0] for name in CASES} == set(losses.FUNCTIONS)


@pytest.mark.parametrize("name", losses.FUNCTIONS)
def test_every_loss_says_what_it_counts_and_stands_on_the_contents_page(name: str) -> None:
    assert counted(name) in COUNTED
    assert f"`{name}`" in str(losses.__doc__)


@pytest.mark.parametrize("name", CASES)
def test_the_count_is_known_from_the_lengths(name: str) -> None:
    assert run(CASES[name]).count == COUNTED[counted(name.partition(" ")[0])]


def test_is_above_zero_and_zero_on_itself(case: Case) -> None:
    assert float(run(case).sum) > 1e-3
    if case.zero_on_itself and case.own.shape == case.theirs.shape:
        itself = case.loss(case.own, case.own.clone(), mask_of(LENGTHS, 5), *case.more)
        assert float(itself.sum) == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_what_stands_in_padding_never_matters(case: Case, nonsense: float) -> None:
    assert torch.equal(run(case, nonsense=nonsense).sum, run(case, nonsense=0.5).sum)


def test_how_much_padding_there_is_never_matters(case: Case) -> None:
    plain, padded = run(case), run(case, extra=7)
    assert float(padded.sum) == pytest.approx(float(plain.sum), rel=case.rounding, abs=0)
    assert plain.count == padded.count


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_any_split_of_the_batch_gives_the_same_total(case: Case, cut: int) -> None:
    whole, merged = run(case), run(case, slice(0, cut)).merge(run(case, slice(cut, None)))
    assert merged.count == whole.count
    assert float(merged.sum) == pytest.approx(float(whole.sum), rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    mask, own = mask_of(LENGTHS, 5), case.own.to(dtype)
    theirs = case.theirs.to(dtype) if case.theirs.is_floating_point() else case.theirs
    total = case.loss(own, theirs, mask, *case.more)
    wide = theirs.float() if theirs.is_floating_point() else theirs
    assert total.sum.dtype == torch.float32
    assert torch.equal(total.sum, case.loss(own.float(), wide, mask, *case.more).sum)


def test_autocast_does_not_lower_the_precision(case: Case) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = run(case)
    assert lowered.sum.dtype == torch.float32
    assert torch.equal(lowered.sum, run(case).sum)


def test_its_gradient_is_that_of_its_value(case: Case) -> None:
    theirs = case.theirs.double() if case.theirs.is_floating_point() else case.theirs
    mask, own = mask_of(LENGTHS, 5), case.own.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: case.loss(x, theirs, mask, *case.more).sum, own)


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_padding_gets_no_gradient_and_spoils_none(case: Case, nonsense: float) -> None:
    if not case.axes:
        return
    mask = mask_of(LENGTHS, 5)
    own = fill_padding(case.own, case.axes, mask, nonsense)
    theirs = fill_padding(case.theirs, case.their_axes, mask, nonsense)
    slopes = gradient(case, own, theirs)
    padding = ~seen(mask, case.axes, own.dim()).expand_as(own)
    assert bool((slopes[padding] == 0).all())
    assert bool(torch.isfinite(slopes).all())
    assert float(slopes.abs().sum()) > 0


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_value_and_gradient_are_finite_far_out_and_at_zero(case: Case, scale: float) -> None:
    seeing = ~torch.isinf(case.own)
    own = torch.where(seeing, case.own * scale, case.own)
    theirs = case.theirs * 1e4 if case.zero_on_itself else case.theirs
    total = case.loss(own, theirs, mask_of(LENGTHS, 5), *case.more)
    assert bool(torch.isfinite(total.sum))
    assert bool(torch.isfinite(gradient(case, own, theirs)).all())


def test_the_gradient_is_finite_where_the_loss_is_zero(case: Case) -> None:
    if case.zero_on_itself and case.own.shape == case.theirs.shape:
        slopes = gradient(case, case.own, case.own.clone())
        assert float(slopes.abs().max()) == pytest.approx(0, abs=2e-3)


def test_its_arguments_stay_as_they_are(case: Case) -> None:
    own, theirs, mask = case.own.clone(), case.theirs.clone(), mask_of(LENGTHS, 5)
    case.loss(own, theirs, mask, *case.more)
    assert torch.equal(own, case.own)
    assert torch.equal(theirs, case.theirs)


def test_shapes_that_differ_are_refused(case: Case) -> None:
    mask = mask_of(LENGTHS, 5)
    with pytest.raises(ShapeError, match="wrong shape"):
        case.loss(case.own, case.theirs[:2], mask, *case.more)
    if case.axes:
        for wrong in (mask[:2], mask[:, :4], mask[0]):
            with pytest.raises(ShapeError, match="attention mask has the wrong shape"):
                case.loss(case.own, case.theirs, wrong, *case.more)
        with pytest.raises(ShapeError, match=r"student .* has the wrong shape"):
            case.loss(case.own[0], case.theirs, mask, *case.more)


def test_a_mask_of_integers_is_refused(case: Case) -> None:
    if case.axes:
        with pytest.raises(ShapeError, match="mask is not bool"):
            case.loss(case.own, case.theirs, mask_of(LENGTHS, 5).long(), *case.more)


# --- of all that a recipe can name ----------------------------------------------------------------


# No recipe names them: labels there are one class per example.
UNNAMED = {"bce", "bce_kl", "regression", "token_labels", "token_kl", "span_labels", "span_kl"}
# What a level is given to all losses alike, and what a function takes beside a level's options.
COMMON_FIELDS = {"level", "loss", "weight", "layer_map", "projection"}
BESIDE_OPTIONS = {"each", "base", "deviation_D", "excluded_BN"}


def values_of(annotation: Any) -> set[Any]:
    """All values of the literals in an annotation."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {value for part in get_args(annotation) for value in values_of(part)}


def find_row_faults(name: str, row: Loss) -> Iterator[str]:
    """Where a row of `recipe/losses.py` and its model or its function say different things."""
    fields, function = row.model.model_fields, losses.FUNCTIONS.get(row.function)
    level, _, loss = name.partition(".")
    if level not in values_of(fields["level"].annotation):
        yield "its model has another level"
    if loss not in values_of(fields["loss"].annotation):
        yield "its model has another loss"
    if (row.reads or "logits") != ("logits" if level == "prediction" else level):
        yield "it reads streams of another level"
    if set(fields) - COMMON_FIELDS != {*row.options, *row.constants, row.repeated} - {""}:
        yield "its model has other fields than it reads"
    if function is None:
        yield "its function is not on the contents page"
        return
    if row.counts != counted(row.function):
        yield "its function counts something else"
    parameters = inspect.signature(function).parameters.values()
    named = {x.name: x.default for x in parameters if x.kind is x.KEYWORD_ONLY}
    options = {row.renamed.get(option, option) for option in row.options}
    if not {x for x, default in named.items() if default is inspect.Parameter.empty} <= options:
        yield "its function takes an option that it does not give"
    if not options <= set(named) - BESIDE_OPTIONS:
        yield "it gives an option that its function does not take"
    plans = {"transport", "nearest"} & values_of(getattr(fields.get("layer_map"), "annotation", 0))
    if plans and "each" not in named:
        yield "its function has no `each`, which maps that plan need"


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_its_model_and_its_function_agree(name: str) -> None:
    assert list(find_row_faults(name, LOSSES[name])) == []


def test_every_function_has_a_row_or_is_known_to_have_none() -> None:
    assert {row.function for row in LOSSES.values()} == set(losses.FUNCTIONS) - UNNAMED


@pytest.mark.parametrize(
    ("name", "changes", "fault"),
    [
        ("attention.mse", {"model": HiddenLevel}, "its model has another level"),
        ("hidden.cka", {"model": DirectionLevel}, "its model has another loss"),
        ("hidden.cka", {"reads": "attention"}, "it reads streams of another level"),
        ("hidden.cka", {"reads": "logits"}, "it reads streams of another level"),
        ("prediction.jsd", {"options": ("temperature",)}, "its model has other fields than it r"),
        ("hidden.mse", {"constants": {}}, "its model has other fields than it reads"),
        ("relation.kl", {"repeated": ""}, "its model has other fields than it reads"),
        ("hidden.cka", {"function": "ckb"}, "its function is not on the contents page"),
        ("hidden.cka", {"counts": "tokens"}, "its function counts something else"),
        ("relation.kl", {"renamed": {}}, "its function takes an option that it does not give"),
        ("relation.kl", {"renamed": {}}, "it gives an option that its function does not take"),
        ("hidden.mse", {"function": "procrustes"}, "its function has no `each`, which maps that"),
    ],
)
def test_a_row_that_says_something_else_is_found(
    name: str, changes: dict[str, Any], fault: str
) -> None:
    faults = find_row_faults(name, replace(LOSSES[name], **changes))
    assert any(found.startswith(fault) for found in faults)


def test_the_maps_that_a_recipe_may_name_are_those_there_are_and_are_described() -> None:
    fixed = {*NAMED, "random"}
    for row in LOSSES.values():
        if issubclass(row.model, LayerLevel):
            layer_map = row.model.model_fields["layer_map"]
            named = values_of(layer_map.annotation)
            assert fixed <= named <= fixed | set(get_args(ChosenMap))
            assert {name for name in named if name not in str(layer_map.description)} == set()


def test_the_page_of_levels_lists_every_loss(root: Path) -> None:
    lines = (root / "docs" / "levels.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1:3] for line in lines if line.startswith("| ")]
    listed = {
        f"{level.strip()}.{name}" for level, names in cells for name in re.findall("`(.+?)`", names)
    }
    assert listed == set(LOSSES)


# --- of some: what they don't mind ---------------------------------------------------------------


def rotation(width: int, seed: int) -> torch.Tensor:
    turn: torch.Tensor = torch.linalg.qr(numbers(width, width, seed=seed).double())[0]
    return turn.float()


@pytest.mark.parametrize("name", ["nst", "cka", "procrustes", "rkd_distance", "rkd_angle"])
def test_geometry_is_unchanged_by_a_rotation(name: str) -> None:
    loss, case = losses.FUNCTIONS[name], CASES[name]
    turned = loss(case.own @ rotation(8, seed=9), case.theirs, mask_of(LENGTHS, 5))
    assert float(turned.sum) == pytest.approx(float(run(case).sum), rel=1e-5)
    itself = loss(case.own @ rotation(8, seed=9), case.own, mask_of(LENGTHS, 5))
    assert float(itself.sum) == pytest.approx(0, abs=1e-5)


@given(seed=st.integers(0, 10**6), heads=st.sampled_from([1, 2, 4]))
def test_relations_are_unchanged_by_a_rotation_within_a_relation_head(
    seed: int, heads: int
) -> None:
    mask, own, theirs = mask_of(LENGTHS, 5), numbers(4, 5, 8), numbers(4, 5, 12, seed=1)
    within = torch.block_diag(*(rotation(8 // heads, seed + head) for head in range(heads)))
    plain = float(relation.relation_kl(own, theirs, mask, heads=heads).sum)
    turned = float(relation.relation_kl(own @ within, theirs, mask, heads=heads).sum)
    assert turned == pytest.approx(plain, rel=1e-4)


def test_relations_are_changed_by_a_rotation_across_relation_heads() -> None:
    mask, own, theirs = mask_of(LENGTHS, 5), numbers(4, 5, 8), numbers(4, 5, 12, seed=1)
    plain = float(relation.relation_kl(own, theirs, mask, heads=4).sum)
    turned = relation.relation_kl(own @ rotation(8, seed=9), theirs, mask, heads=4)
    assert abs(float(turned.sum) - plain) > 0.1


def test_procrustes_is_the_same_from_either_side() -> None:
    case, mask = CASES["procrustes wide"], mask_of(LENGTHS, 5)
    there = geometry.procrustes(case.own, case.theirs, mask).sum
    back = geometry.procrustes(case.theirs, case.own, mask).sum
    assert float(there) == pytest.approx(float(back), rel=1e-6)


@pytest.mark.parametrize("name", ["cka", "rkd_distance"])
def test_an_example_of_one_token_adds_nothing(name: str) -> None:
    case = CASES[name]
    slopes = gradient(case, case.own, case.theirs)
    assert float(losses.FUNCTIONS[name](case.own[2:3], case.theirs[2:3], mask_of([1], 5)).sum) == 0
    assert bool((slopes[2] == 0).all())


def test_cka_of_tokens_that_are_all_alike_is_one() -> None:
    alike, mask = torch.ones(1, 5, 8), mask_of([5], 5)
    assert float(geometry.cka(alike, numbers(1, 5, 8), mask).sum) == 1


def test_decoupled_distillation_adds_up_to_kl() -> None:
    own, theirs, classes = numbers(1, 6), numbers(1, 6, seed=1), torch.tensor([2])
    rest = 1 - float(torch.softmax(theirs / 3, -1)[0, 2])
    whole = prediction.dkd(own, theirs, classes, temperature=3, target_weight=1, other_weight=rest)
    assert float(whole.sum) == pytest.approx(
        float(prediction.kl(own, theirs, temperature=3).sum), 1e-5
    )


@pytest.mark.parametrize(("end", "limit"), [(0, prediction.kl), (1, prediction.reverse_kl)])
def test_jsd_tends_to_its_ends(end: int, limit: Callable[..., Total]) -> None:
    own, theirs = numbers(4, 6).double(), numbers(4, 6, seed=1).double()
    near = prediction.jsd(own, theirs, beta=abs(end - 1e-6), temperature=2.0).sum / 1e-6
    assert float(near) == pytest.approx(float(limit(own, theirs, temperature=2.0).sum), rel=1e-4)


def test_excluded_negatives_count_as_if_they_were_not_there() -> None:
    own, theirs, bank = numbers(4, 8), numbers(4, 8, seed=1), numbers(7, 8, seed=2)
    excluded = torch.zeros(4, 7, dtype=torch.bool)
    excluded[:, 5:] = True
    fewer = hidden.contrastive(own, theirs, bank[:5], temperature=0.1)
    same = hidden.contrastive(own, theirs, bank, temperature=0.1, excluded_BN=excluded)
    assert torch.equal(fewer.sum, same.sum)
    assert float(hidden.contrastive(own, theirs, bank, temperature=0.1).sum) > float(same.sum)


def test_what_has_no_label_adds_nothing_and_is_counted() -> None:
    mask, logits = mask_of([3], 3), numbers(1, 3, 4)
    none = tokens.token_labels(logits, torch.tensor([[-100, -100, -100]]), mask)
    one = tokens.token_labels(logits, torch.tensor([[-100, 2, -100]]), mask)
    assert (float(none.sum), none.count, one.count) == (0, 3, 3)
    assert float(one.sum) == pytest.approx(float(-torch.log_softmax(logits[0, 1], -1)[2]))


def test_a_pair_outside_a_window_adds_nothing_to_the_scores_and_is_counted() -> None:
    own, theirs, mask = numbers(1, 2, 5, 5), numbers(1, 2, 5, 5, seed=1), mask_of([5], 5)
    inside = ~torch.isinf(windowed(own, 1))
    total = attention.scores_mse(windowed(own, 1), theirs, mask, heads="each")
    expected = (own - theirs)[inside].square().sum() / 2
    assert float(total.sum) == pytest.approx(float(expected))
    assert total.count == 25


@pytest.mark.parametrize("name", ["attention_kl", "relation_kl", "procrustes", "cka", "kl"])
def test_what_is_not_a_number_is_seen_in_the_sum(name: str) -> None:
    case = CASES.get(name) or CASES[f"{name} each"]
    own = case.own.clone()
    own[(0,) * own.dim()] = math.nan
    assert bool(case.loss(own, case.theirs, mask_of(LENGTHS, 5)).sum.isnan())


# --- of some: what they refuse -------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["each", "average"])
def test_a_window_that_hides_what_the_teacher_sees_is_refused(heads: Heads) -> None:
    scores, mask = numbers(4, 2, 5, 5), mask_of(LENGTHS, 5)
    with pytest.raises(ShapeError, match=r"window.*found \d+ pairs outside"):
        attention.attention_kl(windowed(scores, 1), windowed(scores, 2), mask, heads=heads)


def test_a_window_of_some_heads_is_no_fault_where_others_see() -> None:
    own, mask = numbers(4, 2, 5, 5), mask_of(LENGTHS, 5)
    own[:, :1] = windowed(own[:, :1], 1)
    total = attention.attention_kl(own, numbers(4, 2, 5, 5, seed=1), mask, heads="average")
    assert bool(torch.isfinite(total.sum))
    with pytest.raises(ShapeError, match="window"):
        attention.attention_kl(own, numbers(4, 2, 5, 5, seed=1), mask, heads="each")


@pytest.mark.parametrize("loss", [attention.scores_mse, attention.attention_kl])
def test_heads_that_differ_are_refused_unless_they_are_averaged(
    loss: Callable[..., Total],
) -> None:
    own, theirs, mask = numbers(4, 2, 5, 5), numbers(4, 4, 5, 5), mask_of(LENGTHS, 5)
    with pytest.raises(ShapeError, match="teacher attention scores has the wrong shape"):
        loss(own, theirs, mask, heads="each")
    with pytest.raises(ShapeError, match="student attention scores has the wrong shape"):
        loss(numbers(4, 2, 5, 6), theirs, mask, heads="average")
    with pytest.raises(ParamsError, match="unknown way to compare heads"):
        loss(own, theirs, mask, heads="every")


@pytest.mark.parametrize(("own", "theirs", "side"), [(9, 12, "student"), (12, 9, "teacher")])
def test_relation_heads_that_do_not_divide_a_width_are_refused(
    own: int, theirs: int, side: str
) -> None:
    mask = mask_of(LENGTHS, 5)
    with pytest.raises(ShapeError, match=f"do not divide the {side}'s width.*found 9"):
        relation.relation_kl(numbers(4, 5, own), numbers(4, 5, theirs), mask, heads=4)
    with pytest.raises(ShapeError, match="do not divide"):
        relation.relation_kl(numbers(4, 5, own), numbers(4, 5, theirs), mask, heads=0)


def test_two_classes_are_refused_where_nothing_would_be_left() -> None:
    own, theirs, classes = numbers(4, 2), numbers(4, 2, seed=1), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ShapeError, match="decoupled distillation says nothing with so few classes"):
        prediction.dkd(own, theirs, classes, temperature=1, target_weight=1, other_weight=1)
    with pytest.raises(ShapeError, match="DIST says nothing with so few classes"):
        prediction.dist(own, theirs, temperature=1)


@pytest.mark.parametrize("wrong", [-100, 6])
def test_a_label_that_is_no_class_is_refused(wrong: int) -> None:
    classes = torch.tensor([0, 1, wrong, 2])
    with pytest.raises(ShapeError, match="is no class"):
        prediction.dkd(
            numbers(4, 6), numbers(4, 6), classes, temperature=1, target_weight=1, other_weight=1
        )
    with pytest.raises(ShapeError, match="labels has the wrong shape"):
        prediction.dkd(
            numbers(4, 6),
            numbers(4, 6),
            classes[:2],
            temperature=1,
            target_weight=1,
            other_weight=1,
        )


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ParamsError, match="out of range"):
        prediction.jsd(numbers(4, 6), numbers(4, 6), beta=beta, temperature=1)


@pytest.mark.parametrize("wrong", [-1, 3, 4, 5, 99])
def test_a_span_that_ends_at_no_real_token_is_refused(wrong: int) -> None:
    positions = torch.tensor([[0, 4], [0, wrong]])
    with pytest.raises(ShapeError, match="at no real token"):
        tokens.span_labels(numbers(2, 5, 2), positions, mask_of([5, 3], 5))


def test_a_first_token_that_is_padding_is_refused() -> None:
    states, mask = numbers(2, 5, 8), mask_of([5, 3], 5).flip(1)
    with pytest.raises(ShapeError, match="begins with padding"):
        hidden.cls_mse(states, states, mask, normalised=True)


def test_other_shapes_that_do_not_fit_are_refused() -> None:
    states, mask, vectors = numbers(4, 5, 8), mask_of(LENGTHS, 5), numbers(4, 8)
    with pytest.raises(ShapeError, match="deviation has the wrong shape"):
        hidden.mse(states, states, mask, deviation_D=torch.ones(7))
    with pytest.raises(ShapeError, match="negatives has the wrong shape"):
        hidden.contrastive(vectors, vectors, numbers(7, 9), temperature=1)
    no = torch.zeros(4, 6, dtype=torch.bool)
    with pytest.raises(ShapeError, match="excluded negatives has the wrong shape"):
        hidden.contrastive(vectors, vectors, numbers(7, 8), temperature=1, excluded_BN=no)
    with pytest.raises(ShapeError, match="labels has the wrong shape"):
        prediction.regression(numbers(4, 1), torch.zeros(4))
    with pytest.raises(ShapeError, match="teacher hidden states has the wrong shape"):
        geometry.gram((states, states), (states, numbers(4, 5, 9)), mask)
