"""Levels of a recipe: their names, their layers, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.kd.recipe.levels import LayerLevel
from tasks.kd.recipe.losses import constants_of
from tasks.kd.recipe.matching import match
from tasks.kd.recipe.phases import streams_read
from tests.makers.levels import EVERY_LEVEL, MSE, VECTOR, phase_with
from tests.makers.phases import one_phase


def test_a_standardised_mixture_is_refused() -> None:
    with pytest.raises(ValidationError, match="a mixture of layers has no deviation"):
        phase_with({**MSE, "standardise": True, "layer_map": "mixture"})


def test_a_plan_is_no_map_for_relations() -> None:
    fields = {
        "level": "relation",
        "loss": "kl",
        "relations": ("values",),
        "relation_heads": 4,
        "layer_map": "transport",
    }
    with pytest.raises(ValidationError):
        phase_with(fields)


def test_two_levels_of_one_loss_are_told_apart_by_their_maps() -> None:
    levels = [{**MSE, "weight": 1.0, "layer_map": m} for m in ("transport", ((0, 0),))]
    phase = one_phase(tuple(levels))
    assert phase.level_names == ("hidden.mse transport", "hidden.mse [[0, 0]]")
    with pytest.raises(ValidationError, match="holds each level once"):
        one_phase((levels[0], levels[0]))


def test_a_gram_matrix_needs_two_layers() -> None:
    fields = {"level": "hidden", "loss": "gram", "projection": "linear", "layer_map": "last"}
    with pytest.raises(ValueError, match=r"hidden\.gram compares a matched layer with the next"):
        streams_read((phase_with(fields),), 2, 4)


def level_with(**fields: object) -> LayerLevel:
    (level,) = phase_with(fields).levels
    assert isinstance(level, LayerLevel)
    return level


def test_a_gram_matrix_of_a_student_of_one_layer_has_no_next_one() -> None:
    gram = level_with(level="hidden", loss="gram", projection="linear", layer_map="random")
    with pytest.raises(ValueError, match="a student of 1 has none"):
        match(gram, 1, 4)


@pytest.mark.parametrize(
    ("fields", "lacking"),
    [
        (VECTOR, "first token that differs by text"),
        ({"level": "attention", "loss": "kl", "heads": "each"}, "attention"),
    ],
)
def test_the_embeddings_are_left_out_by_a_map_and_refused_in_a_pair(
    fields: dict[str, object], lacking: str
) -> None:
    assert match(level_with(**fields, layer_map="uniform"), 2, 4).fixed == ((1, 2), (2, 4))
    with pytest.raises(ValueError, match=rf"layer 0, the embeddings, has no {lacking}: .*\[0, 1\]"):
        match(level_with(**fields, layer_map=((0, 1),)), 2, 4)


def test_a_level_keeps_what_its_field_asks_for() -> None:
    kept = {
        f"{fields['level']}.{fields['loss']}": constants_of(phase_with(fields).levels[0])
        for fields in EVERY_LEVEL
    }
    assert {name: value for name, value in kept.items() if value} == {
        "hidden.mse": {"deviation": True},
        "hidden.contrastive": {"bank": 9},
    }
    assert constants_of(level_with(**MSE)) == {}


def test_a_level_of_labels_reads_no_teacher() -> None:
    labels = phase_with({"level": "prediction", "loss": "labels"})
    soft = phase_with({"level": "prediction", "loss": "kl", "temperature": 1.0})
    assert streams_read((labels,), 2, 4) == ()
    assert streams_read((labels, soft), 2, 4) == ("logits",)
