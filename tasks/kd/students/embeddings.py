"""One encoder's embeddings carried into another, of another width or family.

V words, P positions, K token types, E width of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.kd.errors import ShapeError
from tasks.kd.students.bases import Basis, principal

# Families whose positions begin after the padding id.
_AFTER_PADDING = ("roberta", "xlm-roberta", "mpnet")
_MPNET_PADDING = 1  # a constant in MPNet's code, whatever its configuration says
_CHUNK = 8192


@dataclass(frozen=True)
class Tables:
    """The tables whose rows are added up for a token; None for a table that the family lacks.

    Positions begin at a text's first token. Texts are single, so all tokens have type 0.
    """

    words_VE: Tensor
    positions_PE: Tensor | None
    types_KE: Tensor | None


def first_position(config: Any) -> int:
    """The position table's row for a text's first token."""
    if config.model_type not in _AFTER_PADDING:
        return 0
    padding = _MPNET_PADDING if config.model_type == "mpnet" else config.pad_token_id
    return int(padding) + 1


def positions(config: Any) -> int:
    """The longest text that the encoder can read, in tokens."""
    return int(config.max_position_embeddings) - first_position(config)


def require_padding(family: str, pad_id: int | None) -> None:
    """Raise ShapeError if a family's positions can't work with the vocabulary's padding id."""
    if family == "mpnet" and pad_id != _MPNET_PADDING:
        raise ShapeError(
            "mpnet takes positions from where the padding id 1 is not",
            where="train_student.student.family",
            expected=f"a vocabulary whose padding id is {_MPNET_PADDING}",
            found=pad_id,
        )
    if family in _AFTER_PADDING and pad_id is None:
        raise ShapeError(
            f"{family} takes positions from where no padding is",
            where="train_student.student.family",
            expected="a teacher with pad_token_id in its config.json",
            found="none",
        )


def read_tables(model: torch.nn.Module) -> Tables:
    """A model's embedding tables, detached."""
    base: Any = model.base_model
    places, types = (
        _table(base, name) for name in ("position_embeddings", "token_type_embeddings")
    )
    if places is not None:
        places = places[first_position(base.config) :]
    return Tables(_words(base).weight.detach(), places, types)


def second_moment(tables: Tables) -> Tensor:
    """The mean [E, E] float64 of x xᵀ, where x sums a word's, a position's and type 0's row.

    The mean is over all words at all positions with equal weight, so that words which the training
    texts lack count too.
    """
    words, offset = tables.words_VE, _mean_offset(tables)
    moment = torch.zeros(words.shape[1], words.shape[1], dtype=torch.float64)
    for chunk in words.split(_CHUNK):
        rows = chunk.double() + offset
        moment += rows.T @ rows / len(words)
    if tables.positions_PE is not None:
        rows = tables.positions_PE.double() - tables.positions_PE.double().mean(0)
        moment += rows.T @ rows / len(rows)
    return moment


def carry_embeddings(student: torch.nn.Module, teacher: torch.nn.Module) -> None:
    """Give the student its teacher's embeddings, on their principal components if it is narrower.

    One basis carries the tables and the norm behind them. Hidden layer 0 is then the teacher's,
    seen from the kept components and as large per channel. That size is a choice. A LayerNorm
    undoes any factor common to all tables, so the factor decides only how large the rows are, and
    AdamW's steps, which don't depend on it, suit rows of the teacher's size. A factor for each
    table would change a position's weight relative to a word's. Gains that differ by channel are
    carried approximately (`Basis.gain`); all else within the kept components is exact. At equal
    width, tables and norm are copied bit by bit.

    Between families, rows that the student has no table for (token types, positions if the
    student's are relative) are added to another table, positions as their mean. Tables that the
    teacher lacks stay new, except token types, which are set to zero. A norm is carried if it is as
    wide as its table in both models. Raises ShapeError for tables wider than the teacher's, and for
    another number of words.
    """
    own, theirs = read_tables(student), read_tables(teacher)
    _require_fit(own, theirs)
    tables = _like(theirs, own)
    width, have = own.words_VE.shape[1], theirs.words_VE.shape[1]
    basis = principal(second_moment(theirs), width)
    if width < have:
        places, types = (
            None if table is None else basis.narrow(table)
            for table in (tables.positions_PE, tables.types_KE)
        )
        tables = Tables(basis.narrow(tables.words_VE), places, types)
    base: Any = student.base_model
    with torch.no_grad():
        _words(base).weight.copy_(tables.words_VE)
        if tables.positions_PE is not None:
            _put(
                base.embeddings.position_embeddings,
                tables.positions_PE,
                first_position(base.config),
            )
        if own.types_KE is not None:
            base.embeddings.token_type_embeddings.weight.zero_()
        if tables.types_KE is not None:
            _put(base.embeddings.token_type_embeddings, tables.types_KE, 0)
        _carry_norm(_norm(base), _norm(teacher.base_model), basis)


def _put(table: Any, rows: Tensor, first: int) -> None:
    """Write rows into a table from row `first` on, as many as both have."""
    count = min(len(table.weight) - first, len(rows))
    table.weight[first : first + count] = rows[:count].to(table.weight.dtype)


def _like(tables: Tables, own: Tables) -> Tables:
    """The teacher's rows, merged into the tables that the student has."""
    words, places, types = tables.words_VE, tables.positions_PE, tables.types_KE
    if own.types_KE is None and types is not None:
        if places is None:
            words = words + types[0]
        else:
            places = places + types[0]
        types = None
    if own.positions_PE is None and places is not None:
        words, places = words + places.mean(0), None
    return Tables(words, places, types)


def _mean_offset(tables: Tables) -> Tensor:
    """The sum [E] float64 of the mean position's row and type 0's row."""
    offset = torch.zeros(tables.words_VE.shape[1], dtype=torch.float64)
    if tables.positions_PE is not None:
        offset = offset + tables.positions_PE.double().mean(0)
    if tables.types_KE is not None:
        offset = offset + tables.types_KE[0].double()
    return offset


def _carry_norm(own: Any, theirs: Any, basis: Basis) -> None:
    have, width = basis.columns.shape
    if (len(own.weight), len(theirs.weight)) != (width, have):
        return
    own.weight.copy_(basis.gain(theirs.weight))
    if own.bias is not None:
        own.bias.copy_(0 if theirs.bias is None else basis.narrow(theirs.bias))


def _require_fit(own: Tables, theirs: Tables) -> None:
    if len(own.words_VE) != len(theirs.words_VE):
        raise ShapeError(
            "embeddings can only be carried over to the same vocabulary",
            expected=f"{len(theirs.words_VE)} words",
            found=len(own.words_VE),
        )
    if own.words_VE.shape[1] > theirs.words_VE.shape[1]:
        raise ShapeError(
            "the student's embeddings are wider than the teacher's, which have fewer components",
            where="train_student.student.initial.embeddings",
            expected=f"at most {theirs.words_VE.shape[1]}",
            found=own.words_VE.shape[1],
            advice="Use `embeddings: new`.",
        )


def _words(base: Any) -> Any:
    table = getattr(base.embeddings, "word_embeddings", None)
    return base.embeddings.tok_embeddings if table is None else table  # ModernBERT's name


def _norm(base: Any) -> Any:
    module = getattr(base.embeddings, "LayerNorm", None)
    return base.embeddings.norm if module is None else module


def _table(base: Any, name: str) -> Tensor | None:
    module = getattr(base.embeddings, name, None)
    return None if module is None else module.weight.detach()
