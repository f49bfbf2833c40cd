"""The bank of a contrastive level, and that no text stands against itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tasks.kd.data.examples.padding import Batch, pad
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.data.examples.trainable import Moment
from tasks.kd.levels.losses.numerics import pool
from tasks.kd.targets.banks import banks
from tests.kd.conftest import make_split
from tests.makers.phases import one_phase
from tests.makers.training_setup import make_parts


class Counted:
    """States that tell the token at each place, and the largest batch that was asked for."""

    largest = 0

    def fetch(self, input_ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """Layer 3 alone."""
        ids_BT, mask_BT = pad(input_ids, 0)
        self.largest = max(self.largest, ids_BT.numel())
        return {"hidden.3": (ids_BT * mask_BT).float()[..., None]}


TEXTS = make_split(60, seed=4, longest=90).input_ids


def bank_of(count: int, seed: int = 3, texts: Sequence[Ids] = TEXTS) -> list[float]:
    found: list[float] = banks(Counted(), texts, (3,), count=count, seed=seed)[3][:, 0].tolist()
    return found


def test_a_bank_holds_the_means_of_so_many_distinct_texts_drawn_by_the_seed() -> None:
    means = [float(ids.mean()) for ids in TEXTS]
    found = bank_of(20)
    assert len(set(found)) == 20
    assert all(min(abs(value - mean) for mean in means) < 1e-3 for value in found)
    assert found != bank_of(20, seed=4)
    assert found == pytest.approx(bank_of(40)[:20])  # a level takes the first so many
    assert sorted(bank_of(500)) == pytest.approx(sorted(means))
    assert len(bank_of(500, texts=[*TEXTS, *TEXTS])) == len(TEXTS)


def test_a_bank_is_drawn_by_the_seed_and_not_by_length() -> None:
    order = np.random.default_rng(3).permutation(len(TEXTS))[:20]
    assert bank_of(20) == pytest.approx([float(TEXTS[row].mean()) for row in order])


def test_no_batch_of_a_bank_is_larger_than_its_bound() -> None:
    lengths = [512 if row % 40 == 0 else 12 for row in range(2_000)]
    texts = [np.arange(row, row + n, dtype=np.int32) for row, n in enumerate(lengths)]
    targets = Counted()
    banks(targets, texts, (3,), count=2_000, seed=0)
    assert targets.largest <= 8192


def contrast(bank_ND: torch.Tensor, negatives: int) -> float:
    """Of one text, against the first so many of a bank."""
    level = {"level": "hidden", "loss": "contrastive", "layer_map": ((2, 4),), "weight": 1.0}
    fields = {"temperature": 0.1, "negatives": negatives, "projection": "linear"}
    parts = make_parts((one_phase(({**level, **fields},)),))
    parts.objective.eval().bank_4 = bank_ND
    ids_BT, mask_BT = pad(parts.train.input_ids[:1], 0)
    batch = Batch(ids_BT, mask_BT, torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        targets = parts.targets.fetch(parts.train.input_ids[:1])
        (total,) = parts.objective(batch, targets, Moment(0)).values()
    return float(total.sum)


def test_a_text_in_the_bank_does_not_stand_against_itself() -> None:
    parts = make_parts()
    texts = parts.train.input_ids[:1]
    with torch.no_grad():
        itself_BD = pool(parts.targets.fetch(texts)["hidden.4"], pad(texts, 0)[1])
    others_ND = parts.targets.fetch(parts.train.input_ids[1:11])["hidden.4"][:, 0].detach()
    with_itself_ND = torch.cat([others_ND[:3], itself_BD, others_ND[3:]])
    assert contrast(with_itself_ND, 9) == pytest.approx(contrast(others_ND, 8), rel=1e-5)
    assert contrast(others_ND, 8) != pytest.approx(contrast(others_ND, 9), rel=1e-3)
