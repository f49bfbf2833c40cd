from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.kd.encoders.files.architectures import FAMILIES
from tasks.kd.encoders.running import embed
from tasks.kd.errors import ShapeError
from tasks.kd.students.bases import principal
from tasks.kd.students.embeddings import (
    carry_embeddings,
    first_position,
    positions,
    read_tables,
    require_padding,
    second_moment,
)
from tests.makers.small_families import VOCABULARY, WIDTH, ragged, small

TABULATED = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet")


def first_states(model: Any) -> torch.Tensor:
    """Hidden layer 0 of the real tokens, one below the other."""
    ids_BT, mask_BT = ragged()
    with torch.no_grad():
        return embed(model, ids_BT, mask_BT)[mask_BT]


def wide(family: str) -> Any:
    """Embeddings as wide as the layers."""
    return small(family, **({"embedding_size": WIDTH} if family == "electra" else {}))


def narrow(family: str, width: int) -> Any:
    names = {"distilbert": "dim"}
    return small(family, **{names.get(family, "hidden_size"): width, "embedding_size": width})


@pytest.mark.parametrize("teacher", TABULATED)
@pytest.mark.parametrize("student", TABULATED)
def test_at_equal_width_hidden_layer_0_is_the_teacher_s_between_families(
    student: str, teacher: str
) -> None:
    own, theirs = wide(student), wide(teacher)
    carry_embeddings(own, theirs)
    assert torch.allclose(first_states(own), first_states(theirs), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_one_family_tables_and_norm_are_copied_bit_by_bit(family: str) -> None:
    own, theirs = small(family), small(family)
    with torch.no_grad():
        for weight in own.parameters():
            weight.add_(1)
    carry_embeddings(own, theirs)
    copied = own.base_model.embeddings.state_dict()
    for name, value in theirs.base_model.embeddings.state_dict().items():
        # The row of the padding id is no position.
        first = first_position(theirs.config) if "position" in name else 0
        assert torch.equal(copied[name][first:], value[first:]), name
    assert len(copied) > 1


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_a_narrow_hidden_layer_0_is_the_teacher_s_on_its_components(family: str) -> None:
    """Near enough, for tables that lie almost within them; as large per channel."""
    theirs, own = wide(family), narrow(family, 12)
    generator = torch.Generator().manual_seed(3)
    plane = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0][:, :11]
    with torch.no_grad():
        for module in theirs.base_model.embeddings.children():
            if isinstance(module, torch.nn.Embedding):
                module.weight.copy_(module.weight @ plane @ plane.T + 0.002 * module.weight)
            elif isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(0.8)  # equal gains are carried exactly
    basis = principal(second_moment(read_tables(theirs)), 12)
    carry_embeddings(own, theirs)
    expected = basis.narrow(first_states(theirs))
    error = (first_states(own) - expected).norm() / expected.norm()
    assert error < 0.15
    size = first_states(own).square().mean() / first_states(theirs).square().mean()
    assert 0.8 < size < 1.25


def test_words_that_no_text_has_are_carried_too() -> None:
    theirs, own = small("bert"), narrow("bert", 16)
    basis = principal(second_moment(read_tables(theirs)), 16)
    carry_embeddings(own, theirs)
    expected = basis.narrow(read_tables(theirs).words_VE.detach()).float()
    assert torch.allclose(read_tables(own).words_VE, expected, atol=1e-6)
    sizes = [read_tables(model).words_VE.square().mean() for model in (own, theirs)]
    assert 0.7 < sizes[0] / sizes[1] < 1.4


def test_the_moment_is_that_of_all_words_at_all_positions() -> None:
    tables = read_tables(small("bert"))
    assert tables.positions_PE is not None
    assert tables.types_KE is not None
    sums = tables.words_VE[:, None] + tables.positions_PE + tables.types_KE[0]
    rows = sums.flatten(0, 1).double()
    assert torch.allclose(second_moment(tables), rows.T @ rows / len(rows), atol=1e-6)


def test_a_type_that_the_teacher_has_not_is_zero_and_one_more_than_it_has_too() -> None:
    own = small("bert")
    carry_embeddings(own, small("distilbert"))
    types = read_tables(own).types_KE
    assert types is not None
    assert not types.any()
    own = small("bert", type_vocab_size=4)
    carry_embeddings(own, small("bert"))
    types = read_tables(own).types_KE
    assert types is not None
    assert types[:2].all()
    assert not types[2:].any()


def test_positions_that_a_student_has_not_are_added_as_their_mean() -> None:
    own, theirs = small("modernbert"), small("bert")
    tables = read_tables(theirs)
    carry_embeddings(own, theirs)
    assert tables.positions_PE is not None
    assert tables.types_KE is not None
    moved = tables.words_VE + (tables.positions_PE + tables.types_KE[0]).mean(0)
    assert torch.allclose(read_tables(own).words_VE, moved, atol=1e-6)


def test_positions_that_the_teacher_has_not_stay_new() -> None:
    own = small("bert")
    before = own.bert.embeddings.position_embeddings.weight.detach().clone()
    carry_embeddings(own, small("modernbert"))
    assert torch.equal(own.bert.embeddings.position_embeddings.weight, before)


def test_other_words_or_wider_tables_are_refused() -> None:
    with pytest.raises(ShapeError, match=f"Expected {VOCABULARY} words, found 70"):
        carry_embeddings(small("bert", vocab_size=70), small("bert"))
    with pytest.raises(ShapeError, match=r"fewer components.*Expected at most 24, found 32"):
        carry_embeddings(small("bert"), small("electra"))


def test_positions_begin_after_the_padding_id_in_some_families() -> None:
    assert [first_position(small(name).config) for name in ("bert", "roberta", "mpnet")] == [
        0,
        2,
        2,
    ]
    assert first_position(small("roberta", pad_token_id=7).config) == 8
    assert positions(small("distilbert").config) == 40
    assert positions(small("mpnet").config) == 38


def test_a_padding_id_that_a_family_can_t_have_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"whose padding id is 1, found 0"):
        require_padding("mpnet", 0)
    with pytest.raises(ShapeError, match="roberta takes positions"):
        require_padding("roberta", None)
    require_padding("roberta", 0)
    require_padding("bert", None)
